"""What the benchmarks tell: the medians of their rounds, and the raw figures with the machine they are of."""

from __future__ import annotations

import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import psutil
from preloaded_topic import ROOT

RESULTS = Path(__file__).with_name("results")
Figures = dict[str, float]


def medians(rounds: list[Figures]) -> Figures:
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: statistics.median(figures[name] for figures in rounds if name in figures) for name in names}


def keep(raw: dict[str, Any], file: Path) -> Path:
    """Writes the raw figures; the file as one names it from here."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(raw, indent=1) + "\n")
    return file.relative_to(ROOT) if file.is_relative_to(ROOT) else file


def machine() -> dict[str, Any]:
    memory = psutil.virtual_memory().total / 2**30
    return {"cores": os.cpu_count(), "memory_gib": round(memory), "python": platform.python_version()}
