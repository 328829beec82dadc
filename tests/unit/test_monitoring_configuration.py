"""What the settings make of the monitoring's files, and what its programs and containers say of them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_servers import ROOT, ServerError, kafka_agent
from local_servers.monitoring import FILES, PORTS, Monitoring, find_programs

EVERY_JOB = {*PORTS, "kafka", "kafka-lag"}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(setting for setting, _ in PORTS.values()), "ALERT_WEBHOOK_URL", "ALERT_WEBHOOK_URL_FILE"):
        monkeypatch.delenv(name, raising=False)


def monitoring(folder: Path, *kafka_ports: int) -> Monitoring:
    return Monitoring(folder, folder, kafka_ports)


def targets(configuration: dict[str, Any]) -> dict[str, list[str]]:
    return {scrape["job_name"]: scrape["static_configs"][0]["targets"] for scrape in configuration["scrape_configs"]}


def written(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FILES / name).read_text(encoding="utf-8"))
    return content


def test_without_settings_everything_is_where_the_file_says(tmp_path: Path) -> None:
    file = targets(written("prometheus.yml"))
    assert file.keys() == EVERY_JOB
    assert targets(monitoring(tmp_path, kafka_agent.DEFAULT_PORT).prometheus_configuration()) == {
        job: places for job, places in file.items() if job != "kafka-lag"
    }


def test_a_port_that_is_set_reaches_what_is_scraped_and_who_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERTMANAGER_PORT", "19095")
    monkeypatch.setenv("CONSUMER_METRICS_PORT", "19101")
    made = monitoring(tmp_path, 1, 2, 3).prometheus_configuration()
    assert targets(made)["consumer"] == ["127.0.0.1:19101"]
    assert targets(made)["alertmanager"] == ["127.0.0.1:19095"]
    assert targets(made)["kafka"] == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
    assert made["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": ["127.0.0.1:19095"]}]}]


def test_what_is_not_here_is_not_scraped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRODUCER_METRICS_PORT", "0")
    made = monitoring(tmp_path).prometheus_configuration()
    assert targets(made).keys() == EVERY_JOB - {"producer", "kafka", "kafka-lag"}


def test_the_rules_are_found_from_anywhere(tmp_path: Path) -> None:
    rules = monitoring(tmp_path).prometheus_configuration()["rule_files"]
    assert rules == [str(FILES / "recording_rules.yml"), str(FILES / "alerts.yml")]


@pytest.mark.parametrize("setting", ["PROMETHEUS_PORT", "WAREHOUSE_EXPORTER_PORT"])
def test_only_a_script_can_do_without_a_port(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(setting, "0")
    with pytest.raises(ServerError, match=f"{setting}=0 is not a port"):
        monitoring(tmp_path)


def test_nobody_gets_the_alerts_unless_somebody_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = monitoring(tmp_path)
    assert watch.alertmanager_configuration() == written("alertmanager.yml")
    address = tmp_path / "address"
    address.write_text("https://alerts.example/?token=secret\n")
    monkeypatch.setenv("ALERT_WEBHOOK_URL_FILE", str(address))
    [receiver] = watch.alertmanager_configuration()["receivers"]
    assert receiver["webhook_configs"] == [{"url": "https://alerts.example/?token=secret"}]


def test_what_is_not_installed_is_one_line_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prometheus", "alertmanager"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError) as refusal:
        find_programs()
    assert str(refusal.value) == (
        "not installed: node_exporter, postgres_exporter. Debian, Ubuntu: apt install --no-install-recommends"
        " prometheus-node-exporter prometheus-postgres-exporter"
    )


def test_a_port_in_use_names_its_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        watch = Monitoring(tmp_path, tmp_path, [], {"node": port})
        with pytest.raises(ServerError, match=f"port {port} is in use: set NODE_EXPORTER_PORT=<free port>"):
            watch._start("node", ["true"])


def alerts() -> set[str]:
    return {rule["alert"] for group in written("alerts.yml")["groups"] for rule in group["rules"] if "alert" in rule}


def named_in(matchers: list[str]) -> set[str]:
    """The alerts that alertname=… or alertname=~… of a rule names."""
    found = [re.fullmatch(r'alertname=~?"([\w|]+)"', matcher) for matcher in matchers]
    return {name for match in found if match for name in match[1].split("|")}


@pytest.mark.parametrize("rule", written("alertmanager.yml")["inhibit_rules"], ids=lambda rule: str(rule)[:60])
def test_an_alert_holds_back_others_that_exist_and_not_itself(rule: dict[str, Any]) -> None:
    sources, held_back = named_in(rule["source_matchers"]), named_in(rule["target_matchers"])
    assert sources
    assert held_back
    assert sources | held_back <= alerts()
    assert not sources & held_back


@pytest.mark.parametrize(
    ("program", "arguments"),
    [("promtool", ["check", "config", "prometheus.yml"]), ("amtool", ["check-config", "alertmanager.yml"])],
)
def test_its_own_tool_takes_the_file(program: str, arguments: list[str]) -> None:
    if not shutil.which(program):
        pytest.skip(f"no {program}: apt install prometheus prometheus-alertmanager")
    checked = subprocess.run([program, *arguments], cwd=FILES, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


# What the containers of the profile monitoring run


def in_a_container(
    shell: str, script: str, folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A script of docker/monitoring, with this folder for the container's own."""
    text = (ROOT / "docker/monitoring" / script).read_text(encoding="utf-8")
    text = text.replace("/monitoring/alert", f"{FILES}/alert").replace("/alertmanager/", f"{folder}/")
    (folder / script).write_text(text)
    environment["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    command = [shell, str(folder / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("address", ["", "https://alerts.example/a?token=secret&x=%20"])
def test_the_containers_alertmanager_is_told_what_the_one_without_docker_is(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERT_WEBHOOK_URL", address)
    started = in_a_container("sh", "alertmanager.sh", tmp_path, "echo", "--storage.path=x", ALERT_WEBHOOK_URL=address)
    assert started.stdout == f"--storage.path=x --config.file={tmp_path}/alertmanager.yml\n", started.stderr
    told = yaml.safe_load((tmp_path / "alertmanager.yml").read_text())
    assert told == monitoring(tmp_path).alertmanager_configuration()


MAVEN = """#!/bin/sh
mkdir new && printf agent > new/jmx_prometheus_javaagent.jar
"""


@pytest.mark.parametrize(("tested", "is_kept"), [("agent", True), ("another", False)])
def test_an_agent_that_is_not_the_tested_one_is_not_kept(tested: str, is_kept: bool, tmp_path: Path) -> None:
    agents, maven = tmp_path / "agents", tmp_path / "mvn"
    agents.mkdir()
    maven.write_text(MAVEN)
    maven.chmod(0o755)
    digest = hashlib.sha256(tested.encode()).hexdigest()
    done = in_a_container("bash", "kafka-agent.sh", tmp_path, str(agents), COORDINATES="a:b:1", SHA256=digest)
    assert (done.returncode == 0) == is_kept, done.stderr
    assert (agents / "jmx_prometheus_javaagent.jar").exists() == is_kept
