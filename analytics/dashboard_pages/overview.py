"""How it stands: the fleet now, what went wrong, and where to look next."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

import dashboard_parts as parts
import dashboard_queries as queries
import dashboard_words as words
from dashboard_parts import live, recent, stored
from dashboard_queries import health_interval_s
from dashboard_view import View, narrow_range
from dashboard_words import RULES

UPTIME_TARGET = 0.99

# Online: the newest report says so and is not older than 2.5 health intervals. What fell silent is not online.
ONLINE = """
SELECT count(*) AS devices,
       count(*) FILTER (
           WHERE is_online AND reported_at > now() - 2.5 * %(health_interval_s)s * interval '1 second'
       ) AS online
FROM live.device_health
WHERE {fleet}
"""

STANDING = """
SELECT (SELECT count(*) FROM marts.fct_open_sessions
        WHERE closed_at IS NULL AND status = 'still_open' AND left_open = 'alert' AND {fleet}) AS left_open,
       (SELECT count(*) FROM marts.fct_anomalies WHERE is_open AND severity = 'critical' AND {fleet}) AS critical,
       (SELECT count(*) FROM marts.fct_battery_forecast
        WHERE band IN ('empty', 'low', 'within_7_days', 'within_14_days') AND {fleet}) AS batteries,
       (SELECT count(*) FROM marts.fct_battery_forecast WHERE band = 'empty' AND {fleet}) AS empty
"""

FAIL_RATES = """
SELECT sum(fails) FILTER (WHERE hour_starts_at >= %(since)s)::float8
       / nullif(sum(attempts) FILTER (WHERE hour_starts_at >= %(since)s), 0)::float8 AS now,
       sum(fails) FILTER (WHERE hour_starts_at < %(since)s)::float8
       / nullif(sum(attempts) FILTER (WHERE hour_starts_at < %(since)s), 0)::float8 AS before
FROM {access_hours}
WHERE hour_starts_at >= %(earlier)s AND hour_starts_at < %(until)s
"""

UPTIME = """
SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date AS since,
       {uptime} AS uptime
FROM marts.fct_device_daily_summary
WHERE local_date >= date_trunc('month', now() AT TIME ZONE 'UTC')::date AND {fleet}
"""

# A bucket without events is one without events only if health reports came in; else nothing is known of it.
EVENTS_BY_HOUR = """
WITH events AS (
    SELECT {bucket} AS bucket, sum(opens) AS opens, sum(closes) AS closes, sum(fails) AS fails
    FROM {access_hours}
    WHERE hour_starts_at >= %(since)s AND hour_starts_at < %(until)s
    GROUP BY 1
),
reports AS (
    SELECT {bucket} AS bucket
    FROM {health_hours}
    WHERE hour_starts_at >= %(since)s AND hour_starts_at < %(until)s
    GROUP BY 1
),
known AS (SELECT bucket FROM events UNION SELECT bucket FROM reports),
buckets AS (
    SELECT generate_series(
        CASE WHEN %(local)s THEN (SELECT min(bucket) FROM known)
             ELSE date_trunc('hour', %(since)s::timestamptz AT TIME ZONE 'UTC') END,
        CASE WHEN %(local)s THEN (SELECT max(bucket) FROM known)
             ELSE %(until)s::timestamptz AT TIME ZONE 'UTC' - interval '1 microsecond' END,
        interval '1 hour'
    ) AS bucket
)
SELECT bucket, coalesce(opens, 0)::bigint AS open, coalesce(closes, 0)::bigint AS close,
       coalesce(fails, 0)::bigint AS fail, fails::float8 / nullif(opens + fails, 0)::float8 AS fail_rate,
       known.bucket IS NULL AS is_unknown
