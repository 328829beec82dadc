"""How doors are opened, by what, and where they fail."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

import dashboard_parts as parts
import dashboard_words as words
from dashboard_parts import SMALL_SAMPLE, stored
from dashboard_url import choose, go, in_url
from dashboard_view import View, narrow_to

# The period, and the one of the same length before it.
TOTALS = """
SELECT hour_starts_at >= %(since)s AS is_now, sum(opens)::bigint AS opens, sum(closes)::bigint AS closes,
       sum(fails)::bigint AS fails, sum(late_events)::bigint AS late,
       sum(fails)::float8 / nullif(sum(attempts), 0)::float8 AS fail_rate
FROM {access_hours}
WHERE hour_starts_at >= %(earlier)s AND hour_starts_at < %(until)s
GROUP BY 1
HAVING sum(opens + closes + fails) > 0
"""

TRIGGERS = """
SELECT trigger_source, event_type, sum(events)::bigint AS events,
       (sum(events) / sum(sum(events)) OVER ())::float8 AS share
FROM marts.fct_triggers_daily
WHERE local_date >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
  AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date
  AND (%(whole_fleet)s OR household_id IN (SELECT household_id FROM live.devices WHERE {fleet}))
GROUP BY trigger_source, event_type
ORDER BY trigger_source, event_type
"""

HOUSEHOLDS_BY_TRIGGER = """
SELECT household_id, sum(events)::bigint AS events
FROM marts.fct_triggers_daily
WHERE local_date >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
  AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date
  AND trigger_source = %(trigger)s AND event_type = %(event)s
  AND (%(whole_fleet)s OR household_id IN (SELECT household_id FROM live.devices WHERE {fleet}))
GROUP BY household_id
ORDER BY events DESC, household_id
LIMIT 20
"""

BY_HOUR = """
    SELECT device_id, hour_starts_at AS starts_at, fails, attempts FROM marts.fct_access_hourly
    WHERE hour_starts_at >= %(since)s AND hour_starts_at < %(until)s AND {fleet}"""
BY_DAY = """
    SELECT device_id, local_date::timestamp AT TIME ZONE 'UTC' AS starts_at, fails, opens + fails AS attempts
    FROM marts.fct_device_daily_summary
    WHERE local_date >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
      AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date AND {fleet}"""

# By what the device was at that hour or day: a model's fault is not blamed on the firmware that mended it.
FAILURES = """
SELECT versions.model, versions.firmware_version, versions.region, versions.device_type,
       sum(counts.fails)::bigint AS fails, sum(counts.attempts)::bigint AS attempts
FROM ({counts}) AS counts
LEFT JOIN marts.dim_devices AS versions
    ON versions.device_id = counts.device_id
   AND (versions.valid_from <= counts.starts_at OR versions.version = 1)
   AND (versions.valid_to > counts.starts_at OR versions.valid_to IS NULL)
GROUP BY versions.model, versions.firmware_version, versions.region, versions.device_type
"""

DAYS = """
SELECT local_date::timestamp AS bucket, sum(opens)::bigint AS open, sum(closes)::bigint AS close,
       sum(fails)::bigint AS fail
FROM marts.fct_device_daily_summary
WHERE local_date > (%(until)s::timestamptz AT TIME ZONE 'UTC')::date - 30
  AND local_date <= (%(until)s::timestamptz AT TIME ZONE 'UTC')::date AND {fleet}
