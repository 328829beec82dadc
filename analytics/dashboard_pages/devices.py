"""All devices, and one of them in full: its state over time, battery, signal, and everything it said."""

from __future__ import annotations

import altair as alt
import pandas as pd
import streamlit as st

import dashboard_parts as parts
from dashboard_doors import spans_of_states
from dashboard_parts import recent, stored
from dashboard_queries import health_interval_s
from dashboard_url import in_url
from dashboard_view import View
from dashboard_words import RULES, age, evidence_in_words

# The state is the marts', unless the device has fallen silent since: then nothing is known of its door.
LIST = """
SELECT device_id, household_id, device_type, model, firmware_version, region,
       CASE WHEN is_online_now THEN 'online' ELSE 'offline' END AS presence,
       CASE WHEN is_online_now THEN state ELSE 'unknown' END AS state,
       battery_pct, battery_band, signal_band, open_anomalies, last_seen_at, time_zone
FROM (
    SELECT devices.*, coalesce(
               health.is_online AND health.reported_at > now() - 2.5 * %(health_interval_s)s * interval '1 second',
               false
           ) AS is_online_now
    FROM marts.rpt_device_current AS devices
    LEFT JOIN live.device_health AS health USING (device_id)
    WHERE {fleet}
) AS devices
ORDER BY open_anomalies DESC, device_id
"""

ONE = """
SELECT current.*, forecast.band, forecast.drain_pct_per_day, forecast.days_to_low, forecast.days_to_empty,
       forecast.last_read_on, forecast.replaced_on, health.reported_at, now() AS checked_at,
       coalesce(health.is_online AND health.reported_at > now() - 2.5 * %(health_interval_s)s * interval '1 second',
                false) AS is_online_now
FROM marts.rpt_device_current AS current
LEFT JOIN marts.fct_battery_forecast AS forecast USING (device_id)
LEFT JOIN live.device_health AS health USING (device_id)
WHERE device_id = %(device_id)s
"""

# Openings and silences that reach into the range, cut to it. What lies between is closed, from the first event on; but
# not where retention has removed the events.
STATES = """
WITH clock AS (SELECT least(%(until)s, (SELECT max(last_seen_at) FROM marts.rpt_device_current)) AS at)
SELECT 'open' AS state, greatest(opened_at, %(since)s) AS since, least(coalesce(closed_at, clock.at), clock.at) AS until
FROM marts.fct_open_sessions, clock
WHERE device_id = %(device_id)s AND opened_at < %(until)s AND coalesce(closed_at, clock.at) > %(since)s
UNION ALL
SELECT 'offline', greatest(started_at, %(since)s), least(coalesce(ended_at, clock.at), clock.at)
FROM marts.fct_offline_sessions, clock
WHERE device_id = %(device_id)s AND started_at < %(until)s AND coalesce(ended_at, 'infinity') > %(since)s
UNION ALL
SELECT 'swept', greatest(swept_from, %(since)s), least(swept_until, clock.at)
FROM marts.rpt_device_current, clock
WHERE device_id = %(device_id)s AND swept_from < %(until)s AND swept_until > %(since)s
UNION ALL
SELECT 'observed', greatest(min(event_at), %(since)s), min(clock.at)
FROM (SELECT event_at FROM marts.fct_access_events WHERE device_id = %(device_id)s
      ORDER BY event_at LIMIT 1) AS first, clock
HAVING min(event_at) < %(until)s
ORDER BY since
"""

# One row for each hour of the range, with NULLs where no report came: a line has its gap there.
HEALTH = """
SELECT hours.at AS bucket, battery_last_pct, signal_median_dbm, signal_p10_dbm, signal_band
FROM generate_series(date_trunc('hour', %(since)s::timestamptz), %(until)s - interval '1 microsecond',
                     interval '1 hour') AS hours (at)
LEFT JOIN marts.fct_device_health_hourly AS health
    ON health.device_id = %(device_id)s AND health.hour_starts_at >= hours.at
   AND health.hour_starts_at < hours.at + interval '1 hour'
ORDER BY hours.at
"""

