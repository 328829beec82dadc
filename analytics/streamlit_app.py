"""The Smart Access dashboard: is the fleet well, does the data flow, does the ledger balance.

    streamlit run analytics/streamlit_app.py          http://127.0.0.1:8501

The pill and the latest events tick every 2 seconds, the rest every 15; all viewers share each answer. It reads the
live tables and marts.fct_device_daily_summary by libpq's variables (PGHOST …), and changes nothing. Where something is
missing (no server, no tables, no rows, no marts) it says what to do next.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

import dashboard_queries as queries
import pipeline_settings

RANGES = {"Last hour": ("1 hour", "1 minute"), "Last 24 hours": ("24 hours", "15 minutes")}
# told apart by lightness too, on a light and on a dark page
COLOURS = {"open": "#3b82f6", "close": "#94a3b8", "fail": "#ea580c"}
MARTS_TITLE = "Most failures, last 7 days"
# SQLSTATEs; psycopg2 has none for a connection that could not be made
QUERY_CANCELED = "57014"
NO_SUCH_TABLE = ("42P01", "3F000")
UNAVAILABLE = ("08", "28", "3D", "53", "57")


@st.cache_resource
def engine() -> Engine:
    return queries.connect()


@st.cache_data(ttl=1, show_spinner=False)
def live(query: str, **parameters: Any) -> pd.DataFrame:
    return queries.fetch(engine(), query, parameters)


@st.cache_data(ttl=10, show_spinner=False)
def recent(query: str, **parameters: Any) -> pd.DataFrame:
    return queries.fetch(engine(), query, parameters)


@contextmanager
def next_step_instead_of_a_traceback(said_above: bool = False) -> Iterator[None]:
    """Shows what to do about a database that is away, empty or slow. Any other error is a bug and stays one.

    said_above: another tile asks the same database first and tells of what concerns them all.
    """
    try:
        yield
    except DBAPIError as error:
        code = getattr(error.orig, "pgcode", None)
        if code == QUERY_CANCELED:
            st.warning(f"**A query took longer than {queries.TIME_LIMIT_S} s** and was stopped. Try a shorter range.")
        elif code in NO_SUCH_TABLE:
            if not said_above:
                st.info(
                    f"**The tables are not there yet** in {database()}. Start the consumer once, it creates them:\n\n"
                    "    python streaming/kafka_consumer.py"
                )
        elif code is None or code[:2] in UNAVAILABLE:
            if not said_above:
                st.error(
                    f"**PostgreSQL cannot be reached** at {database()}: {str(error.orig).strip().splitlines()[0]}\n\n"
                    "Start it with `scripts/stack up`, or name the right one with PGHOST, PGPORT, PGDATABASE, PGUSER "
                    "and PGPASSWORD. This page comes back by itself."
                )
        else:
            raise


def database() -> str:
    server = pipeline_settings.postgres_parameters()
    return f"{server['PGHOST']}:{server['PGPORT']}/{server['PGDATABASE']}"


def age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def moment(at: pd.Timestamp, now: pd.Timestamp) -> str:
    return f"{at:%H:%M:%S} UTC" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def show_freshness(found: pd.DataFrame) -> None:
    """The pill: green below a minute, amber below five, red beyond, and the same in words."""
    checked_at, newest_at = found.loc[0, ["checked_at", "newest_at"]]
    behind = (checked_at - newest_at).total_seconds()
    text = f"data to {moment(newest_at, checked_at)}, {age(behind)} behind"
    if behind < 60:
        st.badge(f"Live: {text}", color="green", icon=":material/check_circle:")
    elif behind < 300:
        st.badge(f"Delayed: {text}", color="orange", icon=":material/schedule:")
    else:
        st.badge(f"Stale: {text}", color="red", icon=":material/error:")


def newest(query: str, enough: int) -> pd.DataFrame:
    """What the query finds in the shortest span that holds enough rows, or in all of history."""
    rows = pd.DataFrame()
    for span in queries.SPANS:
        rows = (live if span == queries.SPANS[0] else recent)(query, span=span)
        if len(rows) >= enough:
            break
    return rows


@st.fragment(run_every=2)
def freshness_tile() -> None:
    with next_step_instead_of_a_traceback():
        found = newest(queries.FRESHNESS, enough=1)
        if len(found):
            show_freshness(found)
            return
        st.badge("No data yet", color="gray", icon=":material/hourglass_empty:")
        st.info(
            "**Nothing has been stored yet.** Start the consumer and the producer, each in a terminal:\n\n"
            "    python streaming/kafka_consumer.py\n    python streaming/kafka_producer.py"
        )


@st.fragment(run_every=2)
def latest_events_tile() -> None:
    with next_step_instead_of_a_traceback(said_above=True):
        latest = newest(queries.LATEST_EVENTS, enough=20)
        if latest.empty:
            return
        st.subheader("Latest events")
        show_table(
            latest,
            event_ts=st.column_config.DatetimeColumn("Happened (UTC)", format="YYYY-MM-DD HH:mm:ss"),
            event_type="Event",
            device_id="Device",
            household_id="Household",
            trigger_source="Trigger",
            seconds_to_row=st.column_config.NumberColumn("Seconds to row", format="%.3f"),
        )


def show_table(rows: pd.DataFrame, **columns: Any) -> None:
    st.dataframe(rows, column_config=columns, column_order=list(columns), hide_index=True)


def show_kpis() -> None:
    interval = float(os.environ.get("HEALTH_CHECK_INTERVAL") or 30)
    kpi = recent(queries.KPIS, health_interval_s=interval).iloc[0]
    tiles = st.container(horizontal=True)
    tiles.metric("Devices", f"{kpi.devices:,}", border=True)
    tiles.metric(
        "Online",
        f"{kpi.online / kpi.devices:.0%}" if kpi.devices else "–",
        help=f"Share of devices that reported themselves online within the last {2.5 * interval:g} s",
        border=True,
    )
    tiles.metric("Events, 24 h", f"{kpi.events:,}", border=True)
    tiles.metric(
        "Fail rate, 24 h",
        f"{kpi.fails / kpi.attempts:.1%}" if kpi.attempts else "–",
        help="fails / (opens + fails); – without an attempt",
        border=True,
    )
    tiles.metric("Dead letters", f"{kpi.dead_letters:,}", help="Records set aside and not yet replayed", border=True)


def show_events_over_time() -> None:
    st.subheader("Events over time")
    chosen = st.segmented_control("Range", RANGES, default="Last hour", label_visibility="collapsed", required=True)
    span, width = RANGES[chosen]
    events = recent(queries.EVENTS_OVER_TIME, span=span, bin=width)
    if events.empty:
        st.info(f"No events in the {chosen.lower()}.")
        return
    chart = (
        alt.Chart(events)
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X(
                "since:T",
                title=f"per {width.removeprefix('1 ')}, UTC",
                scale=alt.Scale(type="utc"),
                axis=alt.Axis(format="%H:%M"),
            ),
            x2="until:T",
            y=alt.Y("sum(events):Q", title="events"),
            color=alt.Color(
                "event_type:N",
                title=None,
                scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=[
                alt.Tooltip("since:T", title="from, UTC", format="%Y-%m-%d %H:%M"),
                alt.Tooltip("event_type:N", title="event"),
                alt.Tooltip("events:Q"),
            ],
        )
        .properties(height=240)
    )
    st.altair_chart(chart, alt=f"Events by type, {chosen.lower()}: {events.events.sum():,} in all")


def show_ledger() -> None:
    ledger = recent(queries.LEDGER)
    st.subheader("Ledger")
    if ledger.empty:
        st.caption("No partition has been consumed yet.")
        return
    if ledger.balanced.all():
        st.success("Balanced: stored + duplicates + dead + gaps = consumed, on every partition.")
    else:
        st.error(f"**Out of balance**: {', '.join(ledger.topic[~ledger.balanced])}. No offset may be unaccounted for.")
    counts = ["partitions", "consumed", "stored", "duplicates", "dead", "gaps"]
    numbers = {name: st.column_config.NumberColumn(name.capitalize(), format="localized") for name in counts}
    show_table(ledger, topic="Topic", **numbers, balanced="Balanced")


def show_marts() -> None:
    try:
        found = recent(queries.MART_FRESHNESS)
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) not in NO_SUCH_TABLE:
            raise
        st.subheader(MARTS_TITLE)
        st.info(
            "**dbt has not run yet.** Enable the DAG `smart_access_streaming_pipeline` in Airflow, or run it here:\n\n"
            "    python dbt/one_at_a_time.py build --selector models"
        )
        return
    st.subheader(MARTS_TITLE)
    checked_at, newest_at = found.loc[0, ["checked_at", "newest_at"]]
    if pd.isna(newest_at):
        st.caption("dbt has run, on empty tables. Its next run takes what has arrived since.")
        return
    behind = (checked_at - newest_at).total_seconds()
    st.caption(f"From the marts: data to {moment(newest_at, checked_at)}, {age(behind)} behind; dbt runs every 15 min.")
    devices = recent(queries.WORST_DEVICES)
    if devices.empty:
        st.caption("No device failed.")
        return
    show_table(
        devices,
        device_id="Device",
        attempts="Attempts",
        fails="Fails",
        fail_rate=st.column_config.NumberColumn("Fail rate", format="percent"),
        battery_min_pct=st.column_config.NumberColumn("Lowest battery, %", format="%.0f"),
    )


@st.fragment(run_every=15)
def fleet_tile() -> None:
    with next_step_instead_of_a_traceback(said_above=True):
        show_kpis()
        show_events_over_time()


@st.fragment(run_every=15)
def pipeline_tile() -> None:
    with next_step_instead_of_a_traceback(said_above=True):
        left, right = st.columns(2)
        with left:
            show_ledger()
        with right:
            show_marts()


st.set_page_config(page_title="Smart Access", page_icon="🔐", layout="wide")
st.title("Smart Access")
freshness_tile()
fleet_tile()
latest_events_tile()
pipeline_tile()
