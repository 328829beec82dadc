"""The households: how their devices are, how much their doors move and fail."""

from __future__ import annotations

import pandas as pd
import streamlit as st

import dashboard_parts as parts
from dashboard_parts import stored
from dashboard_url import go
from dashboard_view import View

HOUSEHOLDS = """
WITH devices AS (
    SELECT household_id, count(*) AS devices, count(*) FILTER (WHERE is_online) AS online,
           sum(open_anomalies)::bigint AS going_on,
           count(*) FILTER (WHERE battery_band IN ('empty', 'low')) AS batteries
    FROM marts.rpt_device_current
    WHERE household_id IS NOT NULL AND {fleet}
    GROUP BY household_id
),
access AS (
    SELECT current.household_id, sum(opens)::bigint AS opens, sum(fails)::bigint AS fails,
           sum(fails)::float8 / nullif(sum(opens + fails), 0)::float8 AS fail_rate,
           sum(left_open_minutes) AS left_open_minutes,
           {uptime} AS uptime
    FROM marts.fct_device_daily_summary AS days
    INNER JOIN marts.rpt_device_current AS current USING (device_id)
    WHERE local_date >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
      AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date AND {fleet}
    GROUP BY current.household_id
)
SELECT household_id, households.region, households.time_zone, devices.devices, online, going_on, batteries,
       coalesce(opens, 0) AS opens, coalesce(fails, 0) AS fails, fail_rate,
       coalesce(left_open_minutes, 0) AS left_open_minutes, uptime
FROM devices
LEFT JOIN marts.dim_households AS households USING (household_id)
LEFT JOIN access USING (household_id)
ORDER BY going_on DESC, fail_rate DESC NULLS LAST, household_id
"""

BY_REGION = """
SELECT coalesce(region, 'unknown') AS region, count(DISTINCT household_id) AS households, count(*) AS devices,
       count(*) FILTER (WHERE is_online) AS online, sum(open_anomalies)::bigint AS going_on
FROM marts.rpt_device_current
WHERE {fleet}
GROUP BY 1
ORDER BY 1
"""


def show(view: View) -> None:
    found = stored(HOUSEHOLDS, **view.parameters())
    if found.empty:
        st.info("**No household** fits these filters. Clear them, or wait for dbt's next run if the fleet is new.")
        return
    with parts.tiles():
        parts.tile("Households", f"{len(found):,}")
        parts.tile("With an anomaly going on", f"{(found.going_on > 0).sum():,}")
        parts.tile("With a device offline", f"{(found.online < found.devices).sum():,}", help="As of dbt's last run")
        parts.tile("With a low battery", f"{(found.batteries > 0).sum():,}")

    st.markdown(f"**Households**, whole days of the {view.range_in_words}")
    parts.show_table(
        found, "households", "", parts.open_household, height=420,
        household_id="Household", region="Region", time_zone="Time zone", devices=parts.number("Devices"),
        online=parts.number("Online"), going_on=parts.number("Anomalies going on"),
        batteries=parts.number("Low batteries"), opens=parts.number("Opens"), fails=parts.number("Fails"),
        fail_rate=parts.share("Fail rate"), left_open_minutes=parts.number("Minutes left open", "%.0f"),
        uptime=parts.share("Uptime"),
    )  # fmt: skip
    st.markdown("**By region**")
    parts.show_table(
        stored(BY_REGION, **view.fleet()), "regions", "", open_region,
        region="Region", households=parts.number("Households"),
        devices=parts.number("Devices"), online=parts.number("Online"), going_on=parts.number("Anomalies going on"),
    )  # fmt: skip


def open_region(row: pd.Series) -> None:
    """Its devices."""
    go("dashboard_pages/devices.py", region=[row.region])


show(st.session_state["view"])
