"""The rules, alerts and dashboards of monitoring/: they parse, their cases hold, every alert is explained and tried
both ways, and every metric that they name is told by somebody."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml

import pipeline_metrics

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "monitoring"
DASHBOARDS = sorted((FOLDER / "grafana/dashboards").glob("*.json"))
# Of programs that are not ours, by the job that they are scraped as
FOREIGN = {
    # monitoring/kafka_jmx.yml makes the first ten, the agent itself adds Java's
    "kafka_server_replicamanager_underreplicatedpartitions", "kafka_server_replicamanager_underminisrpartitioncount",
    "kafka_server_replicamanager_partitioncount", "kafka_server_replicamanager_leadercount",
    "kafka_controller_kafkacontroller_activecontrollercount", "kafka_controller_kafkacontroller_offlinepartitionscount",
    "kafka_server_brokertopicmetrics_messagesin_total", "kafka_server_brokertopicmetrics_bytesin_total",
    "kafka_server_brokertopicmetrics_bytesout_total", "kafka_log_log_size", "jvm_memory_used_bytes",
    "pg_up", "pg_exporter_last_scrape_error",
    "node_filesystem_avail_bytes", "node_filesystem_size_bytes", "node_cpu_seconds_total",
    "node_memory_MemAvailable_bytes",
    "up", "ALERTS",
}  # fmt: skip
# What in an expression is no metric, once label matchers, grouping, durations and strings are gone
KEYWORDS = {"by", "without", "on", "ignoring", "and", "or", "unless", "group_left", "group_right", "bool", "offset"}

promtool = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(promtool is None, reason="no promtool on the path (apt install prometheus)")


@functools.cache
def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in load(name)["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}
RECORDED = {rule["record"]: rule["expr"] for rule in rules("recording_rules.yml")}


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """Each with its dashboard's and panel's names."""
    for path in DASHBOARDS:
        board = json.loads(path.read_text(encoding="utf-8"))
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                yield f"{path.stem}: {panel['title']}", target["expr"]
        for annotation in board["annotations"]["list"]:
            yield f"{path.stem}: annotation", annotation["expr"]


def expressions() -> Iterator[tuple[str, str]]:
    yield from ((name, rule["expr"]) for name, rule in ALERTS.items())
    yield from RECORDED.items()
    yield from dashboard_expressions()


def metrics_of(expression: str) -> set[str]:
    """The names of the metrics that it selects."""
    text = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]', "", expression.replace('\\"', ""))
    text = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", text)
    names = re.findall(r"(?<![\w:])[A-Za-z_:][\w:]*+(?!\s*\()", text)
    return {name for name in names if name not in KEYWORDS}


def scripts_metrics() -> set[str]:
    """What /metrics of the consumer and the producer give, with the endings of counters and histograms."""
    found = set()
    for metric in vars(pipeline_metrics).values():
        if isinstance(metric, prometheus_client.metrics.MetricWrapperBase):
            endings = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
            found |= {metric.describe()[0].name + ending for ending in endings[metric.describe()[0].type]}
    return found


def queried_metrics() -> set[str]:
    """What the PostgreSQL exporter makes of the two files of queries: name and column, of the columns with a value."""
    return {
        f"{name}_{column}"
        for file in ("warehouse_queries.yml", "airflow_queries.yml")
        for name, query in load(file).items()
        for metric in query["metrics"]
        for column, options in metric.items()
        if options["usage"] != "LABEL"
    }


def test_names_are_found_in_expressions() -> None:
    text = 'sum by (topic) (rate(a_total{topic=~"b_c"}[5m])) / on (d) (a:b:c > 1e3) unless max_over_time(e[1h])'
    assert metrics_of(text) == {"a_total", "a:b:c", "e"}


def test_every_metric_is_told_by_somebody() -> None:
    told = scripts_metrics() | queried_metrics() | FOREIGN | set(RECORDED)
    assert {"consumer_records_stored_total", "consumer_commit_seconds_bucket", "warehouse_ledger_unbalanced"} <= told
    unknown = {where: names for where, text in expressions() if (names := metrics_of(text) - told)}
    assert unknown == {}


def test_what_is_recorded_is_used() -> None:
    used = {name for _, text in expressions() for name in metrics_of(text)}
    assert set(RECORDED) - used == set()


@pytest.mark.parametrize("file", ["warehouse_queries.yml", "airflow_queries.yml"])
def test_every_column_of_a_query_is_described(file: str) -> None:
    for name, query in load(file).items():
        assert query["master"] is True, name
        columns = [column for metric in query["metrics"] for column in metric]
        # the order does not matter to the exporter; one that is not asked for would never be told
        asked = [column for column in columns if re.search(rf"\b{column}\b", query["query"])]
        assert columns == asked, name
        for metric in query["metrics"]:
            for options in metric.values():
                assert set(options) == {"usage", "description"}
                assert options["usage"] in ("LABEL", "GAUGE", "COUNTER")


def anchors(document: str) -> set[str]:
    """GitHub's: lower case, without punctuation, a hyphen for each blank."""
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_is_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert alert["for"]
    assert alert["labels"] in ({"severity": "page"}, {"severity": "ticket"})
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    document, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == name.lower()
    assert anchor in anchors(document)


def test_every_paragraph_on_an_alert_has_its_alert() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", text, re.MULTILINE) == list(ALERTS)


def test_every_link_within_the_operations_leads_somewhere() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(#([\w-]+)\)", text))
    assert links
    assert links - anchors("docs/operations.md") == set()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_tried_both_ways(name: str) -> None:
    cases = [case for case in load("alerts_test.yml")["tests"] if name in case["name"]]
    fires = [
        any(sample["labels"] == f'{{alertname="{name}"}}' for sample in moment["exp_samples"])
        for case in cases
        for moment in case["promql_expr_test"]
        if 'alertstate="firing"' in moment["expr"]
    ]
    assert set(fires) == {True, False}


def run_promtool(*arguments: str | Path) -> str:
    assert promtool
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_the_rules_parse() -> None:
    said = run_promtool("check", "rules", FOLDER / "recording_rules.yml", FOLDER / "alerts.yml")
    assert f"{len(ALERTS)} rules found" in said


@needs_promtool
def test_the_cases_hold() -> None:
    run_promtool("test", "rules", FOLDER / "alerts_test.yml")


@needs_promtool
def test_the_dashboards_queries_parse(tmp_path: Path) -> None:
    asked = [{"record": f"panel:{number}", "expr": text} for number, (_, text) in enumerate(dashboard_expressions())]
    file = tmp_path / "dashboards.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": asked}]}))
    assert f"{len(asked)} rules found" in run_promtool("check", "rules", file)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_fit_to_be_provisioned(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    board = json.loads(text)
    assert text == json.dumps(board, indent=2, ensure_ascii=False) + "\n"
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    sources = {json.dumps(target["datasource"]) for panel in panels for target in [panel, *panel["targets"]]}
    [known] = load("grafana/datasources/prometheus.yml")["datasources"]
    assert sources == {json.dumps({"type": "prometheus", "uid": known["uid"]})}
    assert {panel["type"] for panel in panels} <= {"stat", "timeseries", "state-timeline", "table"}  # no plugins
    assert all(panel["title"] and panel["description"] for panel in panels)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_dashboards_have_names_of_their_own() -> None:
    boards = [json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS]
    assert len(boards) == 3
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == 3
