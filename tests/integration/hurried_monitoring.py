"""The monitoring as it is, in a hurry: everything is scraped and tried each second, and alerts are sent at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from local_servers.monitoring import Monitoring


class HurriedMonitoring(Monitoring):
    def prometheus_configuration(self) -> dict[str, Any]:
        configuration = super().prometheus_configuration()
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for scrape in configuration["scrape_configs"]:
            scrape["scrape_interval"] = "1s"
        return configuration

    def alertmanager_configuration(self) -> dict[str, Any]:
        configuration = super().alertmanager_configuration()
        for route in (configuration["route"], *configuration["route"]["routes"]):
            route["group_wait"] = "1s"
        return configuration


def wait_for(condition: Callable[[], Any], what: Callable[[], object], timeout: float = 60) -> None:
    """Until the condition holds; `what` says what was there instead."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)
