"""What the pages are made of: the cached way to the database, its failures in words, tables, tiles and charts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import altair as alt
import pandas as pd
import streamlit as st
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

import dashboard_queries as queries
import pipeline_settings
from dashboard_url import go
from dashboard_view import View, narrow_range
from dashboard_words import age, moment

# told apart by lightness too, on a light and on a dark page
EVENT_COLOURS = {"open": "#3b82f6", "close": "#94a3b8", "fail": "#ea580c"}
SEVERITIES = ["critical", "warning", "info"]
SEVERITY_COLOURS = {"critical": "#dc2626", "warning": "#d97706", "info": "#64748b"}
STATE_COLOURS = {"open": "#ea580c", "closed": "#3b82f6", "offline": "#94a3b8"}
GREY = "#94a3b8"
HOUR = pd.Timedelta(hours=1)
SMALL_SAMPLE = 20  # attempts; below, a rate says little

# SQLSTATEs; psycopg2 has none for a connection that could not be made
QUERY_CANCELED = "57014"
NO_SUCH_TABLE = ("42P01", "3F000")
NO_SUCH_ROLE = "22023"
NOT_ALLOWED = "42501"
UNAVAILABLE = ("08", "28", "3D", "53", "57")
START_CONSUMER = "    python streaming/kafka_consumer.py"
RUN_DBT = (
    "Enable the DAG `smart_access_streaming_pipeline` in Airflow, or run it here:\n\n"
    "    python dbt/one_at_a_time.py build --selector models"
)


@st.cache_resource
def engine() -> Engine:
    return queries.connect()


@st.cache_data(ttl=1, show_spinner=False)
def live(query: str, **parameters: Any) -> pd.DataFrame:
    """Rows that may be a second old; all viewers share them."""
    return queries.fetch(engine(), query, parameters)


@st.cache_data(ttl=10, show_spinner=False)
def recent(query: str, **parameters: Any) -> pd.DataFrame:
    """Rows that may be ten seconds old."""
    return queries.fetch(engine(), query, parameters)


@st.cache_data(ttl=60, show_spinner=False)
def stored(query: str, **parameters: Any) -> pd.DataFrame:
    """Rows of the marts, which change every 15 minutes: they may be a minute old."""
    return queries.fetch(engine(), query, parameters)


@contextmanager
def next_step_instead_of_a_traceback(said_above: bool = False, marts_said_below: bool = False) -> Iterator[None]:
    """Shows what to do about a database that is away, empty or slow. Any other error is a bug and stays one.

    said_above: another tile asks the same database first and tells of what concerns them all.
    marts_said_below: a later tile tells of marts that are not there.
    """
    try:
        yield
    except DBAPIError as error:
        code = getattr(error.orig, "pgcode", None)
        reason = str(error.orig).strip().splitlines()[0]
        if code == QUERY_CANCELED:
            st.warning(
                f"**A query took longer than {queries.TIME_LIMIT_S} s** and was stopped. Try a shorter range or fewer "
                "devices."
            )
        elif said_above and _concerns_all(code, reason):
            return
        elif code in NO_SUCH_TABLE and _is_of_dbt(reason):
            if not marts_said_below:
                st.info(f"**dbt has not run yet**: there are no marts in {database()}. {RUN_DBT}")
        elif code in NO_SUCH_TABLE:
            st.info(
                f"**The tables are not there yet** in {database()}. Start the consumer once, it creates them:\n\n"
                f"{START_CONSUMER}"
            )
        elif code == NO_SUCH_ROLE:
            st.info(
                f"**The role {queries.ROLE} is not there yet** in {database()}. Start the consumer once, it creates it "
                f"with the tables, or have the server's owner run streaming/sql/live_views.sql:\n\n{START_CONSUMER}"
            )
        elif code == NOT_ALLOWED:
            st.error(
                f"**PGUSER may not read what the dashboard shows**: {reason}. As the server's owner:\n\n"
                f"    GRANT {queries.ROLE} TO <PGUSER>\n\nIf it is about a mart, the next run of dbt opens it."
            )
        elif code is None or code[:2] in UNAVAILABLE:
            st.error(
                f"**PostgreSQL cannot be reached** at {database()}: {reason}\n\n"
                "Start it with `scripts/stack up`, or name the right one with PGHOST, PGPORT, PGDATABASE, PGUSER "
                "and PGPASSWORD. This page comes back by itself."
            )
        else:
            raise


def _is_of_dbt(reason: str) -> bool:
    return '"marts.' in reason or '"intermediate.' in reason


def _concerns_all(code: str | None, reason: str) -> bool:
    no_tables = code in NO_SUCH_TABLE and not _is_of_dbt(reason)
    return no_tables or code == NO_SUCH_ROLE or code is None or code[:2] in UNAVAILABLE


def database() -> str:
    server = pipeline_settings.postgres_parameters()
    return f"{server['PGHOST']}:{server['PGPORT']}/{server['PGDATABASE']}"


def pill(kind: str, found: pd.DataFrame, green_s: float = 60, amber_s: float = 300) -> None:
    """How old the data is: green, amber and red, and the same in words.

    found: one row of checked_at and newest_at. green_s, amber_s: seconds below which it is fresh, or only delayed.
    """
    checked_at, newest_at = found.loc[0, ["checked_at", "newest_at"]]
    behind = (checked_at - newest_at).total_seconds()
    text = f"data to {moment(newest_at, checked_at)}, {age(behind)} behind"
    if behind < green_s:
        st.badge(f"{kind}: {text}", color="green", icon=":material/check_circle:")
    elif behind < amber_s:
        st.badge(f"{kind} delayed: {text}", color="orange", icon=":material/schedule:")
    else:
        st.badge(f"{kind} stale: {text}", color="red", icon=":material/error:")


# How long two slow cores take to draw a row of numbers: benchmarks/RESULTS.md
FIRST_PAINT_S = 0.5
Tone = Literal["normal", "inverse", "off"]


@contextmanager
def tiles() -> Iterator[None]:
    """A page's row of numbers. To a new visitor all that follows comes FIRST_PAINT_S later: the browser draws at once
    what arrives at once, and would load the controls', tables' and charts' own programs before the first number."""
    with st.container(horizontal=True):
        yield
    if not st.session_state.get("numbers drawn"):
        st.session_state["numbers drawn"] = True
        time.sleep(FIRST_PAINT_S)


