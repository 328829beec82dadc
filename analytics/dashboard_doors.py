"""What a door was at each moment: open, closed or, while its device is offline, not known."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd

# The first of these that holds is shown. Of what retention has removed nothing is known
LAYERS = {"offline": "offline", "open": "open", "swept": None, "observed": "closed"}


def spans_of_states(found: pd.DataFrame) -> pd.DataFrame:
    """Spans that follow each other: offline hides what the door did, open lies over closed.

    found: state (open, offline, swept, observed), since, until; spans of a state may touch others. Returns the same
    columns with the states open, closed and offline.
    """
    cuts = sorted({*found.since, *found.until})
    spans: list[dict[str, Any]] = []
    for since, until in itertools.pairwise(cuts):
        over = set(found.state[(found.since <= since) & (found.until >= until)])
        state = next((shown for layer, shown in LAYERS.items() if layer in over), None)
        if state and spans and spans[-1]["state"] == state and spans[-1]["until"] == since:
            spans[-1]["until"] = until
        elif state:
            spans.append({"state": state, "since": since, "until": until})
    return pd.DataFrame(spans, columns=["state", "since", "until"])
