"""The compose files as the tests read them: merged, their variables filled in with the defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parent.parent
KAFKA_FILE = "docker-compose.kafka.yml"
AIRFLOW_FILE = "docker-compose.airflow.yml"
FILES = [KAFKA_FILE, AIRFLOW_FILE]
SETTINGS = dotenv_values(ROOT / ".env.airflow")


def compose(file: str) -> dict[str, Any]:
    """The file as it is written, anchors and merge keys resolved."""
    content: dict[str, Any] = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return content


def filled_in(value: Any) -> Any:
    """What Compose makes of it with an empty environment: ${NAME:-default} is the default, $$ a dollar sign."""
    if isinstance(value, dict):
        return {name: filled_in(part) for name, part in value.items()}
    if isinstance(value, list):
        return [filled_in(part) for part in value]
    if isinstance(value, str):
        return re.sub(r"\$\$|\$\{\w+:-(.*?)\}", lambda found: "$" if found[0] == "$$" else found[1], value)
    return value


def services(file: str = KAFKA_FILE) -> dict[str, dict[str, Any]]:
    """By name, with all profiles' own."""
    found: dict[str, dict[str, Any]] = filled_in(compose(file)["services"])
    return found


def all_services() -> dict[str, dict[str, Any]]:
    return {name: service for file in FILES for name, service in services(file).items()}


def environment(service: dict[str, Any]) -> dict[str, str]:
    """The service's variables as its process sees them."""
    return {name: str(value) for name, value in service.get("environment", {}).items()}


def broker_properties(service: dict[str, Any]) -> dict[str, str]:
    """The variables that Kafka's image makes server.properties of, and how: `.` is _, `_` is __, `-` is ___."""
    not_a_property = {"KAFKA_HEAP_OPTS"}
    return {
        name.removeprefix("KAFKA_").lower().replace("_", ".").replace("...", "-").replace("..", "_"): value
        for name, value in environment(service).items()
        if name.startswith("KAFKA_") and name not in not_a_property
    }


def published_ports(service: dict[str, Any]) -> dict[int, int]:
    """Container's port by the host's."""
    pairs = [port.split(":")[-2:] for port in service.get("ports", [])]
    return {int(host): int(container) for host, container in pairs}
