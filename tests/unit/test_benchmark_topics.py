"""The benchmarks' topics hold what their tables say, and a lost row is seen."""

from __future__ import annotations

import sys
import time
from collections import Counter

import pytest

import pipeline_settings
from contracts import CONTRACTS, InvalidRecord

sys.path.append(str(pipeline_settings.ROOT / "benchmarks"))

from behaviour import Outcome, lost_rows
from preloaded_topic import LOADERS, TOPIC, Dataset, records

EVENTS = 400


def sent(dataset: Dataset) -> list[bytes]:
    return [value for seed in range(LOADERS) for _, value in records(dataset, EVENTS // LOADERS, seed)]


def is_valid(value: bytes) -> bool:
    try:
        CONTRACTS[TOPIC].decode(value, None, round(time.time() * 1000))
    except InvalidRecord:
        return False
    return True


@pytest.mark.parametrize("percent", [0, 1, 5, 10, 100])
@pytest.mark.parametrize("kind", ["duplicates", "poison", "cut"])
def test_a_topic_holds_its_share(kind: str, percent: float) -> None:
    dataset = Dataset(kind, percent)
    values = sent(dataset)
    assert len(values) == dataset.records(EVENTS)
    twice = sum(count - 1 for count in Counter(values).values())
    spoilt = sum(not is_valid(value) for value in values)
    marked = round(EVENTS * percent / 100)
    assert (twice, spoilt) == ((marked, 0) if kind == "duplicates" else (0, marked))
    assert dataset.marked(EVENTS) == marked


def test_a_row_is_lost_when_a_later_one_is_there() -> None:
    places = {"a": (0, 0), "b": (0, 1), "c": (0, 2), "d": (1, 0), "e": (1, 1)}
    assert lost_rows(places, {"a", "b", "c", "d", "e"}) == 0
    assert lost_rows(places, {"a"}) == 0  # the others are still to come
    assert lost_rows(places, {"c", "e"}) == 3
    assert lost_rows(places, set()) == 0


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Outcome(100, rows=100, kept=5), "right, 100 rows, 5 kept"),
        (Outcome(100, rows=100), "right, 100 rows, 5 gone"),
        (Outcome(100, ["no", "no"], rows=7), "stops, 7 of 100 rows"),
        (Outcome(100, ["no"], rows=90, lost=10, kept=5), "goes on, 90 of 100 rows, 10 lost, 5 kept"),
    ],
    ids=["all is kept", "dropped", "stops twice", "goes on after a restart"],
)
def test_the_table_tells(outcome: Outcome, told: str) -> None:
    assert outcome.told("poison", 5) == told
