"""Does the data flow, and is every record accounted for."""

from __future__ import annotations

import altair as alt
import pandas as pd
import streamlit as st

import dashboard_parts as parts
import dashboard_words as words
from dashboard_parts import recent, stored
from dashboard_url import go, in_url
from dashboard_view import View

# What the consumers did, by the minute: live, as the sink writes it with the rows.
RATE = """
SELECT date_bin(%(width)s::interval, minute_starts_at, 'epoch') AS bucket, outcome, sum(records)::bigint AS records
FROM live.minutes,
LATERAL (VALUES ('stored', stored), ('duplicate', duplicates), ('dead', dead)) AS outcomes (outcome, records)
WHERE minute_starts_at >= %(since)s AND minute_starts_at < %(until)s
GROUP BY 1, outcome
ORDER BY 1, outcome
"""

# Percentiles of a longer bucket cannot be had from those of its minutes: the worst minute stands for it.
LAG = """
SELECT date_bin(%(width)s::interval, minute_starts_at, 'epoch') AS bucket, stream,
       max(lag_p50_seconds) AS p50, max(lag_p95_seconds) AS p95, max(lag_p99_seconds) AS p99,
       sum(rows_in)::bigint AS rows_in, sum(late_rows)::bigint AS late_rows
FROM marts.rpt_pipeline_health
WHERE minute_starts_at >= %(since)s AND minute_starts_at < %(until)s
GROUP BY 1, stream
ORDER BY 1, stream
"""

LEDGER = """
SELECT consumer_group, topic, partition, consumed, stored, duplicates, dead, gaps, suppressed, balanced, updated_at,
       left(cluster_id, 6) AS cluster
FROM live.ledger
ORDER BY balanced, topic, partition, consumer_group, cluster_id
"""

DEAD_LETTERS = """
SELECT reason, topic, count(*) AS records, count(*) FILTER (WHERE fate IS NULL) AS unsettled,
       max(created_at) AS newest, (array_agg(detail ORDER BY created_at DESC))[1] AS example
FROM live.dead_letters
WHERE fate IS NULL OR created_at >= %(since)s
GROUP BY reason, topic
ORDER BY unsettled DESC, records DESC, reason, topic
"""

DEAD_LETTERS_OF = """
SELECT created_at, detail, coalesce(fate, 'unsettled') AS fate,
       coalesce(source_file || ', line ' || source_line, topic || ' ' || partition || ', offset ' || "offset") AS origin
FROM live.dead_letters
WHERE reason = %(reason)s AND topic = %(topic)s AND (fate IS NULL OR created_at >= %(since)s)
ORDER BY created_at DESC, dead_letter_id DESC
LIMIT %(most)s
"""

DBT_RUNS = """
SELECT started_at, command, succeeded, failed, skipped, first_error,
       extract(epoch FROM ended_at - started_at)::float8 AS seconds
FROM intermediate.dbt_runs
ORDER BY started_at DESC
LIMIT 20
"""

MOST = 200
POWERS_OF_TEN = [10.0**power for power in range(-3, 7)]
COUNTS = ("consumed", "stored", "duplicates", "dead", "gaps", "suppressed")
OUTCOMES = {"stored": "#3b82f6", "duplicate": "#94a3b8", "dead": "#dc2626"}


def show(view: View) -> None:
    st.caption("The filters choose devices; the pipeline is the same for all of them. The range applies.")
    show_ledger()
    left, right = st.columns(2)
    with left:
        show_rate(view)
    with right:
        show_lag(view)
    left, right = st.columns(2)
    with left:
        show_dead_letters(view)
    with right:
        show_dbt_runs()


def show_ledger() -> None:
    ledger = recent(LEDGER)
    st.markdown("**Ledger**, by partition, live")
    if ledger.empty:
        st.caption("No partition has been consumed yet.")
        return
    unbalanced = ledger[~ledger.balanced]
    if unbalanced.empty:
        st.success(f"Balanced: {' + '.join(COUNTS[1:])} = consumed, on all {len(ledger)} partitions.")
    else:
        named = ", ".join(
            f"{topic}[{partition}]" for topic, partition in zip(unbalanced.topic, unbalanced.partition, strict=True)
        )
        st.error(f"**Out of balance**: {named}. No offset may be unaccounted for.")
    with parts.tiles():
        for name in COUNTS:
            parts.tile(name.capitalize(), f"{ledger[name].sum():,}")
    ledger["at"] = ledger.updated_at.dt.strftime("%Y-%m-%d %H:%M:%S")
    counts = {name: parts.number(name.capitalize()) for name in COUNTS}
    parts.show_table(
        ledger, "ledger", "", height=250 if len(ledger) > 6 else "auto",
        topic="Topic", partition=parts.number("Partition"), **counts, balanced="Balanced", at="Last write (UTC)",
        consumer_group="Group", cluster="Cluster",
    )  # fmt: skip


def width(view: View) -> pd.Timedelta:
    length = view.until - view.since
    steps = [pd.Timedelta(minutes=1), pd.Timedelta(minutes=15), pd.Timedelta(hours=1), pd.Timedelta(hours=6)]
    return next((step for step in steps if length / step <= 200), pd.Timedelta(days=1))


