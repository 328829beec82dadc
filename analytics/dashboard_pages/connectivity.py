"""Who is reachable: uptime, completeness of the health reports, signal."""

from __future__ import annotations

import altair as alt
import streamlit as st

import dashboard_parts as parts
from dashboard_parts import age, stored
from dashboard_view import View

BAND_COLOURS = {
    "excellent": "#1d4ed8",
    "good": "#3b82f6",
    "fair": "#ca8a04",
    "weak": "#ea580c",
    "unusable": "#b91c1c",
}

TOTALS = """
SELECT local_date >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date AS is_now,
       1 - sum(offline_minutes) / nullif(sum(observed_minutes), 0) AS uptime,
       sum(completeness * observed_minutes) / nullif(sum(observed_minutes) FILTER (WHERE completeness IS NOT NULL), 0)
           AS completeness
FROM marts.fct_device_daily_summary
WHERE local_date >= (%(earlier)s::timestamptz AT TIME ZONE 'UTC')::date
  AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date AND {fleet}
GROUP BY 1
"""

# A day without a row is one of which nothing is known: the lines have a gap there.
DAYS = """
WITH days AS (
    SELECT local_date, 1 - sum(offline_minutes) / nullif(sum(observed_minutes), 0) AS uptime,
           sum(completeness * observed_minutes)
           / nullif(sum(observed_minutes) FILTER (WHERE completeness IS NOT NULL), 0) AS completeness
    FROM marts.fct_device_daily_summary
    WHERE local_date > (%(until)s::timestamptz AT TIME ZONE 'UTC')::date - 30
      AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date AND {fleet}
    GROUP BY local_date
)
SELECT bucket, uptime, completeness
FROM generate_series((%(until)s::timestamptz AT TIME ZONE 'UTC')::date::timestamp - interval '29 days',
                     (%(until)s::timestamptz AT TIME ZONE 'UTC')::date::timestamp, interval '1 day') AS buckets (bucket)
LEFT JOIN days ON days.local_date = buckets.bucket
ORDER BY bucket
"""

OFFLINE_NOW = """
SELECT silences.device_id, current.household_id, current.region, silences.cause, silences.started_at,
       silences.duration_seconds / 60 AS minutes, current.time_zone
FROM (SELECT * FROM marts.fct_offline_sessions WHERE ended_at IS NULL AND {fleet}) AS silences
LEFT JOIN marts.rpt_device_current AS current USING (device_id)
ORDER BY silences.started_at
LIMIT 200
"""

LEAST_UPTIME = """
SELECT device_id, 1 - sum(offline_minutes) / nullif(sum(observed_minutes), 0) AS uptime,
       sum(offline_minutes) AS offline_minutes,
       sum(completeness * observed_minutes)
       / nullif(sum(observed_minutes) FILTER (WHERE completeness IS NOT NULL), 0) AS completeness
FROM marts.fct_device_daily_summary
WHERE local_date >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
  AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date AND {fleet}
GROUP BY device_id
HAVING sum(observed_minutes) > 0
ORDER BY uptime, device_id
LIMIT 20
"""

SIGNAL_BY_HOUR = """
SELECT extract(hour FROM {bucket})::int AS hour, signal_band, count(*) AS device_hours,
       (count(*) / sum(count(*)) OVER (PARTITION BY extract(hour FROM {bucket})))::float8 AS share
FROM marts.fct_device_health_hourly
WHERE hour_starts_at >= %(since)s AND hour_starts_at < %(until)s AND signal_band IS NOT NULL AND {fleet}
GROUP BY extract(hour FROM {bucket}), signal_band
"""

HISTOGRAM = """
SELECT floor(signal_dbm / 5) * 5 AS signal_from, count(*) AS devices
FROM marts.rpt_device_current
WHERE signal_dbm IS NOT NULL AND {fleet}
GROUP BY 1
ORDER BY 1
"""