def tile(
    label: str, value: str, note: str | None = None, *, tone: Tone = "off", is_change: bool = False,
    help: str | None = None,
) -> None:  # fmt: skip
    """A number, in a row of `tiles`.

    note: below it. is_change: the note is the change on the period before, and has an arrow. tone: inverse where more
    is bad, normal where it is good, off where it is neither.
    """
    if is_change:
        help = ". ".join(filter(None, (help, "Below: the change on the period before")))
    st.metric(
        label, value, note, delta_color=tone, delta_arrow="auto" if is_change else "off", help=help, border=True,
        height="stretch",
    )  # fmt: skip


# --- tables ---


def show_table(
    rows: pd.DataFrame, name: str, empty: str, open_row: Callable[[pd.Series], None] | None = None,
    height: Any = "auto", most: int = 0, **columns: Any,
) -> None:  # fmt: skip
    """A table with its CSV, or what it means that it is empty.

    name: of the file, and of the table for a screen reader. columns: column → heading or column_config, those shown.
    open_row: called with the row that the viewer selects. most: of which the query returns no more, if it has a limit.
    """
    if rows.empty:
        st.caption(empty)
        return
    # a selection is a row's number: where the rows are others it must not stay
    key = f"table {name} {hash(tuple(map(str, rows.iloc[:, 0])))}"
    selection: Any = st.dataframe(
        rows, column_config=columns, column_order=list(columns), hide_index=True, key=key, height=height, alt=name,
        on_select="rerun" if open_row else "ignore", selection_mode="single-row",
    )  # fmt: skip
    below = st.container(horizontal=True, vertical_alignment="center")
    below.download_button(
        "CSV", rows[list(columns)].to_csv(index=False), f"{name.replace(' ', '_')}.csv", "text/csv",
        key=f"csv {name}", icon=":material/download:", type="tertiary", on_click="ignore", help=f"{name} as CSV",
    )  # fmt: skip
    if len(rows) == most:
        below.caption(f"The first {most:,}: a shorter range or a filter shows the rest.")
    if open_row:
        below.caption("Select a row to open it.")
        # a selection stays until another is made, but leads somewhere once
        chosen, acted = selection.selection.rows, f"acted on {key}"
        if chosen != st.session_state.get(acted, []):
            st.session_state[acted] = chosen
            if chosen:
                open_row(rows.iloc[chosen[0]])


