"""What the viewer has chosen: the time, the clock and the devices. All of it is in the URL, so a link reproduces it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import streamlit as st

from dashboard_url import choose, in_url, moment_in_url

LENGTHS = {"1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}
CUSTOM = "custom"
RANGES = {
    "1h": "Last hour",
    "24h": "Last 24 hours",
    "7d": "Last 7 days",
    "30d": "Last 30 days",
    CUSTOM: "Custom",
}
DEFAULT = "24h"
CLOCKS = {"utc": "UTC", "local": "Household's time"}
FILTERS = {"region": "Region", "device_type": "Device type", "model": "Model", "household": "Household"}
HOURLY_UP_TO = timedelta(days=7)  # a longer range is shown by the day
BY_DEVICE_AND_HOUR_UP_TO = timedelta(days=2)


@dataclass(frozen=True)
class View:
    """since, until: bounds of the range, aware of their time zone. Empty filters: the whole fleet."""

    name: str
    since: datetime
    until: datetime
    is_local: bool
    filters: dict[str, list[str]]

    @property
    def is_hourly(self) -> bool:
        return self.until - self.since <= HOURLY_UP_TO

    @property
    def is_by_day(self) -> bool:
        """Whether what is counted by device is counted in whole household's days: hours would be too many to add up."""
        return self.until - self.since > BY_DEVICE_AND_HOUR_UP_TO

    @property
    def label(self) -> str:
        """The range in a tile's title."""
        length = self.until - self.since
        hours = length / timedelta(hours=1)
        return f"{hours:.3g} h" if hours <= 48 else f"{hours / 24:.3g} d"

    @property
    def range_in_words(self) -> str:
        return "range chosen" if self.name == CUSTOM else RANGES[self.name].lower()

    @property
    def clock(self) -> str:
        return "household's time" if self.is_local else "UTC"

    def fleet(self) -> dict[str, Any]:
        """The parameters of `{fleet}`."""
        chosen = {kind: values or None for kind, values in self.filters.items()}
        return {
            "whole_fleet": not any(chosen.values()),
            "regions": chosen["region"],
            "device_types": chosen["device_type"],
            "models": chosen["model"],
            "households": chosen["household"],
        }

    def parameters(self) -> dict[str, Any]:
        """Those of `{fleet}` and `{bucket}`, since and until, and earlier: where the period before it began.

        The range is one of whole hours where it is longer than one, as the marts' rows are.
        """
        since = self.since if self.until - self.since <= timedelta(hours=1) else _hour(self.since)
        return {
            **self.fleet(),
            "local": self.is_local,
            "since": since,
            "until": self.until,
            "earlier": since - (self.until - since),
        }

    def shown(self, times: pd.Series, time_zones: Sequence[str] | pd.Series | str) -> pd.Series:
        """Times as text on the chosen clock. time_zones: of the household of each, or one for all."""
        zones = [time_zones] * len(times) if isinstance(time_zones, str) else list(time_zones)
        clock = [_zone(zone) if self.is_local else ZoneInfo("UTC") for zone in zones]
        texts = [
            None if pd.isna(at) else f"{at.astimezone(zone):%Y-%m-%d %H:%M:%S}"
            for at, zone in zip(times, clock, strict=True)
        ]
        return pd.Series(texts, index=times.index, dtype="object")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError):  # this machine's list may be older than the contract's
        return ZoneInfo("UTC")


def _hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def chosen() -> View | None:
    """What the controls say, whether they are shown yet or not; None where From is not before To."""
    name = st.session_state[in_url("range", DEFAULT, RANGES)]
    is_local = st.session_state[in_url("clock", "utc", CLOCKS)] == "local"
    filters = {kind: st.session_state[in_url(kind, [])] for kind in FILTERS}
    now = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)  # the same for a minute: cached
    if name != CUSTOM:
        return View(name, now - LENGTHS[name], now, is_local, filters)
    first, last = _custom_range()
    if first is None or last is None or first >= last:
        return None
    return View(name, first.replace(tzinfo=UTC), last.replace(tzinfo=UTC), is_local, filters)


def _custom_range() -> list[datetime | None]:
    today = _naive(datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0))
    bounds = {"from": today, "to": today + timedelta(days=1)}
    return [st.session_state[moment_in_url(key, otherwise)] for key, otherwise in bounds.items()]


def show_filters(view: View) -> None:
    """In words, where there are any, so that nobody takes a part for the whole."""
    if any(view.filters.values()):
        named = (f"{FILTERS[kind]}: {', '.join(values)}" for kind, values in view.filters.items() if values)
        line = st.container(horizontal=True, vertical_alignment="center")
        line.caption("Showing only " + " · ".join(named))
        line.button("Show all", type="tertiary", icon=":material/filter_alt_off:", on_click=clear_filters)


def show_controls(bar: Any, choices: pd.DataFrame) -> None:
    """Shows them in the container `bar`. To be called after `chosen`, which gives them their values.

    choices: columns kind (a key of FILTERS) and value.
    """
    name = bar.selectbox(
        "Range", list(RANGES), format_func=RANGES.__getitem__, key="range", width=160, persist_state="session",
        label_visibility="collapsed",
    )  # fmt: skip
    if name == CUSTOM:
        bar.datetime_input("From (UTC)", key="from", persist_state="session", width=190)
        bar.datetime_input("To (UTC)", key="to", persist_state="session", width=190)
    with bar.popover("Filters", icon=":material/filter_alt:"):
        for kind, label in FILTERS.items():
            options = list(choices.value[choices.kind == kind])
            # what a link names stays chosen, be it unknown here: it then shows nothing, and not everything
            st.multiselect(
                label, options, key=kind, persist_state="session", accept_new_options=True,
                placeholder=f"any of {len(options)}",
            )  # fmt: skip
    bar.segmented_control(
        "Time zone", list(CLOCKS), format_func=CLOCKS.__getitem__, key="clock", required=True, persist_state="session",
        label_visibility="collapsed",
    )  # fmt: skip


def _naive(at: datetime) -> datetime:
    return at.replace(tzinfo=None)


def clear_filters() -> None:
    choose(**{kind: [] for kind in FILTERS})


def narrow_to(**filters: str) -> None:
    """Sets filters as if the viewer had. To be called in a callback."""
    choose(**{kind: [value] for kind, value in filters.items()})


def narrow_range(since: datetime, until: datetime) -> None:
    choose(**{"range": CUSTOM, "from": _naive(since), "to": _naive(until)})
