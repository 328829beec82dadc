"""Every mart, run after run, against the real PostgreSQL: always what its definition says of all the raw rows.

The definitions are computed once more in Python (recomputation.py). A history that once found a fault stays, under
FOUND_FAULTS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import random_history
from recomputation import KEYS, Marts, Row, read, read_inputs

Dbt = Callable[..., Any]

FLEETS = 4  # in one database, as a run costs the same for one
FOUND_FAULTS: list[tuple[int, ...]] = []
HISTORIES = [*[tuple(range(first, first + FLEETS)) for first in range(0, 24, FLEETS)], *FOUND_FAULTS]


def run(dbt: Dbt, *arguments: str) -> None:
    result = dbt("build", "--selector", "models", *arguments)
    assert result.success, result.exception or [each.message for each in result.result if each.status == "error"]


def mart_rows(warehouse: Any) -> dict[str, list[Row]]:
    return {
        mart: read(warehouse, f"SELECT * FROM marts.{mart} ORDER BY {', '.join(key)}")  # noqa: S608
        for mart, key in KEYS.items()
    }


def same(actual: Any, expected: Any) -> bool:
    """Equal; numbers with a fraction nearly so, as two roads to one of them may round differently."""
    if isinstance(expected, float) and isinstance(actual, float | int):
        return math.isclose(actual, expected, rel_tol=1e-9, abs_tol=1e-6)
    if isinstance(expected, dict) and isinstance(actual, dict):
        return actual.keys() == expected.keys() and all(same(actual[name], expected[name]) for name in expected)
    return bool(actual == expected)


def faults(mart: str, actual_rows: list[Row], expected_rows: list[Row]) -> Iterable[str]:
    actual, expected = (
        {tuple(row[name] for name in KEYS[mart]): row for row in rows} for rows in (actual_rows, expected_rows)
    )
    assert len(expected) == len(expected_rows), f"{mart}: the recomputation has two rows of one key"
    for key in sorted(actual.keys() | expected.keys(), key=str):
        name = f"{mart} {' '.join(map(str, key))}"
        if key not in actual:
            yield f"{name} is missing: {expected[key]}"
        elif key not in expected:
            yield f"{name} should not be there: {actual[key]}"
        elif list(actual[key]) != list(expected[key]):
            yield f"{name} has the columns {list(actual[key])}, defined are {list(expected[key])}"
        elif wrong := [column for column in expected[key] if not same(actual[key][column], expected[key][column])]:
            yield f"{name} differs in {wrong}:\n  it is  {actual[key]}\n  not    {expected[key]}"


def assert_marts_are_right(warehouse: Any) -> Marts:
    """Compares every mart with its recomputation, which is returned."""
    expected = Marts(read_inputs(warehouse))
    found = [
        fault for mart, rows in mart_rows(warehouse).items() for fault in list(faults(mart, rows, expected[mart]))[:4]
    ]
    assert not found, "\n".join(found)
    return expected


def forget_when_the_registry_was_noticed(warehouse: Any) -> None:
    """The tests' arrivals are simulated and lie in the past, but noticed_at is the present: it would have every row of
    a device that the registry knows made anew, at every run."""
    with warehouse.cursor() as cursor:
        for table in ("devices_history", "households_history"):
            cursor.execute(f"UPDATE snapshots.{table} SET noticed_at = '2000-01-01'")  # noqa: S608


def sentence(seeds: tuple[int, ...]) -> str:
    return f"histories {seeds[0]} to {seeds[-1]}, the registry {'changing' if is_restless(seeds) else 'quiet'}"


def is_restless(seeds: tuple[int, ...]) -> bool:
    return seeds[0] // FLEETS % 2 == 1


@pytest.mark.parametrize("seeds", HISTORIES, ids=sentence)
def test_after_every_slice_of_random_histories_every_mart_is_what_its_definition_says(
    seeds: tuple[int, ...], dbt: Dbt, warehouse: Any
) -> None:
    slices = random_history.histories(seeds, is_restless(seeds))
    for number, part in enumerate(slices, start=1):
        part.store(warehouse)
        run(dbt)
        assert_marts_are_right(warehouse)
        if not is_restless(seeds) and number < len(slices):
            forget_when_the_registry_was_noticed(warehouse)
    incremental = mart_rows(warehouse)
    run(dbt, "--full-refresh")
    refreshed = mart_rows(warehouse)
    for mart, rows in refreshed.items():
        assert rows == incremental[mart], mart