def show(view: View) -> None:
    totals = stored(TOTALS, **view.parameters()).set_index("is_now")
    if True not in totals.index:
        st.info("**No health report in this range.** Choose a longer one, or clear the filters.")
        return
    now = totals.loc[True]
    before = totals.loc[False] if False in totals.index else None
    offline = stored(OFFLINE_NOW, **view.fleet())
    tiles = st.container(horizontal=True)
    for name, meaning in (("uptime", "Share of the observed time that lies in no silence"),
                          ("completeness", "Health reports over the number expected")):  # fmt: skip
        parts.tile(
            tiles,
            name.capitalize(),
            parts.percent(now[name], 2),
            parts.points(now[name], before[name]) if before is not None else None,
            is_change=True,
            help=f"{meaning}; whole household's days of the range",
        )
    parts.tile(tiles, "Silent at the last run", f"{len(offline):,}")

    show_days(view)
    left, right = st.columns(2)
    with left:
        show_signal_by_hour(view)
    with right:
        show_histogram(view)
    left, right = st.columns(2)
    with left:
        st.markdown("**Silent at dbt's last run**, longest first")
        offline["since"] = view.shown(offline.started_at, offline.time_zone)
        offline["lasted"] = [age(60 * minutes) for minutes in offline.minutes]
        offline["why"] = offline.cause.str.replace("_", " ")
        parts.show_table(
            offline, "silent devices", "Every device is heard of.", parts.open_device, device_id="Device",
            lasted="For", why="Cause", since=f"Since ({view.clock})", household_id="Household", region="Region",
        )  # fmt: skip
    with right:
        st.markdown(f"**Least uptime**, whole days of the {parts.range_in_words(view)}")
        parts.show_table(
            stored(LEAST_UPTIME, **view.parameters()), "least uptime", "Nothing was observed.", parts.open_device,
            device_id="Device", uptime=parts.share("Uptime"), offline_minutes=parts.number("Minutes offline", "%.0f"),
            completeness=parts.share("Completeness"),
        )  # fmt: skip


def show_days(view: View) -> None:
    st.markdown("**Uptime and completeness by day**, the 30 days up to the end of the range")
    found = stored(DAYS, **view.parameters())
    found["bucket"] = parts.as_utc(found.bucket)
    long = found.melt("bucket", ["uptime", "completeness"], var_name="measure", value_name="share")
    x = alt.X("bucket:T", title=None, scale=alt.Scale(type="utc"), axis=alt.Axis(format="%b %d"))
    lines = alt.Chart(long).mark_line(point={"size": 14}).encode(
        x=x, y=alt.Y("share:Q", title=None, axis=alt.Axis(format="%"), scale=alt.Scale(zero=False)),
        color=parts.colour("measure", {"uptime": "#3b82f6", "completeness": "#d97706"}),
        tooltip=[alt.Tooltip("bucket:T", title="day", format="%Y-%m-%d"), "measure", parts.tip("share", ".2%")],
    )  # fmt: skip
    target = (
        alt.Chart(long.head(1)).mark_rule(aria=False, strokeDash=[4, 4], color=parts.GREY).encode(y=alt.datum(0.99))
    )
    st.altair_chart((lines + target).properties(height=200), alt="Uptime and completeness by day")
    st.caption("Dashed: the target of 99 %. A gap is a day of which nothing is known.")


def show_signal_by_hour(view: View) -> None:
    st.markdown("**Signal by hour of the day**")
    found = stored(SIGNAL_BY_HOUR, **view.parameters())
    if found.empty:
        st.caption("No reading in this range.")
        return
    order = list(BAND_COLOURS)
    found["rank"] = found.signal_band.map(order.index)
    chart = alt.Chart(found).mark_bar().encode(
        x=alt.X("hour:O", title=f"hour, {view.clock}", axis=alt.Axis(labelAngle=0, values=list(range(0, 24, 3)))),
        y=alt.Y("share:Q", title="share of device hours", axis=alt.Axis(format="%")),
        color=parts.colour("signal_band", BAND_COLOURS),
        order="rank:Q",
        tooltip=["hour", "signal_band", parts.tip("share", ".1%"), parts.tip("device_hours", ",")],
    ).properties(height=220)  # fmt: skip
    st.altair_chart(chart, alt="Share of device hours in each signal band, by hour of the day")


def show_histogram(view: View) -> None:
    st.markdown("**Signal of the devices**, newest hour of each")
    found = stored(HISTOGRAM, **view.fleet())
    if found.empty:
        st.caption("No reading yet.")
        return
    found["signal_to"] = found.signal_from + 5
    chart = alt.Chart(found).mark_bar(orient="vertical", binSpacing=1).encode(
        x=alt.X("signal_from:Q", title="signal, dBm", bin="binned", scale=alt.Scale(zero=False)), x2="signal_to:Q",
        y=alt.Y("devices:Q", title="devices"),
        tooltip=[alt.Tooltip("signal_from:Q", title="from"), alt.Tooltip("signal_to:Q", title="to"), "devices"],
    ).properties(height=220)  # fmt: skip
    st.altair_chart(chart, alt="Devices by signal strength")


show(st.session_state["view"])
