"""What the pages are made of, where it computes: a door's states, evidence in words, words for numbers."""

from __future__ import annotations

import pandas as pd
import pytest

from dashboard_doors import spans_of_states
from dashboard_words import age, evidence_in_words, points


def at(minute: int) -> pd.Timestamp:
    return pd.Timestamp("2026-03-01T12:00Z") + pd.Timedelta(minutes=minute)


OBSERVED = ("observed", 0, 60)
DOORS = {
    "nothing is known": ([], []),
    "never opened": ([OBSERVED], [("closed", 0, 60)]),
    "opened once": ([OBSERVED, ("open", 10, 20)], [("closed", 0, 10), ("open", 10, 20), ("closed", 20, 60)]),
    "open throughout": ([OBSERVED, ("open", 0, 60)], [("open", 0, 60)]),
    "silent while open": (
        [OBSERVED, ("open", 10, 40), ("offline", 20, 50)],
        [("closed", 0, 10), ("open", 10, 20), ("offline", 20, 50), ("closed", 50, 60)],
    ),
    "heard of late": ([("offline", 0, 30), ("observed", 40, 60)], [("offline", 0, 30), ("closed", 40, 60)]),
    "swept, but for a pinned opening": (
        [OBSERVED, ("swept", 10, 50), ("open", 30, 40)],
        [("closed", 0, 10), ("open", 30, 40), ("closed", 50, 60)],
    ),
    "opened twice in a row": (
        [OBSERVED, ("open", 10, 20), ("open", 20, 30)],
        [("closed", 0, 10), ("open", 10, 30), ("closed", 30, 60)],
    ),
}


def table(spans: list[tuple[str, int, int]]) -> pd.DataFrame:
    rows = [(state, at(since), at(until)) for state, since, until in spans]
    return pd.DataFrame(rows, columns=["state", "since", "until"])


@pytest.mark.parametrize(("layers", "shown"), DOORS.values(), ids=DOORS)
def test_a_doors_states_follow_each_other_and_a_silent_door_is_neither(
    layers: list[tuple[str, int, int]], shown: list[tuple[str, int, int]]
) -> None:
    assert spans_of_states(table(layers)).to_dict("records") == table(shown).to_dict("records")


@pytest.mark.parametrize(
    ("rule", "evidence", "words"),
    [
        ("failed_burst", {"fails": 7, "seconds": 62.0}, "7 failures in 62 s"),
        ("unusual_hour", {"opens": 1, "opens_before": 80}, "1 opens; of 80 in 28 days none at that time"),
        ("flapping", {"changes": 6, "reports": 20}, "6 changes in 20 reports"),
        ("battery_cliff", {"from_pct": 80.4, "to_pct": 61.2}, "from 80 % to 61 %"),
        ("silent", {"cause": "no_report", "seconds": 7200.0}, "no report, for 2 h"),
        ("left_open", {"seconds": 1260.0, "status": "still_open"}, "open for 21 min, still open"),
    ],
)
def test_evidence_in_words(rule: str, evidence: dict[str, float], words: str) -> None:
    assert evidence_in_words(rule, evidence) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d"), (-3, "-3 s")]
)
def test_an_age_in_words(seconds: float, words: str) -> None:
    assert age(seconds) == words


@pytest.mark.parametrize(
    ("now", "before", "words"), [(0.031, 0.030, "+0.10 points"), (0.0, None, None), (None, 0.1, None)]
)
def test_a_change_in_points(now: float | None, before: float | None, words: str | None) -> None:
    assert points(now, before) == words