GROUP BY local_date
ORDER BY local_date
"""

DIMENSIONS = {"model": "Model", "firmware_version": "Firmware", "region": "Region", "device_type": "Device type"}
FILTERED_BY = ("model", "region", "device_type")


def show(view: View) -> None:
    totals = stored(TOTALS, **view.parameters()).set_index("is_now")
    if True not in totals.index:
        st.info("**No event in this range.** Choose a longer one, or clear the filters.")
        return
    show_totals(totals)
    left, right = st.columns(2)
    with left:
        show_failures(view)
    with right:
        show_triggers(view)
    show_days(view)


def show_totals(totals: pd.DataFrame) -> None:
    now = totals.loc[True]
    before = totals.loc[False] if False in totals.index else None
    with parts.tiles():
        for name in ("opens", "closes", "fails"):
            delta = words.change(now[name], before[name]) if before is not None else None
            parts.tile(
                name.capitalize(),
                f"{int(now[name]):,}",
                delta,
                is_change=True,
                tone="inverse" if name == "fails" else "off",
            )
        parts.tile(
            "Fail rate",
            words.percent(now.fail_rate, 2),
            words.points(now.fail_rate, before.fail_rate) if before is not None else None,
            is_change=True,
            tone="inverse",
            help="fails / (opens + fails)",
        )
        events = now.opens + now.closes + now.fails
        parts.tile(
            "Late",
            words.percent(now.late / events if events else None),
            help="Share of the events that arrived more than 120 s after they happened",
        )


def show_failures(view: View) -> None:
    st.markdown("**Where they fail**" + (f", whole days of the {view.range_in_words}" if view.is_by_day else ""))
    by: Any = st.segmented_control(
        "By",
        list(DIMENSIONS),
        format_func=DIMENSIONS.__getitem__,
        key=in_url("by", "model", DIMENSIONS),
        required=True,
    )
    found = stored(FAILURES.replace("{counts}", BY_DAY if view.is_by_day else BY_HOUR), **view.parameters())
    found = found.assign(**{by: found[by].fillna("unknown")}).groupby(by, as_index=False)[["fails", "attempts"]].sum()
    found["fail_rate"] = found.fails / found.attempts.where(found.attempts > 0)
    found["sample"] = ["enough" if attempts >= SMALL_SAMPLE else "small sample" for attempts in found.attempts]
    palette = {"enough": parts.EVENT_COLOURS["fail"], "small sample": parts.GREY}
    chart = alt.Chart(found).mark_bar().encode(
        y=alt.Y(f"{by}:N", title=None, sort="-x"),
        x=alt.X("fail_rate:Q", title="fail rate", axis=alt.Axis(format="%")),
        color=alt.Color("sample:N", title=f"from {SMALL_SAMPLE} attempts on", scale=parts.colours(palette),
                        legend=alt.Legend(orient="top")),
        tooltip=[by, parts.tip("fail_rate", ".2%"), "fails", "attempts", "sample"],
    ).properties(height=alt.Step(22))  # fmt: skip

    def open_kind(row: pd.Series) -> None:
        if row[by] != "unknown":
            go(None, **{by: [row[by]]})

    def filter_by(mark: dict[str, Any]) -> None:
        if by in FILTERED_BY and mark[by] != "unknown":
            narrow_to(**{by: mark[by]})

    parts.on_click(chart, [by], "failures", f"Fail rate by {DIMENSIONS[by]}", filter_by)
    heading: dict[str, Any] = {by: DIMENSIONS[by]}
    parts.show_table(
        found.sort_values("fail_rate", ascending=False), f"failures by {by}", "No attempt in this range.",
        open_kind if by in FILTERED_BY else None, **heading, attempts=parts.number("Attempts"),
        fails=parts.number("Fails"), fail_rate=parts.share("Fail rate"), sample="Sample",
    )  # fmt: skip


def show_triggers(view: View) -> None:
    st.markdown(f"**What sets them off**, whole days of the {view.range_in_words}")
    found = stored(TRIGGERS, **view.parameters())
    if found.empty:
        st.caption("No event on these days.")
        return
    chart = alt.Chart(found).mark_bar().encode(
        y=alt.Y("trigger_source:N", title=None, sort="-x"),
        x=alt.X("share:Q", title="share of the events", axis=alt.Axis(format="%")),
        color=parts.colour("event_type", parts.EVENT_COLOURS),
        tooltip=["trigger_source", "event_type", parts.tip("events", ","), parts.tip("share", ".1%")],
    ).properties(height=alt.Step(22))  # fmt: skip
    parts.on_click(
        chart, ["trigger_source", "event_type"], "by trigger", "Share of the events by trigger and type",
        lambda mark: choose(trigger=mark["trigger_source"], event=mark["event_type"]),
    )  # fmt: skip
    parts.show_table(
        found, "triggers", "", lambda row: go(trigger=row.trigger_source, event=row.event_type),
        trigger_source="Trigger", event_type="Event", events=parts.number("Events"), share=parts.share("Share"),
    )  # fmt: skip
    trigger, event = (st.session_state[in_url(key)] for key in ("trigger", "event"))
    if trigger and event:
        st.markdown(f"**{event} by {trigger}**: the households with the most")
        parts.show_table(
            stored(HOUSEHOLDS_BY_TRIGGER, trigger=trigger, event=event, **view.parameters()), f"{event} by {trigger}",
            "None in this range.", parts.open_household, household_id="Household", events=parts.number("Events"),
        )  # fmt: skip


def show_days(view: View) -> None:
    st.markdown("**By day**, the 30 days up to the end of the range, household's days")
    found = stored(DAYS, **view.parameters())
    found["bucket"] = parts.as_utc(found.bucket)
    by_type = found.melt("bucket", list(parts.EVENT_COLOURS), var_name="event", value_name="events")
    chart = alt.Chart(by_type).mark_bar().encode(
        x=alt.X("utcyearmonthdate(bucket):T", title=None, axis=alt.Axis(format="%b %d")),
        y=alt.Y("events:Q", title="events"),
        color=parts.colour("event", parts.EVENT_COLOURS),
        tooltip=[alt.Tooltip("bucket:T", title="day", format="%Y-%m-%d"), "event", parts.tip("events", ",")],
    ).properties(height=200)  # fmt: skip
    if view.is_local:
        st.altair_chart(chart, alt="Events by day and type")
    else:
        parts.on_click(
            chart, ["bucket"], "by day", "Events by day and type", lambda mark: parts.zoom(mark, 24 * parts.HOUR)
        )


show(st.session_state["view"])