FROM buckets LEFT JOIN known USING (bucket) LEFT JOIN events USING (bucket)
ORDER BY bucket
"""

EVENTS_BY_DAY = """
WITH days AS (
    SELECT local_date, sum(opens) AS opens, sum(closes) AS closes, sum(fails) AS fails
    FROM marts.fct_device_daily_summary
    WHERE local_date >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
      AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date AND {fleet}
    GROUP BY local_date
),
buckets AS (
    SELECT generate_series((%(since)s::timestamptz AT TIME ZONE 'UTC')::date::timestamp,
                           (%(until)s::timestamptz AT TIME ZONE 'UTC')::date::timestamp, interval '1 day') AS bucket
)
SELECT bucket, coalesce(opens, 0)::bigint AS open, coalesce(closes, 0)::bigint AS close,
       coalesce(fails, 0)::bigint AS fail, fails::float8 / nullif(opens + fails, 0)::float8 AS fail_rate,
       days.local_date IS NULL AS is_unknown
FROM buckets LEFT JOIN days ON days.local_date = buckets.bucket
ORDER BY bucket
"""

# Of the seven days up to the end of the range, so that every cell had its chance.
HEAT_MAP = """
SELECT extract(isodow FROM {bucket})::int AS weekday, extract(hour FROM {bucket})::int AS hour,
       sum(opens + closes + fails)::bigint AS events
FROM {access_hours}
WHERE hour_starts_at >= date_trunc('hour', %(until)s::timestamptz) - interval '7 days'
  AND hour_starts_at < %(until)s
GROUP BY 1, 2
HAVING sum(opens + closes + fails) > 0
"""

NEWEST_ANOMALIES = """
SELECT anomalies.started_at, anomalies.rule, anomalies.severity, anomalies.device_id, anomalies.is_open,
       coalesce(devices.time_zone, 'UTC') AS time_zone
FROM (SELECT * FROM marts.fct_anomalies
      WHERE started_at >= %(since)s AND started_at < %(until)s AND {fleet}
      ORDER BY started_at DESC, rule, device_id LIMIT 10) AS anomalies
LEFT JOIN live.devices USING (device_id)
ORDER BY anomalies.started_at DESC, anomalies.rule, anomalies.device_id
"""

BY_HOUR = """(
        SELECT device_id, fails, attempts FROM marts.fct_access_hourly
        WHERE hour_starts_at >= %(since)s AND hour_starts_at < %(until)s
    ) AS hours"""
BY_DAY = """(
        SELECT device_id, fails, opens + fails AS attempts FROM marts.fct_device_daily_summary
        WHERE local_date >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
          AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date
    ) AS days"""

# Worst first: what is going on, then what was critical, then how much went wrong.
WORST_DEVICES = """
WITH anomalies AS (
    SELECT device_id, count(*) AS anomalies, count(*) FILTER (WHERE severity = 'critical') AS critical,
           count(*) FILTER (WHERE is_open) AS going_on
    FROM marts.fct_anomalies
    WHERE started_at >= %(since)s AND started_at < %(until)s AND {fleet}
    GROUP BY device_id
),
access AS (
    SELECT device_id, sum(fails)::bigint AS fails,
           sum(fails)::float8 / nullif(sum(attempts), 0)::float8 AS fail_rate
    FROM {access_by_device}
    WHERE {fleet}
    GROUP BY device_id
)
SELECT device_id, coalesce(going_on, 0) AS going_on, coalesce(critical, 0) AS critical,
       coalesce(anomalies.anomalies, 0) AS anomalies, coalesce(fails, 0) AS fails, fail_rate
