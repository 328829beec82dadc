"""Every rule against the simulator's ground truth, on one seeded fleet; benchmarks/detectors.py does it at length."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

import pipeline_settings
from simulator import Simulator

sys.path.append(str(pipeline_settings.ROOT / "benchmarks"))

from detectors import START, scores, store

HEALTH_INTERVAL = 30
ASKED = {"failed_burst": 0.99, "left_open": 0.99, "offline": 0.95, "silent": 0.95}


def test_the_rules_find_what_happened_to_the_fleet_and_nothing_else(
    dbt: Callable[..., Any], warehouse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTH_CHECK_INTERVAL", str(HEALTH_INTERVAL))
    simulator = Simulator(40, 3, 0.1, HEALTH_INTERVAL, "load", seed=2, start=START)
    sent = store(warehouse, simulator, START, 2 * 3600)
    assert dbt("build", "--selector", "models").success
    found = {score.rule: score for score in scores(warehouse, sent, HEALTH_INTERVAL)}
    for rule, asked in ASKED.items():
        score = found[rule]
        assert min(score.truths, score.detections) >= 10, score
        assert min(score.recall, score.precision) >= asked, score
    for rule in ("late", "duplicate", "dead"):
        assert min(found[rule].recall, found[rule].precision) >= 0.99, found[rule]