def open_device(row: pd.Series) -> None:
    """Goes to the device's own view; the range, the clock and the filters go along."""
    go("dashboard_pages/devices.py", device=row.device_id)


def open_household(row: pd.Series) -> None:
    """Goes to the household's devices."""
    go("dashboard_pages/devices.py", household=[row.household_id])


def number(label: str, form: str = "localized") -> Any:
    return st.column_config.NumberColumn(label, format=form)


def share(label: str) -> Any:
    return number(label, "percent")


# --- charts ---

FROM = alt.Tooltip("bucket:T", title="from", format="%Y-%m-%d %H:%M")


def tip(field: str, form: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", title=field.replace("_", " "), format=form)


def colours(palette: dict[str, str]) -> alt.Scale:
    return alt.Scale(domain=list(palette), range=list(palette.values()))


def colour(field: str, palette: dict[str, str]) -> alt.Color:
    return alt.Color(f"{field}:N", title=None, scale=colours(palette), legend=alt.Legend(orient="top"))


def time_axis(view: View, title: str | None = None) -> alt.X:
    """Buckets are times of a wall clock without a zone: drawn as UTC, so that the browser's own does not move them."""
    if title is None:
        title = "household's time" if view.is_local or not view.is_hourly else "UTC"
    return alt.X("bucket:T", title=title or None, scale=alt.Scale(type="utc"), axis=time_labels(view))


def time_labels(view: View) -> alt.Axis:
    """Hours of a short range, days of a long one."""
    is_short = view.until - view.since <= pd.Timedelta(days=2)
    return alt.Axis(format="%H:%M" if is_short else "%b %d", labelOverlap=True)


def wall_clock(view: View, times: pd.Series, time_zone: str) -> pd.Series:
    """Moments on the chosen clock, as the browser takes them. time_zone: of the device's household."""
    at = pd.to_datetime(times, utc=True)
    return at.dt.tz_convert(time_zone).dt.tz_localize(None).dt.tz_localize("UTC") if view.is_local else at


def as_utc(times: pd.Series) -> pd.Series:
    """Wall-clock times as the browser takes them: it would read a time without a zone as its own."""
    return pd.to_datetime(times).dt.tz_localize("UTC")


def zoom(mark: dict[str, Any], step: pd.Timedelta) -> None:
    """As on_click's act: narrows the range to the mark's bucket, or to the hour that it lies in."""
    since = pd.Timestamp(mark["bucket"], unit="ms", tz="UTC")
    until = since + step
    if step < HOUR:
        since = since.floor(HOUR)
        until = since + HOUR
    narrow_range(since.to_pydatetime(), until.to_pydatetime())


def on_click(chart: Any, fields: Sequence[str], key: str, alt_text: str, act: Callable[[dict[str, Any]], None]) -> None:
    """Shows a chart; a click on a mark calls act with the values of its fields, before the page is drawn again."""

    def clicked() -> None:
        chosen = st.session_state[key].selection.get("clicked") or []
        if chosen:
            act(chosen[0])

    pick = alt.selection_point(name="clicked", fields=list(fields))
    st.altair_chart(chart.add_params(pick), key=key, on_select=clicked, selection_mode="clicked", alt=alt_text)
