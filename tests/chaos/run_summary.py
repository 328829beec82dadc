"""What a run's lines come to: recovery by kind of fault, memory by process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from statistics import linear_regression
from typing import Any

from rich.table import Table

WARM_AFTER_S = 60.0
ENOUGH = 3  # samples


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def recovery(lines: list[dict[str, Any]]) -> Table:
    """One row a kind; two faults at once are a kind of their own."""
    title = "seconds from a fault's end until a row is stored, and until all is"
    return _times(lines, {"first_s": "a row", "all_s": "all"}, title)


def models(lines: list[dict[str, Any]]) -> Table:
    title = "seconds from a fault's end until a run of the models that began after it has succeeded"
    return _times([line for line in lines if "models_s" in line], {"models_s": "models"}, title)


def _times(lines: list[dict[str, Any]], whats: dict[str, str], title: str) -> Table:
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if "fault" in line:
            by_kind["two at once" if len(line["fault"]) > 1 else line["fault"][0]].append(line)
    names = [f"{name}, {share}" for name in whats.values() for share in ("median", "p95", "max")]
    table = Table("fault", "count", *names, title=title)
    for kind, found in sorted(by_kind.items()):
        cells = [
            f"{percentile([line[what] for line in found], share):.2f}" for what in whats for share in (0.5, 0.95, 1.0)
        ]
        table.add_row(kind, str(len(found)), *cells)
    return table


def memory(lines: list[dict[str, Any]]) -> Table:
    """Of each process the life that was the longest: a restart would hide what grows."""
    table = Table("process", "life, s", "start MB", "end MB", "MB/h", title="memory of the longest-lived, once warm")
    for name, samples in sorted(_longest_lives(lines)):
        seconds, megabytes = [at for at, _ in samples], [held for _, held in samples]
        slope = "–"
        if len(samples) >= ENOUGH:
            slope = f"{linear_regression(seconds, megabytes).slope * 3600:+.1f}"
        table.add_row(name, f"{seconds[-1] - seconds[0]:.0f}", f"{megabytes[0]:.0f}", f"{megabytes[-1]:.0f}", slope)
    return table


def _longest_lives(lines: list[dict[str, Any]]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    lives: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        for name, (pid, megabytes) in line.get("memory", {}).items():
            lives[name, pid].append((line["at_s"], megabytes))
    for name in sorted({name for name, _ in lives}):
        of_this = [life for (owner, _), life in lives.items() if owner == name]
        longest = max(of_this, key=lambda life: life[-1][0] - life[0][0])
        warm = [sample for sample in longest if sample[0] - longest[0][0] >= WARM_AFTER_S]
        yield name, warm if len(warm) >= ENOUGH else longest