FROM anomalies FULL JOIN access USING (device_id)
WHERE coalesce(anomalies.anomalies, 0) + coalesce(fails, 0) > 0
ORDER BY going_on DESC, critical DESC, anomalies DESC, fails DESC, device_id
LIMIT 10
"""

WEEKDAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


def show(view: View) -> None:
    show_tiles(view)
    left, right = st.columns([3, 2])
    with left:
        show_events(view)
    with right:
        show_heat_map(view)
    left, middle, right = st.columns([4, 3, 4])
    with left:
        show_tail(view)
    with middle:
        show_newest_anomalies(view)
    with right:
        show_worst_devices(view)


@st.fragment(run_every=15)
def show_tiles(view: View) -> None:
    with parts.next_step_instead_of_a_traceback(), parts.tiles():
        now = recent(ONLINE, health_interval_s=health_interval_s(), **view.fleet()).iloc[0]
        offline = now.devices - now.online
        parts.tile(
            "Devices online",
            f"{now.online:,}/{now.devices:,}",
            tone="inverse",
            note=f"{offline:,} offline" if offline else None,
            help=f"Their newest report says online and is not older than {2.5 * health_interval_s():g} s. Live",
        )
        parameters = view.parameters()
        standing = stored(STANDING, **view.fleet()).iloc[0]
        parts.tile(
            "Open too long now",
            f"{standing.left_open:,}",
            help="Open for more than 10 minutes, the device not being offline. From the marts",
        )
        parts.tile(
            "Critical, going on",
            f"{standing.critical:,}",
            help="Detections of severity critical that have not ended. From the marts",
        )
        rates = stored(FAIL_RATES, **parameters).iloc[0]
        parts.tile(
            f"Fail rate, {view.label}",
            words.percent(rates.now),
            words.points(rates.now, rates.before),
            tone="inverse",
            is_change=True,
            help="fails / (opens + fails), and the change on the period before; – without an attempt. From the marts",
        )
        parts.tile(
            "Batteries, 14 days",
            f"{standing.batteries:,}",
            tone="inverse",
            note=f"{standing['empty']:,} empty" if standing["empty"] else None,
            help="Devices whose battery is low (20 %) or will be within 14 days. From the marts",
        )
        slo = stored(UPTIME, **view.fleet()).iloc[0]
        parts.tile(
            f"Uptime since {slo.since:%b} 1",
            words.percent(slo.uptime, 2),
            note=None
            if pd.isna(slo.uptime)
            else f"{'meets' if slo.uptime >= UPTIME_TARGET else 'misses'} {UPTIME_TARGET:.0%}",
            tone="normal" if pd.notna(slo.uptime) and slo.uptime >= UPTIME_TARGET else "inverse",
            help="Share of the observed time that lies in no silence, this month to date. From the marts",
        )


def show_events(view: View) -> None:
    st.markdown(f"**Events per {'hour' if view.is_hourly else 'day'}**")
    events = stored(EVENTS_BY_HOUR if view.is_hourly else EVENTS_BY_DAY, **view.parameters())
    if events.is_unknown.all():
        st.caption("No data in this range: neither events nor health reports. Choose another range.")
        return
    events["bucket"] = parts.as_utc(events.bucket)
    step = parts.HOUR if view.is_hourly else 24 * parts.HOUR
    events["bucket_ends"] = events.bucket + step
    by_type = events[~events.is_unknown].melt(
        ["bucket", "bucket_ends"], list(parts.EVENT_COLOURS), var_name="event", value_name="events"
    )
    x, until = parts.time_axis(view, title=""), alt.X2("bucket_ends:T")
    bars = alt.Chart(by_type).mark_bar(orient="vertical", binSpacing=1).encode(
        x=x, x2=until, y=alt.Y("events:Q", title="events"),
        color=parts.colour("event", parts.EVENT_COLOURS),
        tooltip=[parts.FROM, "event:N", parts.tip("events", ",")],
    )  # fmt: skip
    unknown = events[events.is_unknown].assign(what="no data")
    missing = (
        alt.Chart(unknown)
        .mark_rect(color=parts.GREY, opacity=0.25)
        .encode(x=x, x2=until, tooltip=["what:N", parts.FROM])
    )
    rate = alt.Chart(events).mark_line(color=parts.EVENT_COLOURS["fail"], point={"size": 12}).encode(
        x=parts.time_axis(view), y=alt.Y("fail_rate:Q", title="fail rate", axis=alt.Axis(format="%", tickCount=3)),
        tooltip=[parts.FROM, parts.tip("fail_rate", ".1%")],
    )  # fmt: skip

    total = events[list(parts.EVENT_COLOURS)].sum()
    said = ", ".join(f"{total[name]:,} {name}" for name in parts.EVENT_COLOURS)
    layers = (alt.layer(bars, missing) if len(unknown) else bars).properties(height=190)
    if view.is_local:
        st.altair_chart(layers, alt=f"Events over time: {said}")
    else:
        parts.on_click(layers, ["bucket"], "events", f"Events over time: {said}", lambda mark: parts.zoom(mark, step))
    st.altair_chart(rate.properties(height=120), alt="Fail rate over time")
    st.caption(f"{said}." + (f" Grey: {len(unknown)} without any data (yet)." if len(unknown) else ""))


def show_heat_map(view: View) -> None:
    st.markdown("**When the doors move**, last 7 days")
    found = stored(HEAT_MAP, **view.parameters())
    if found.empty:
        st.caption("No events in these days.")
        return
    found["weekday"] = [WEEKDAYS[number - 1] for number in found.weekday]
    chart = alt.Chart(found).mark_rect(color=parts.EVENT_COLOURS["open"]).encode(
        x=alt.X("hour:O", title=f"hour, {view.clock}", scale=alt.Scale(domain=list(range(24))),
                axis=alt.Axis(labelAngle=0, values=list(range(0, 24, 3)))),
        y=alt.Y("weekday:O", title=None, scale=alt.Scale(domain=WEEKDAYS)),
        # by opacity: more is stronger on a light page and on a dark one
        opacity=alt.Opacity("events:Q", scale=alt.Scale(range=[0.1, 1]), legend=alt.Legend(orient="top")),
        tooltip=["weekday", "hour", parts.tip("events", ",")],
    ).properties(height=310)  # fmt: skip
    busiest = found.loc[found.events.idxmax()]
    said = f"Events by weekday and hour; most on {busiest.weekday} at {busiest.hour}"
    if view.is_local:  # an hour of a household's day is another moment in each zone
        st.altair_chart(chart, alt=said)
    else:
        parts.on_click(chart, ["weekday", "hour"], "week", said, lambda mark: show_hour(mark, view.until))
    st.caption(f"Busiest: {busiest.weekday}, {busiest.hour:02}:00, {busiest.events:,} events.")


def show_hour(mark: dict[str, Any], until: datetime) -> None:
    """Narrows the range to the cell's hour: its last before `until`."""
    at = until.replace(minute=0)
    while at == until or (WEEKDAYS[at.weekday()], at.hour) != (mark["weekday"], mark["hour"]):
        at -= timedelta(hours=1)
    narrow_range(at, at + timedelta(hours=1))


