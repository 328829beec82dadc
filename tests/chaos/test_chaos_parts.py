"""What a run is made of, without a server: the plan, the numbered events, the journal, the summary."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from faults import AIRFLOW_FAULTS, KINDS, NOT_WITHIN, Planned, kinds_to_be_had, plan
from numbered_events import POISON, POISON_EVERY, is_poison, key, read_journal, topic, value
from run_summary import percentile
from stage import Stage

from contracts import CONTRACTS, InvalidRecord


def steps(seed: int, count: int = 400) -> list[list[Planned]]:
    return list(islice(plan(list(KINDS), seed), count))


def test_the_seed_alone_decides_the_plan() -> None:
    assert steps(1) == steps(1)
    assert steps(1) != steps(2)


def test_without_airflow_a_seed_gives_the_plan_that_it_always_gave() -> None:
    stage = SimpleNamespace(has_clocks=True, disk=True, proxy=True, models=None)
    kinds = kinds_to_be_had(cast(Stage, stage))
    assert kinds == [kind for kind in KINDS if kind not in AIRFLOW_FAULTS]
    first = [fault.kind for step in islice(plan(kinds, 2026), 6) for fault in step]
    assert first == [
        "PostgreSQL killed",
        "producer clock step",
        "producer stopped",
        "consumer stopped",
        "producer-Kafka cut",
        "producer killed",
    ]


def test_every_kind_comes_before_any_comes_again() -> None:
    kinds = [fault.kind for step in steps(3) for fault in step]
    for begin in range(0, len(kinds) - len(KINDS), len(KINDS)):
        assert set(kinds[begin : begin + len(KINDS)]) == set(KINDS)


def test_two_at_once_befall_different_things() -> None:
    pairs = [step for step in steps(4) if len(step) == 2]
    assert len(pairs) > 20
    for first, second in pairs:
        assert KINDS[first.kind].area != KINDS[second.kind].area
        assert second.kind not in NOT_WITHIN


def test_a_number_decides_whether_its_record_is_valid() -> None:
    now = int(time.time() * 1000)
    for number in range(1, 2 * POISON_EVERY * len(POISON) * 4):
        try:
            CONTRACTS[topic(number)].decode(value(number), key(number).encode(), now)
            valid = True
        except InvalidRecord:
            valid = False
        assert valid is not is_poison(number), number


def test_a_journal_counts_what_was_tried_and_passes_over_a_line_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.write_bytes(b"tried 1 2 3\nacknowledged 1 3\ntried 2 4\nacknowledged 2\ntried 44")
    tried, acknowledged = read_journal(file)
    assert tried == {1: 1, 2: 2, 3: 1, 4: 1}
    assert acknowledged == {1, 2, 3}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5), (0.95, 10), (1.0, 10), (0.1, 1)])
def test_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(10, 0, -1)], share) == expected
