"""The documents mention everything that a person may set, call, query or watch, and no metric or setting that is gone.

Each test collects all that is missing into one message.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import prometheus_client
import pytest

import pipeline_metrics
from contracts import CONTRACTS
from pipeline_settings import POSTGRES_DEFAULTS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted(
    path
    for folder in ("streaming", "local_servers", "recovery")
    for path in (ROOT / folder).glob("*.py")
    if "def parse_arguments" in path.read_text(encoding="utf-8")
)
CODE = sorted(
    path
    for folder in ("streaming", "local_servers", "recovery", "analytics", "airflow/dags")
    for path in (ROOT / folder).glob("*.py")
)
READS_A_SETTING = {"option", "get", "getenv", "env_var", "port_setting", "page_port", "secret", "may_be_replaced"}
OF_THE_SYSTEM = {"PATH"}  # handed on to children, no setting of ours
SETTING = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*")


def documents() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)


def assert_mentioned(names: set[str], what: str) -> None:
    text = documents()
    # a whole word: --max is not mentioned by --max-events
    missing = sorted(name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text))
    assert not missing, f"{len(missing)} of {len(names)} {what} in neither README.md nor docs/: " + ", ".join(missing)


class _Built(Exception):
    """Carries the parser out of a script that was about to parse."""


def parser_of(script: Path) -> argparse.ArgumentParser:
    def stop(self: argparse.ArgumentParser, *_: object) -> None:
        raise _Built(self)

    folder, name = script.parent.name, script.stem
    module = importlib.import_module(name if folder == "streaming" else f"{folder}.{name}")
    with patch.object(argparse.ArgumentParser, "parse_args", stop), pytest.raises(_Built) as built:
        module.parse_arguments()
    parser: argparse.ArgumentParser = built.value.args[0]
    return parser


def words_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every long option, and every command with its own."""
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--") and option != "--help")
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield name
                yield from words_of(command)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_option_is_documented(script: Path) -> None:
    words = set(words_of(parser_of(script)))
    assert words
    assert_mentioned(words, f"options of {script.name}")


def settings_read_in(code: str) -> Iterator[str]:
    """Names of environment variables among the arguments of what reads them."""
    for node in ast.walk(ast.parse(code)):
        texts: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = node.args[:3] if name.lstrip("_") in READS_A_SETTING else []
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            texts = [node.slice]
        elif isinstance(node, ast.Constant) and str(node.value).endswith("_PORT"):
            texts = [node]  # the pages' ports stand in a table first
        for text in texts:
            if isinstance(text, ast.Constant) and isinstance(text.value, str) and SETTING.fullmatch(text.value):
                yield text.value
                if isinstance(node, ast.Call) and name == "secret":
                    yield f"{text.value}_FILE"


def all_settings() -> set[str]:
    profiles = (ROOT / "dbt/profiles.yml").read_text(encoding="utf-8")
    found = {name for path in CODE for name in settings_read_in(path.read_text(encoding="utf-8"))}
    levels = {"DEBUG", "INFO", "WARNING", "ERROR"}  # defaults, not names
    return (found | set(POSTGRES_DEFAULTS) | set(re.findall(r"env_var\('(\w+)'", profiles))) - OF_THE_SYSTEM - levels


def test_every_environment_variable_is_documented() -> None:
    found = all_settings()
    known = {"KAFKA_BOOTSTRAP_SERVERS", "PGPASSWORD", "BATCH_SIZE", "KAFKA_FAST_DECODER", "STACK_DIR", "KAFKA_UI_PORT"}
    assert known <= found
    assert_mentioned(found, "environment variables")


def test_every_setting_in_the_readmes_table_exists() -> None:
    rows = re.findall(r"^\| (`[A-Z`_ ]+`) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(SETTING, row)}
    assert len(named) > 10
    assert named - all_settings() == set()


def metric_names() -> set[str]:
    kinds = (prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram)
    metrics = [value for value in vars(pipeline_metrics).values() if isinstance(value, kinds)]
    return {
        metric.describe()[0].name + ("_total" if isinstance(metric, prometheus_client.Counter) else "")
        for metric in metrics
    }


def test_every_metric_is_documented() -> None:
    assert len(metric_names()) > 15
    assert_mentioned(metric_names(), "metrics")


def test_every_metric_in_the_documents_exists() -> None:
    named = set(re.findall(r"`((?:consumer|producer)_[a-z_]+)[`{]", documents()))
    assert named
    assert named - metric_names() == set()


def test_every_table_and_view_is_documented() -> None:
    schema = (ROOT / "streaming/sql/schema.sql").read_text(encoding="utf-8")
    found = set(re.findall(r"CREATE (?:TABLE|VIEW|OR REPLACE VIEW)(?: IF NOT EXISTS)? (\w+)", schema))
    assert {"raw_access_events", "ingest_ledger", "dead_letters"} <= found
    assert_mentioned(found, "tables and views")


def test_every_topic_is_documented() -> None:
    assert_mentioned(set(CONTRACTS), "topics")


def test_every_field_of_a_topic_is_documented() -> None:
    assert_mentioned({name for contract in CONTRACTS.values() for name in contract.columns}, "fields")


def test_every_reason_of_a_dead_letter_is_documented() -> None:
    modules = ("contracts", "csv_records", "row_store")
    code = "".join((ROOT / f"streaming/{name}.py").read_text(encoding="utf-8") for name in modules)
    found = set(re.findall(r'InvalidRecord\("(\w+)"|record, "(\w+)", detail', code))
    reasons = {reason for pair in found for reason in pair if reason}
    assert {"bad_json", "bad_csv", "time_in_future", "refused_by_database"} <= reasons
    assert_mentioned(reasons, "reasons of dead letters")


def test_every_fate_of_a_dead_letter_is_documented() -> None:
    schema = (ROOT / "streaming/sql/schema.sql").read_text(encoding="utf-8")
    [fates] = re.findall(r"CHECK \(fate IN \((.*?)\)\)", schema)
    assert_mentioned(set(re.findall(r"\w+", fates)), "fates")
