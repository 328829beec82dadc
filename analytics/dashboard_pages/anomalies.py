"""What the six rules found, and what the device said around it."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

import dashboard_parts as parts
from dashboard_parts import stored
from dashboard_url import choose, in_url
from dashboard_view import View
from dashboard_words import RULES, evidence_in_words

MOST = 500
LONGEST_LOG = pd.Timedelta(hours=6)

COUNTS = """
SELECT rule, severity, count(*) AS detections, count(*) FILTER (WHERE is_open) AS going_on
FROM marts.fct_anomalies
WHERE (is_open OR started_at >= %(since)s) AND started_at < %(until)s AND {fleet}
GROUP BY rule, severity
"""

# First which they are, then all about these: evidence and id are made from a detection's row when they are asked for.
DETECTIONS = """
WITH newest AS (
    SELECT started_at, rule, device_id
    FROM marts.fct_anomalies
    WHERE (is_open OR started_at >= %(since)s) AND started_at < %(until)s AND {fleet}
      AND severity = ANY(%(severities)s::text[]) AND rule = ANY(%(rules)s::text[])
      AND (is_open OR NOT %(only_going_on)s)
    ORDER BY started_at DESC, rule, device_id
    LIMIT %(most)s
)
SELECT anomaly_id, rule, severity, device_id, evidence, is_open, started_at, ended_at,
       devices.household_id, coalesce(devices.time_zone, 'UTC') AS time_zone
FROM newest
JOIN (
    SELECT * FROM marts.fct_anomalies WHERE started_at >= (SELECT min(started_at) FROM newest)
) AS anomalies USING (started_at, rule, device_id)
LEFT JOIN live.devices USING (device_id)
ORDER BY started_at DESC, rule, device_id
"""

# By the index on the device and the time of either table.
LOG_AROUND = """
SELECT at, what FROM (
    (SELECT event_at AS at, event_type || ' by ' || trigger_source AS what
     FROM marts.fct_access_events
     WHERE device_id = %(device_id)s AND event_at >= %(since)s AND event_at < %(until)s
     ORDER BY event_at LIMIT %(most)s)
    UNION ALL
    (SELECT reported_at,
            CASE WHEN is_online THEN 'report: online' ELSE 'report: offline' END
            || coalesce(', battery ' || round(battery_pct::numeric) || ' %%', '')
            || coalesce(', signal ' || round(signal_strength_dbm::numeric) || ' dBm', '')
     FROM live.health_reports
     WHERE device_id = %(device_id)s AND reported_at >= %(since)s AND reported_at < %(until)s
     ORDER BY reported_at LIMIT %(most)s)
) AS log
ORDER BY at
LIMIT %(most)s
"""


def show(view: View) -> None:
    in_url("anomaly")  # the one whose log is shown
    in_url("severity", [], parts.SEVERITIES)
    in_url("rule", [], RULES)
    in_url("going_on", False)
    counts = stored(COUNTS, **view.parameters())
    if counts.empty:
        st.info("**No anomaly in this range.** Nothing is going on either. A longer range shows older ones.")
        return
    show_counts(counts)
    bar = st.container(horizontal=True, vertical_alignment="bottom")
    severities = bar.pills("Severity", parts.SEVERITIES, selection_mode="multi", key="severity")
    rules = bar.pills("Rule", list(RULES), selection_mode="multi", format_func=RULES.__getitem__, key="rule")
    only_going_on = bar.toggle("Only going on", key="going_on")
    found = stored(
        DETECTIONS, severities=severities or parts.SEVERITIES, rules=rules or list(RULES), only_going_on=only_going_on,
        most=MOST, **view.parameters(),
    )  # fmt: skip
    found["what"] = found.rule.map(RULES)
    found["evidence"] = list(map(evidence_in_words, found.rule, found.evidence))
    found["began"] = view.shown(found.started_at, found.time_zone)
    found["ended"] = view.shown(found.ended_at, found.time_zone).fillna("going on")
    parts.show_table(
        found, "anomalies", "None with these severities and rules.", remember,
        most=MOST,
        severity="Severity", what="Rule", device_id="Device", household_id="Household", evidence="Evidence",
        began=f"Began ({view.clock})", ended=f"Ended ({view.clock})",
    )  # fmt: skip
    chosen = found[found.anomaly_id == st.session_state.get("anomaly")]
    if len(chosen):
        show_log(chosen.iloc[0], view)


def remember(row: pd.Series) -> None:
    st.session_state["anomaly"] = row.anomaly_id


def show_counts(counts: pd.DataFrame) -> None:
    with parts.tiles():
        for severity in parts.SEVERITIES:
            of_it = counts[counts.severity == severity]
            going_on = int(of_it.going_on.sum())
            parts.tile(
                severity.capitalize(),
                f"{of_it.detections.sum():,}",
                f"{going_on:,} going on" if going_on else None,
                tone="inverse",
            )
    counts["name"] = counts.rule.map(RULES)
    chart = alt.Chart(counts).mark_bar().encode(
        y=alt.Y("name:N", title=None, sort="-x", axis=alt.Axis(labelOverlap=False)),
        x=alt.X("detections:Q", title="detections", axis=alt.Axis(format="d", tickMinStep=1)),
        color=alt.Color("severity:N", title=None, sort=parts.SEVERITIES, scale=parts.colours(parts.SEVERITY_COLOURS),
                        legend=alt.Legend(orient="top")),
        tooltip=["name", "severity", parts.tip("detections", ","), parts.tip("going_on", ",")],
    ).properties(height=alt.Step(22))  # fmt: skip

    def filter_by(mark: dict[str, Any]) -> None:
        rule = next((rule for rule, name in RULES.items() if name == mark["name"]), None)
        choose(severity=[mark["severity"]], rule=[rule] if rule else [])

    parts.on_click(chart, ["name", "severity"], "by rule", "Detections by rule and severity", filter_by)


def show_log(row: pd.Series, view: View) -> None:
    around = pd.Timedelta(minutes=15)
    until = row.started_at + LONGEST_LOG
    if pd.notna(row.ended_at):
        until = min(until, row.ended_at)
    st.markdown(f"**{row.device_id}, {row.what}**: {row.evidence}")
    log = stored(
        LOG_AROUND, device_id=row.device_id, since=(row.started_at - around).to_pydatetime(),
        until=(until + around).to_pydatetime(), most=MOST,
    )  # fmt: skip
    log["time"] = view.shown(log["at"], row.time_zone)
    log["during"] = ["yes" if row.started_at <= at <= until else "" for at in log["at"]]
    parts.show_table(
        log, f"log of {row.device_id}", "The device said nothing within 15 minutes of it.", most=MOST,
        time=f"Time ({view.clock})", what="What it said", during="During it",
    )  # fmt: skip
    if st.button(f"Open {row.device_id}", icon=":material/door_front:"):
        parts.open_device(row)


show(st.session_state["view"])
