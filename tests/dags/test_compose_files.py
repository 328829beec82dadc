"""The compose files and the image agree with what the scripts use: topics, tables, DAG, settings, versions."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

import topics
from contracts import CONTRACTS
from pipeline_settings import POSTGRES_DEFAULTS, ROOT

FILES = ["docker-compose.kafka.yml", "docker-compose.airflow.yml"]


def compose(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def services() -> dict[str, dict[str, Any]]:
    return {name: service for file in FILES for name, service in compose(file)["services"].items()}


def test_the_topics_are_made_as_the_scripts_make_them() -> None:
    script = services()["create-topics"]["command"][-1]
    made = dict(re.findall(r"create (smart-access\.\S+) (.*)", script))
    assert made == {
        topic: "--config cleanup.policy=compact"
        if contract.compacted
        else f"--config cleanup.policy=delete --config retention.ms={topics.RETENTION_MS}"
        for topic, contract in CONTRACTS.items()
    }


@pytest.mark.parametrize("file", FILES)
def test_every_image_has_a_version_and_every_port_is_on_loopback(file: str) -> None:
    for service in compose(file)["services"].values():
        assert re.search(r":v?\d+(\.\d+)*$", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("file", FILES)
def test_what_is_waited_for_exists_and_can_become_what_is_waited_for(file: str) -> None:
    known = compose(file)["services"]
    for service in known.values():
        for name, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in known[name]


def test_every_folder_and_volume_that_is_mounted_exists() -> None:
    for file in FILES:
        volumes = compose(file)["volumes"]
        for service in compose(file)["services"].values():
            for mount in service.get("volumes", []):
                source = mount.split(":")[0]
                assert (ROOT / source).exists() if source.startswith(".") else source in volumes


def test_airflow_reaches_the_other_files_warehouse_over_the_shared_network() -> None:
    settings = dotenv_values(ROOT / ".env.airflow")
    warehouse = compose("docker-compose.kafka.yml")
    assert settings["PGHOST"] in warehouse["services"]
    assert {name: settings[name] for name in POSTGRES_DEFAULTS} == POSTGRES_DEFAULTS | {"PGHOST": settings["PGHOST"]}
    assert warehouse["networks"]["default"]["name"] == compose(FILES[1])["networks"]["default"]["name"]
    assert settings["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://airflow-api-server:8080/execution/"
    assert "airflow-api-server" in services()


def test_the_image_has_the_versions_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    image = (ROOT / "airflow/Dockerfile").read_text()
    pins = re.findall(r"[\w-]+==[\w.]+", image)
    assert len(pins) == 5
    for pin in pins:
        assert re.search(rf"^{re.escape(pin)} ", lock, re.MULTILINE), pin
    (base,) = re.findall(r"^FROM apache/airflow:(\S+)$", image, re.MULTILINE)
    assert f"apache-airflow=={base}" in pins
    assert services()["airflow-scheduler"]["image"].endswith(f":{base}")
