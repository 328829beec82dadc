"""Who is reachable: uptime, completeness of the health reports, signal."""

from __future__ import annotations

import altair as alt
import streamlit as st

import dashboard_parts as parts
import dashboard_words as words
from dashboard_parts import stored
from dashboard_url import choose, in_url
from dashboard_view import View
from dashboard_words import age

BAND_COLOURS = {
    "excellent": "#1d4ed8",
    "good": "#3b82f6",
    "fair": "#ca8a04",
    "weak": "#ea580c",
    "unusable": "#b91c1c",
}

MOST = 200
HOURS = [str(hour) for hour in range(24)]

TOTALS = """
SELECT local_date >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date AS is_now,
       {uptime} AS uptime,
       {completeness} AS completeness
FROM marts.fct_device_daily_summary
WHERE local_date >= (%(earlier)s::timestamptz AT TIME ZONE 'UTC')::date
  AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date AND {fleet}
GROUP BY 1
"""

# A day without a row is one of which nothing is known: the lines have a gap there.
DAYS = """
WITH days AS (
    SELECT local_date, {uptime} AS uptime,
           {completeness} AS completeness
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
       silences.duration_seconds / 60 AS minutes, current.time_zone, count(*) OVER () AS silent
FROM (SELECT * FROM marts.fct_offline_sessions WHERE ended_at IS NULL AND {fleet}) AS silences
LEFT JOIN marts.rpt_device_current AS current USING (device_id)
ORDER BY silences.started_at, silences.device_id
LIMIT %(most)s
"""

LEAST_UPTIME = """
SELECT device_id, {uptime} AS uptime,
       sum(offline_minutes) AS offline_minutes,
       {completeness} AS completeness
FROM marts.fct_device_daily_summary
WHERE local_date >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
  AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date AND {fleet}
GROUP BY device_id
HAVING sum(observed_minutes) > 0
ORDER BY uptime, device_id
LIMIT 20
"""

SIGNAL_BY_HOUR = """
SELECT extract(hour FROM {bucket})::int AS hour, signal_band, sum(devices)::bigint AS device_hours,
       (sum(devices) / sum(sum(devices)) OVER (PARTITION BY extract(hour FROM {bucket})))::float8 AS share
FROM {signal_hours}
WHERE hour_starts_at >= %(since)s AND hour_starts_at < %(until)s
GROUP BY extract(hour FROM {bucket}), signal_band
HAVING sum(devices) > 0
"""

# Of one hour of the day and one band: whose it is most often.
DEVICES_OF_BAND = """
SELECT device_id, count(*) AS hours, avg(signal_median_dbm) AS signal_dbm
FROM marts.fct_device_health_hourly
WHERE hour_starts_at >= %(since)s AND hour_starts_at < %(until)s AND signal_band = %(band)s
  AND extract(hour FROM {bucket}) = %(hour)s AND {fleet}
GROUP BY device_id
ORDER BY hours DESC, signal_dbm, device_id
LIMIT 20
"""

HISTOGRAM = """
SELECT floor(signal_dbm / 5) * 5 AS signal_from, count(*) AS devices
FROM marts.rpt_device_current
WHERE signal_dbm IS NOT NULL AND {fleet}
GROUP BY 1
ORDER BY 1
"""


DEVICES_OF_SIGNAL = """
SELECT device_id, household_id, signal_dbm, signal_band
FROM marts.rpt_device_current
WHERE signal_dbm >= %(signal_from)s AND signal_dbm < %(signal_from)s + 5 AND {fleet}
ORDER BY signal_dbm, device_id
LIMIT %(most)s
"""


def show(view: View) -> None:
    totals = stored(TOTALS, **view.parameters()).set_index("is_now")
    if True not in totals.index:
        st.info("**No health report in this range.** Choose a longer one, or clear the filters.")
        return
    now = totals.loc[True]
    before = totals.loc[False] if False in totals.index else None
    offline = stored(OFFLINE_NOW, most=MOST, **view.fleet())
    silent = int(offline.silent.max()) if len(offline) else 0
    with parts.tiles():
        for name, meaning in (("uptime", "Share of the observed time that lies in no silence"),
                              ("completeness", "Health reports over the number expected")):  # fmt: skip
            parts.tile(
                name.capitalize(),
                words.percent(now[name], 2),
                words.points(now[name], before[name]) if before is not None else None,
                is_change=True,
                help=f"{meaning}; whole household's days of the range",
            )
        parts.tile("Silent at the last run", f"{silent:,}")

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
            offline, "silent devices", "Every device is heard of.", parts.open_device, most=MOST, device_id="Device",
            lasted="For", why="Cause", since=f"Since ({view.clock})", household_id="Household", region="Region",
        )  # fmt: skip
    with right:
        st.markdown(f"**Least uptime**, whole days of the {view.range_in_words}")
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
    parts.on_click(
        chart, ["hour", "signal_band"], "signal by hour",
        "Share of device hours in each signal band, by hour of the day",
        lambda mark: choose(hour=str(mark["hour"]), band=mark["signal_band"]),
    )  # fmt: skip
    hour, band = (st.session_state[in_url(key, None, known)] for key, known in (("hour", HOURS), ("band", order)))
    if hour and band:
        st.markdown(
            f"**{band} at {int(hour):02}:00** in the {view.range_in_words}: the devices with the most such hours"
        )
        parts.show_table(
            stored(DEVICES_OF_BAND, hour=int(hour), band=band, **view.parameters()), f"{band} at {hour}", "None.",
            parts.open_device, device_id="Device", hours=parts.number("Hours"),
            signal_dbm=parts.number("Signal, dBm", "%.0f"),
        )  # fmt: skip


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
    parts.on_click(
        chart, ["signal_from"], "by signal", "Devices by signal strength",
        lambda mark: choose(signal=f"{mark['signal_from']:g}"),
    )  # fmt: skip
    chosen = st.session_state[in_url("signal", None, [f"{at:g}" for at in found.signal_from])]
    if chosen:
        st.markdown(f"**From {chosen} dBm**, weakest first")
        parts.show_table(
            stored(DEVICES_OF_SIGNAL, signal_from=float(chosen), most=MOST, **view.fleet()), f"signal from {chosen}",
            "None.", parts.open_device, most=MOST, device_id="Device",
            signal_dbm=parts.number("Signal, dBm", "%.0f"), signal_band="Band", household_id="Household",
        )  # fmt: skip


show(st.session_state["view"])