LOG = """
SELECT event_at, event_type, trigger_source, seconds_to_row, is_late, time_zone
FROM marts.fct_access_events
WHERE device_id = %(device_id)s AND event_at >= %(since)s AND event_at < %(until)s
ORDER BY event_at DESC, event_id DESC
LIMIT %(most)s
"""

ANOMALIES = """
SELECT rule, severity, evidence, is_open, started_at, ended_at
FROM marts.fct_anomalies
WHERE device_id = %(device_id)s AND (is_open OR started_at >= %(since)s) AND started_at < %(until)s
ORDER BY started_at DESC, rule
LIMIT %(most)s
"""

MOST = 500  # of a log's rows
FACTS = ("household_id", "device_type", "model", "firmware_version", "region", "time_zone")
SIGNAL_BANDS = {"excellent": -50, "good": -67, "fair": -75, "weak": -85}  # dBm, from which on; below weak: unusable


def show(view: View) -> None:
    devices = recent(LIST, health_interval_s=health_interval_s(), **view.fleet())
    if devices.empty:
        st.info("**No device** fits these filters. Clear them, or wait for dbt's next run if the fleet is new.")
        return
    options = list(devices.device_id)
    chosen = st.selectbox(
        "Device", options, index=None, placeholder=f"all {len(options):,}: choose one", key=in_url("device"),
        accept_new_options=True,
    )  # fmt: skip
    if chosen:
        show_one(view, chosen)
    else:
        show_all(view, devices)


def show_all(view: View, devices: pd.DataFrame) -> None:
    counts = devices.state.value_counts()
    with parts.tiles():
        parts.tile("Devices", f"{len(devices):,}")
        parts.tile("Online", f"{(devices.presence == 'online').sum():,}")
        for state in ("open", "closed", "unknown"):
            parts.tile(
                state.capitalize(),
                f"{counts.get(state, 0):,}",
                help="By the newest open or close; unknown while the device is offline",
            )
    devices["seen"] = view.shown(devices.last_seen_at, devices.time_zone)
    parts.show_table(
        devices, "devices", "No device.", parts.open_device, height=560,
        device_id="Device", presence="Now", state="Door", open_anomalies=parts.number("Going on"),
        battery_pct=parts.number("Battery, %", "%.0f"), battery_band="Battery band", signal_band="Signal",
        household_id="Household", device_type="Type", model="Model", firmware_version="Firmware", region="Region",
        seen=f"Last seen ({view.clock})",
    )  # fmt: skip


def show_one(view: View, device_id: str) -> None:
    found = recent(ONE, device_id=device_id, health_interval_s=health_interval_s())
    if found.empty:
        st.info(f"**No device {device_id}** in the marts. It may be new: dbt's next run takes it in.")
        return
    device = found.iloc[0]
    st.caption(" · ".join(str(device[name]) for name in FACTS if device[name]))
    with parts.tiles():
        show_tiles(device)
    since_until = {"device_id": device_id, "since": view.parameters()["since"], "until": view.until}
    show_states(view, device, stored(STATES, **since_until))
    health = stored(HEALTH, **since_until)
    left, right = st.columns(2)
    with left:
        show_battery(view, device, health)
    with right:
        show_signal(view, device, health)
    left, right = st.columns(2)
    with left:
        st.markdown("**Events**")
        log = stored(LOG, most=MOST, **since_until)
        log["time"] = view.shown(log.event_at, log.time_zone)
        parts.show_table(
            log, f"events of {device_id}", "No events in this range.", most=MOST,
            time=f"Happened ({view.clock})", event_type="Event", trigger_source="Trigger",
            seconds_to_row=parts.number("Seconds to row", "%.1f"), is_late="Late",
        )  # fmt: skip
    with right:
        st.markdown("**Anomalies**")
        anomalies = stored(ANOMALIES, most=MOST, **since_until)
        anomalies["what"] = anomalies.rule.map(RULES)
        anomalies["evidence"] = list(map(evidence_in_words, anomalies.rule, anomalies.evidence))
        anomalies["began"] = view.shown(anomalies.started_at, device.time_zone)
        anomalies["ended"] = view.shown(anomalies.ended_at, device.time_zone).fillna("going on")
        parts.show_table(
            anomalies, f"anomalies of {device_id}", "None in this range.", most=MOST, severity="Severity", what="Rule",
            evidence="Evidence", began=f"Began ({view.clock})", ended=f"Ended ({view.clock})",
        )  # fmt: skip


