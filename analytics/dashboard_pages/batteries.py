"""Which batteries to change, and when: a work list."""

from __future__ import annotations

import altair as alt
import pandas as pd
import streamlit as st

import dashboard_parts as parts
from dashboard_parts import stored
from dashboard_url import go, in_url
from dashboard_view import View, narrow_to

BANDS = ["empty", "low", "within_7_days", "within_14_days", "within_30_days", "later", "unknown"]

# days_to_* count from the newest reading: what has passed since then is taken off.
WORK_LIST = """
SELECT forecast.device_id, devices.household_id, devices.device_type, devices.model, devices.region,
       forecast.band, forecast.battery_pct, forecast.drain_pct_per_day,
       greatest(0, forecast.days_to_low - passed.days) AS days_to_low,
       greatest(0, forecast.days_to_empty - passed.days) AS days_to_empty,
       forecast.last_read_on, forecast.replaced_on, devices.is_online
FROM (SELECT * FROM marts.fct_battery_forecast WHERE {fleet}) AS forecast
LEFT JOIN marts.rpt_device_current AS devices USING (device_id),
LATERAL (SELECT (now() AT TIME ZONE 'UTC')::date - forecast.last_read_on AS days) AS passed
WHERE forecast.band = ANY(%(bands)s::text[])
ORDER BY days_to_empty NULLS LAST, battery_pct, device_id
"""

BY_BAND = """
SELECT band, count(*) AS devices FROM marts.fct_battery_forecast WHERE {fleet} GROUP BY band
"""

BY_TYPE = """
SELECT coalesce(device_type, 'unknown') AS device_type, count(*) AS devices,
       min(forecast.battery_pct) AS lowest,
       percentile_cont(0.25) WITHIN GROUP (ORDER BY forecast.battery_pct) AS lower_quartile,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY forecast.battery_pct) AS median,
       percentile_cont(0.75) WITHIN GROUP (ORDER BY forecast.battery_pct) AS upper_quartile,
       max(forecast.battery_pct) AS highest,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY drain_pct_per_day) AS drain_pct_per_day
FROM (SELECT * FROM marts.fct_battery_forecast WHERE {fleet}) AS forecast
LEFT JOIN marts.rpt_device_current USING (device_id)
GROUP BY 1
ORDER BY 1
"""

URGENT = BANDS[:5]  # up to within_30_days


def in_words(band: str) -> str:
    return band.replace("_", " ")


def show(view: View) -> None:
    by_band = stored(BY_BAND, **view.fleet())
    if by_band.empty:
        st.info("**No battery reading** of these devices yet. Devices on the mains have none.")
        return
    counts = by_band.set_index("band").devices
    with parts.tiles():
        for band in BANDS:
            parts.tile(in_words(band).capitalize(), f"{counts.get(band, 0):,}")

    bands = st.pills("Bands", BANDS, selection_mode="multi", format_func=in_words, key=in_url("band", URGENT, BANDS))
    st.markdown("**Work list**, by days to empty")
    found = stored(WORK_LIST, bands=bands or BANDS, **view.fleet())
    found["what"] = found.band.map(in_words)
    parts.show_table(
        found, "batteries", "No battery in these bands: nothing to change.", parts.open_device, height=420,
        device_id="Device", what="Band", battery_pct=parts.number("Charge, %", "%.0f"),
        days_to_low=parts.number("Days to low", "%.0f"), days_to_empty=parts.number("Days to empty", "%.0f"),
        drain_pct_per_day=parts.number("Points a day", "%.2f"), household_id="Household", device_type="Type",
        model="Model", region="Region", last_read_on="Last read", replaced_on="Replaced",
        is_online="Online",
    )  # fmt: skip
    show_by_type(view)


def open_type(row: pd.Series) -> None:
    """Its devices."""
    go("dashboard_pages/devices.py", device_type=[row.device_type])


def show_by_type(view: View) -> None:
    st.markdown("**Charge by device type**")
    found = stored(BY_TYPE, **view.fleet())
    base = alt.Chart(found).encode(y=alt.Y("device_type:N", title=None))
    charge = alt.Scale(domain=[0, 100])
    whiskers = base.mark_rule(aria=False).encode(x=alt.X("lowest:Q", title="charge, %", scale=charge), x2="highest:Q")
    box = base.mark_bar(height=18).encode(
        x=alt.X("lower_quartile:Q", scale=charge), x2="upper_quartile:Q",
        tooltip=["device_type", "devices", *(alt.Tooltip(f"{name}:Q", format=".0f") for name in
                 ("lowest", "lower_quartile", "median", "upper_quartile", "highest"))],
    )  # fmt: skip
    middle = base.mark_tick(aria=False, color="white", thickness=2, size=18).encode(x=alt.X("median:Q", scale=charge))
    parts.on_click(
        (whiskers + box + middle).properties(height=alt.Step(34)), ["device_type"], "charge",
        "Charge by device type: range, quartiles and median", lambda mark: narrow_to(device_type=mark["device_type"]),
    )  # fmt: skip
    parts.show_table(
        found, "batteries by type", "", open_type, device_type="Type", devices=parts.number("Devices"),
        lowest=parts.number("Lowest, %", "%.0f"), median=parts.number("Median, %", "%.0f"),
        highest=parts.number("Highest, %", "%.0f"), drain_pct_per_day=parts.number("Points a day, median", "%.2f"),
    )  # fmt: skip


show(st.session_state["view"])