@st.fragment(run_every=2)
def show_tail(view: View) -> None:
    st.markdown("**Latest events**, live")
    with parts.next_step_instead_of_a_traceback(said_above=True):
        latest = live(queries.LATEST_EVENTS, span=queries.SPANS[0], **view.fleet())
        for span in queries.SPANS[1:]:
            if len(latest) >= queries.TAIL:
                break
            older = recent(queries.LATEST_EVENTS, span=span, **view.fleet())
            latest = pd.concat([latest, older]).drop_duplicates("event_id").head(queries.TAIL)
        latest["happened"] = view.shown(latest.event_ts, latest.time_zone)
        parts.show_table(
            latest, "latest events", "No event yet of these devices.", parts.open_device, height=250,
            happened=f"Happened ({view.clock})", event_type="Event", device_id="Device", trigger_source="Trigger",
            seconds_to_row=parts.number("Seconds to row", "%.3f"),
        )  # fmt: skip


def show_newest_anomalies(view: View) -> None:
    st.markdown("**Newest anomalies**")
    found = stored(NEWEST_ANOMALIES, **view.parameters())
    found["started"] = view.shown(found.started_at, found.time_zone)
    found["what"] = found.severity + ": " + found.rule.map(RULES) + found.is_open.map({True: ", going on", False: ""})
    parts.show_table(
        found, "newest anomalies", "None in this range.", parts.open_device, height=250,
        what="What", device_id="Device", started=f"Began ({view.clock})",
    )  # fmt: skip


def show_worst_devices(view: View) -> None:
    st.markdown("**Worst ten devices**" + (", failures of whole days" if view.is_by_day else ""))
    query = WORST_DEVICES.replace("{access_by_device}", BY_DAY if view.is_by_day else BY_HOUR)
    parts.show_table(
        stored(query, **view.parameters()), "worst devices", "Nothing went wrong in this range.",
        parts.open_device, height=250,
        device_id="Device", going_on=parts.number("Going on"), critical=parts.number("Critical"),
        anomalies=parts.number("Anomalies"), fails=parts.number("Fails"), fail_rate=parts.share("Fail rate"),
    )  # fmt: skip


show(st.session_state["view"])