def show_tiles(device: pd.Series) -> None:
    heard = (
        "never"
        if pd.isna(device.reported_at)
        else f"{age((device.checked_at - device.reported_at).total_seconds())} ago"
    )
    if device.is_online_now and device.state != "unknown":
        since = age((device.checked_at - device.state_since).total_seconds())
        parts.tile("Door", device.state, f"for {since}")
    else:
        why = "not known" if device.is_online_now else "offline: not known"
        parts.tile("Door", "unknown", why)
    parts.tile("Health report", heard, "online" if device.is_online_now else "offline")
    battery = "–" if pd.isna(device.battery_pct) else f"{device.battery_pct:.0f} %"
    parts.tile("Battery", battery, device.battery_band.replace("_", " "))
    empty = "–" if pd.isna(device.days_to_empty) else f"{device.days_to_empty:.0f} d"
    parts.tile("Empty in", empty, help="Days until 5 %, by the drain of the last 14 days")
    parts.tile("Signal", "–" if pd.isna(device.signal_dbm) else f"{device.signal_dbm:.0f} dBm", device.signal_band)
    parts.tile("Anomalies going on", f"{device.open_anomalies:,}")


def show_states(view: View, device: pd.Series, found: pd.DataFrame) -> None:
    st.markdown("**Door over time**")
    spans = spans_of_states(found)
    if spans.empty:
        st.caption("Nothing is known of the door in this range.")
        return
    hours = spans.assign(hours=(spans.until - spans.since).dt.total_seconds() / 3600).groupby("state").hours.sum()
    for bound in ("since", "until"):
        spans[bound] = parts.wall_clock(view, spans[bound], device.time_zone)
    bounds = parts.wall_clock(view, pd.Series([view.since, view.until]), device.time_zone)
    whole = alt.Scale(type="utc", domain=[f"{at:%Y-%m-%dT%H:%M:%SZ}" for at in bounds])
    chart = alt.Chart(spans).mark_bar(height=18).encode(
        x=alt.X("since:T", title=view.clock, scale=whole, axis=parts.time_labels(view)), x2="until:T",
        y=alt.Y("state:N", title=None, sort=list(parts.STATE_COLOURS)),
        color=alt.Color("state:N", scale=parts.colours(parts.STATE_COLOURS), legend=None),
        tooltip=["state", *(alt.Tooltip(f"{bound}:T", format="%Y-%m-%d %H:%M:%S") for bound in ("since", "until"))],
    ).properties(height=150)  # fmt: skip
    said = ", ".join(f"{state} {hours.get(state, 0):.1f} h" for state in parts.STATE_COLOURS)
    st.altair_chart(chart, alt=f"States of {device.device_id}: {said}")
    st.caption(f"{said}. While it is offline its door is not known.")