def show_rate(view: View) -> None:
    step = width(view)
    st.markdown(f"**Records consumed** per {words.age(step.total_seconds())}, live")
    bounds = {"width": step.to_pytimedelta(), "since": view.since, "until": view.until}
    found = recent(RATE, **bounds)
    if found.empty:
        st.caption("Nothing was consumed in this range.")
        return
    found["bucket_ends"] = found.bucket + step
    chart = alt.Chart(found).mark_bar(orient="vertical", binSpacing=1).encode(
        x=parts.time_axis(view, title="UTC"), x2="bucket_ends:T",
        y=alt.Y("records:Q", title="records"),
        color=parts.colour("outcome", OUTCOMES),
        tooltip=[parts.FROM, "outcome", parts.tip("records", ",")],
    ).properties(height=230)  # fmt: skip
    total = found.groupby("outcome").records.sum()
    said = ", ".join(f"{total.get(outcome, 0):,} {outcome}" for outcome in OUTCOMES)
    parts.on_click(
        chart, ["bucket"], "rate", f"Records consumed over time: {said}", lambda mark: parts.zoom(mark, step)
    )
    st.caption(f"{said}.")


def show_lag(view: View) -> None:
    st.markdown("**From event to row**, seconds, from the marts")
    step = width(view)
    with parts.next_step_instead_of_a_traceback():
        found = stored(LAG, width=step.to_pytimedelta(), since=view.since, until=view.until)
        if found.empty:
            st.caption("Nothing arrived in this range, or dbt has not taken it in yet.")
            return
        long = found.melt(["bucket", "stream"], ["p50", "p95", "p99"], var_name="percentile", value_name="seconds")
        long["seconds"] = long.seconds.clip(lower=0.001)  # a clock that runs ahead; the axis is logarithmic
        chart = alt.Chart(long).mark_line(point={"size": 10}).encode(
            x=parts.time_axis(view, title="UTC"),
            y=alt.Y("seconds:Q", title="seconds", scale=alt.Scale(type="log"), axis=alt.Axis(values=POWERS_OF_TEN)),
            color=alt.Color("percentile:N", title=None, legend=alt.Legend(orient="top"),
                            scale=parts.colours({"p50": "#3b82f6", "p95": "#d97706", "p99": "#dc2626"})),
            strokeDash=alt.StrokeDash("stream:N", title=None, legend=alt.Legend(
                orient="top", symbolType="stroke", symbolStrokeColor=parts.GREY, symbolFillColor=parts.GREY)),
            tooltip=[parts.FROM, "stream", "percentile",
                     parts.tip("seconds", ".3f")],
        ).properties(height=230)  # fmt: skip
        st.altair_chart(chart, alt="Seconds from event to row: p50, p95 and p99 of each stream")
        worst = found.p99.max()
        st.caption(f"Worst p99: {worst:,.3f} s. Late rows: {found.late_rows.sum():,} of {found.rows_in.sum():,}.")


def show_dead_letters(view: View) -> None:
    st.markdown("**Dead letters**, unsettled or of this range")
    found = recent(DEAD_LETTERS, since=view.since)
    found["at"] = pd.to_datetime(found.newest, utc=True).dt.strftime("%Y-%m-%d %H:%M:%S")
    parts.show_table(
        found, "dead letters", "None: every record was fit to be stored.",
        lambda row: go(reason=row.reason, topic=row.topic), reason="Reason", topic="Topic",
        records=parts.number("Records"), unsettled=parts.number("Unsettled"), at="Newest (UTC)", example="For example",
    )  # fmt: skip
    reason, topic = (st.session_state[in_url(key)] for key in ("reason", "topic"))
    if reason and topic:
        st.markdown(f"**{reason} of {topic}**, the newest first")
        letters = recent(DEAD_LETTERS_OF, reason=reason, topic=topic, since=view.since, most=MOST)
        letters["at"] = pd.to_datetime(letters.created_at, utc=True).dt.strftime("%Y-%m-%d %H:%M:%S")
        parts.show_table(
            letters, f"{reason} of {topic}", "None in this range.", most=MOST, at="Refused (UTC)",
            detail="What was wrong", origin="Where it came from", fate="Fate",
        )  # fmt: skip
    if len(found):
        st.caption(
            "`python streaming/replay_dead_letters.py list` shows them; `replay` tries them anew once their cause is "
            "mended."
        )


def show_dbt_runs() -> None:
    st.markdown("**Last runs of dbt**")
    with parts.next_step_instead_of_a_traceback():
        found = recent(DBT_RUNS)
        if found.empty:
            st.caption("None yet.")
            return
        found["at"] = found.started_at.dt.strftime("%Y-%m-%d %H:%M:%S")
        found["result"] = ["failed" if failed else "success" for failed in found.failed]
        parts.show_table(
            found, "dbt runs", "", at="Started (UTC)", command="Command", result="Result",
            seconds=parts.number("Seconds", "%.0f"), succeeded=parts.number("Done"), failed=parts.number("Failed"),
            skipped=parts.number("Skipped"), first_error="First error",
        )  # fmt: skip


show(st.session_state["view"])
