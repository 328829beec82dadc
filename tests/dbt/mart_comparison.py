"""The marts as they are, and in what they differ from what they should be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from recomputation import KEYS, Row, read


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