def show_battery(view: View, device: pd.Series, health: pd.DataFrame) -> None:
    st.markdown(f"**Battery**: {device.battery_band.replace('_', ' ')}")
    if health.battery_last_pct.isna().all():
        st.caption("No reading in this range; a device on the mains has none.")
        return
    health = health.assign(bucket=parts.wall_clock(view, health.bucket, device.time_zone))
    line = alt.Chart(health).mark_line(point={"size": 10}).encode(
        # the forecast makes it days, however short the range
        x=alt.X("bucket:T", title=view.clock, scale=alt.Scale(type="utc"),
                axis=alt.Axis(format="%b %d, %H:%M", labelOverlap=True)),
        y=alt.Y("battery_last_pct:Q", title="battery, %", scale=alt.Scale(domain=[0, 100])),
        tooltip=[alt.Tooltip("bucket:T", format="%Y-%m-%d %H:%M"), parts.tip("battery_last_pct", ".1f")],
    )  # fmt: skip
    bounds = alt.Chart(pd.DataFrame({"y": [20, 5], "name": ["low, 20 %", "empty, 5 %"]})).encode(y="y:Q")
    layers = [bounds.mark_rule(aria=False, strokeDash=[4, 4], color=parts.GREY),
              bounds.mark_text(aria=False, align="left", x=4, dy=-6, color=parts.GREY).encode(text="name")]  # fmt: skip
    drain = device.drain_pct_per_day
    if pd.notna(device.days_to_empty) and drain >= 0.02:
        last = health.bucket[health.battery_last_pct.notna()].max()
        ahead = min(device.days_to_empty, 14)
        forecast = pd.DataFrame({
            "bucket": [last, last + pd.Timedelta(days=ahead)],
            "battery_pct": [device.battery_pct, device.battery_pct - ahead * drain],
        })  # fmt: skip
        layers.append(alt.Chart(forecast).mark_line(strokeDash=[2, 3]).encode(x="bucket:T", y="battery_pct:Q"))
    st.altair_chart(alt.layer(line, *layers).properties(height=220), alt=f"Battery of {device.device_id} over time")
    if pd.isna(drain):
        st.caption("No forecast yet: it takes readings of two days.")
    elif drain < 0.02:
        st.caption("It loses less than 0.02 points a day: no forecast.")
    else:
        st.caption(
            f"Dotted: {drain:.2f} points a day; low in {device.days_to_low:.0f} d, "
            f"empty in {device.days_to_empty:.0f} d."
        )


def show_signal(view: View, device: pd.Series, health: pd.DataFrame) -> None:
    st.markdown(f"**Signal**: {device.signal_band or 'no reading'}")
    if health.signal_median_dbm.isna().all():
        st.caption("No reading in this range.")
        return
    health = health.assign(bucket=parts.wall_clock(view, health.bucket, device.time_zone))
    base = alt.Chart(health).encode(x=parts.time_axis(view, title=view.clock))
    line = base.mark_line(point={"size": 10}).encode(
        y=alt.Y("signal_median_dbm:Q", title="signal, dBm", scale=alt.Scale(domain=[-100, -30])),
        tooltip=[alt.Tooltip("bucket:T", format="%Y-%m-%d %H:%M"), parts.tip("signal_median_dbm", ".0f"),
                 parts.tip("signal_p10_dbm", ".0f"), "signal_band"],
    )  # fmt: skip
    p10 = base.mark_line(strokeDash=[2, 3], opacity=0.6).encode(y="signal_p10_dbm:Q")
    bounds = alt.Chart(pd.DataFrame({"y": list(SIGNAL_BANDS.values()), "name": list(SIGNAL_BANDS)})).encode(y="y:Q")
    rules = bounds.mark_rule(aria=False, strokeDash=[4, 4], color=parts.GREY)
    names = bounds.mark_text(aria=False, align="left", x=4, dy=-6, color=parts.GREY).encode(text="name")
    st.altair_chart(
        alt.layer(line, p10, rules, names).properties(height=220), alt=f"Signal of {device.device_id} over time"
    )
    st.caption("Median of each hour; dotted: its tenth percentile. Above a line the signal is at least what it names.")


show(st.session_state["view"])
