"""Words for numbers: ages, shares, changes, and what a rule of fct_anomalies saw."""

from __future__ import annotations

from typing import Any

import pandas as pd

RULES = {  # of fct_anomalies
    "failed_burst": "failed burst",
    "left_open": "left open",
    "silent": "silent",
    "flapping": "flapping",
    "battery_cliff": "battery cliff",
    "unusual_hour": "unusual hour",
}


def age(seconds: float) -> str:
    """45 s, 12 min, 5 h or 3 d."""
    for unit, size, up_to in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if abs(seconds) < up_to:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def moment(at: pd.Timestamp, now: pd.Timestamp) -> str:
    return f"{at:%H:%M:%S} UTC" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def percent(share: Any, digits: int = 1) -> str:
    """– where there is nothing that it would be a share of."""
    return "–" if pd.isna(share) else f"{share:.{digits}%}"


def points(now: Any, before: Any) -> str | None:
    """The change of a share in percentage points."""
    return None if pd.isna(now) or pd.isna(before) else f"{100 * (now - before):+.2f} points"


def change(now: float, before: float) -> str | None:
    """The change of a number in percent of what it was; None if that was nothing."""
    return f"{(now - before) / before:+.1%}" if before else None


def evidence_in_words(rule: str, evidence: dict[str, Any]) -> str:
    """The numbers that a rule of fct_anomalies looked at, as a phrase."""
    if rule == "failed_burst":
        return f"{evidence['fails']} failures in {age(float(evidence['seconds']))}"
    if rule == "unusual_hour":
        return f"{evidence['opens']} opens; of {evidence['opens_before']} in 28 days none at that time"
    if rule == "flapping":
        return f"{evidence['changes']} changes in {evidence['reports']} reports"
    if rule == "battery_cliff":
        return f"from {evidence['from_pct']:.0f} % to {evidence['to_pct']:.0f} %"
    if rule == "silent":
        return f"{evidence['cause'].replace('_', ' ')}, for {age(evidence['seconds'])}"
    return f"open for {age(evidence['seconds'])}, {evidence['status'].replace('_', ' ')}"
