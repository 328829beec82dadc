"""Every page on the real PostgreSQL: it shows what SQL says, and the filters change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from shown_fleet import PAGES, Fleet, Visit
from streamlit.testing.v1 import AppTest

import dashboard_queries as queries
from dashboard_view import FILTERS, View


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def table(page: AppTest, column: str) -> pd.DataFrame:
    """The first table with this column."""
    return next(each.value for each in page.dataframe if column in each.value)


def said(page: AppTest) -> str:
    kinds = (page.markdown, page.info, page.error, page.warning, page.success, page.caption)
    return "\n".join(element.value for kind in kinds for element in kind)


def count(number: Any) -> str:
    return f"{number:,}"


def test_overview(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, **fleet.link())
    shown = metrics(page)
    devices, online = fleet.ask("""
        SELECT count(*), count(*) FILTER (WHERE is_online AND reported_at > now() - interval '750 seconds')
        FROM (SELECT DISTINCT ON (device_id) device_id, is_online, reported_at FROM raw_device_health
              ORDER BY device_id, reported_at DESC) AS newest""").iloc[0]
    assert shown["Devices online"] == f"{online}/{devices}"
    assert online < devices
    rate = """SELECT count(*) FILTER (WHERE event_type = 'fail')::float8
                     / count(*) FILTER (WHERE event_type IN ('open', 'fail'))
              FROM raw_access_events WHERE event_ts >= %(since)s AND event_ts < %(until)s"""
    assert shown["Fail rate, 24 h"] == f"{fleet.value(rate):.1%}"
    too_long = """SELECT count(*) FROM marts.fct_open_sessions
                  WHERE status = 'still_open' AND now() - opened_at > interval '15 minutes'"""
    assert shown["Open too long now"] == count(fleet.value(too_long)) == "1"
    critical = "SELECT count(*) FROM marts.fct_anomalies WHERE is_open AND severity = 'critical'"
    assert shown["Critical, going on"] == count(fleet.value(critical))
    assert fleet.value(critical) >= 2
    low = "SELECT count(*) FROM marts.fct_battery_forecast WHERE battery_pct <= 20 OR days_to_low <= 14"
    assert shown["Batteries, 14 days"] == count(fleet.value(low))

    by_type = """SELECT event_type, count(*) FROM raw_access_events
                 WHERE event_ts >= %(since)s AND event_ts < %(until)s GROUP BY 1"""
    events = dict(fleet.ask(by_type).itertuples(index=False))
    assert f"{events['open']:,} open, {events['close']:,} close, {events['fail']:,} fail." in said(page)
    latest = table(page, "seconds_to_row")
    assert len(latest) == 20
    assert latest.happened.is_monotonic_decreasing
    worst = table(page, "going_on")
    assert 2 < len(worst) <= 10
    assert set(worst.device_id[:2]) == {"left-open", "silent"}  # the only ones with something going on


def test_anomalies(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, "anomalies", **fleet.link())
    found = fleet.ask("""SELECT * FROM marts.fct_anomalies
                         WHERE (is_open OR started_at >= %(since)s) AND started_at < %(until)s""")
    shown = table(page, "anomaly_id")
    assert set(shown.anomaly_id) == set(found.anomaly_id)
    for severity in ("critical", "warning", "info"):
        assert metrics(page)[severity.capitalize()] == count((found.severity == severity).sum())
    bursts = shown[shown.rule == "failed_burst"]
    assert bursts[["device_id", "severity", "evidence"]].values.tolist() == [
        ["draining", "critical", "12 failures in 4 min"]
    ]

    page = visit(fleet.environment, "anomalies", **fleet.link(), severity="critical", rule="failed_burst")
    assert list(table(page, "anomaly_id").rule) == ["failed_burst"]
    page.toggle[0].set_value(True).run()
    assert "None with these severities and rules." in said(page)


def test_devices(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, "devices", **fleet.link())
    shown = table(page, "presence").set_index("device_id")
    assert len(shown) == fleet.value("SELECT count(*) FROM marts.rpt_device_current")
    assert (shown.loc["left-open", "presence"], shown.loc["left-open", "state"]) == ("online", "open")
    assert (shown.loc["silent", "presence"], shown.loc["silent", "state"]) == ("offline", "unknown")


@pytest.mark.parametrize(("device_id", "door"), [("left-open", "open"), ("silent", "unknown"), ("draining", "closed")])
def test_one_device(fleet: Fleet, visit: Visit, device_id: str, door: str) -> None:
    page = visit(fleet.environment, "devices", **fleet.link(), device=device_id)
    assert page.selectbox(key="device").value == device_id
    assert metrics(page)["Door"] == door
    happened = fleet.value(
        """SELECT count(*) FROM raw_access_events
           WHERE device_id = %(device_id)s AND event_ts >= %(since)s AND event_ts < %(until)s""", device_id=device_id
    )  # fmt: skip
    assert len(table(page, "seconds_to_row")) == happened
    assert "trouble · gate · Gate X · 1.0 · Nowhere · Asia/Kathmandu" in said(page)


def test_a_device_that_nobody_knows(fleet: Fleet, visit: Visit) -> None:
    assert "**No device gone** in the marts." in said(visit(fleet.environment, "devices", device="gone"))


def test_households(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, "households", **fleet.link())
    shown = table(page, "opens").set_index("household_id")
    found = fleet.ask("""
        SELECT household_id, count(DISTINCT device_id) AS devices, sum(opens) AS opens, sum(fails) AS fails
        FROM marts.fct_device_daily_summary JOIN marts.rpt_device_current USING (device_id)
        WHERE local_date BETWEEN (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
                             AND (%(until)s::timestamptz AT TIME ZONE 'UTC')::date
        GROUP BY 1""").set_index("household_id")
    assert metrics(page)["Households"] == count(len(found)) == "9"
    for name in ("devices", "opens", "fails"):
        assert shown[name].to_dict() == found[name].astype(int).to_dict()


def test_access(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, "access", **fleet.link())
    found = fleet.ask("""SELECT count(*) FILTER (WHERE event_type = 'open') AS opens,
                                count(*) FILTER (WHERE event_type = 'close') AS closes,
                                count(*) FILTER (WHERE event_type = 'fail') AS fails
                         FROM raw_access_events WHERE event_ts >= %(since)s AND event_ts < %(until)s""").iloc[0]
    shown = metrics(page)
    assert [shown[name] for name in ("Opens", "Closes", "Fails")] == [count(found[name]) for name in found.index]
    by_model = table(page, "sample").set_index("model")
    assert by_model.fails.sum() == found.fails
    assert by_model.attempts.sum() == found.opens + found.fails
    assert by_model.loc["Gate X", "sample"] == "small sample"  # 12 failures and 2 or 3 opens
    assert table(page, "trigger_source").share.sum() == pytest.approx(1)

    page.segmented_control(key="by").set_value("region").run()
    assert table(page, "sample").set_index("region").loc["Nowhere", "fails"] == 12


def test_batteries(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, "batteries")
    found = fleet.ask("SELECT device_id, band FROM marts.fct_battery_forecast")
    urgent = found[~found.band.isin(["later", "unknown"])]
    shown = table(page, "days_to_empty")
    assert set(shown.device_id) == set(urgent.device_id)
    assert "draining" in set(shown.device_id)
    assert shown.days_to_empty.dropna().is_monotonic_increasing
    assert metrics(page)["Later"] == count((found.band == "later").sum())
    assert (
        len(table(visit(fleet.environment, "batteries", band="later"), "days_to_empty"))
        == (found.band == "later").sum()
    )


def test_connectivity(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, "connectivity", **fleet.link())
    uptime = """SELECT 1 - sum(offline_minutes) / sum(observed_minutes) FROM marts.fct_device_daily_summary
                WHERE local_date BETWEEN (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
                                     AND (%(until)s::timestamptz AT TIME ZONE 'UTC')::date"""
    assert metrics(page)["Uptime"] == f"{fleet.value(uptime):.2%}"
    silent = set(fleet.ask("SELECT device_id FROM marts.fct_offline_sessions WHERE ended_at IS NULL").device_id)
    assert set(table(page, "cause").device_id) == silent
    assert "silent" in silent
    assert table(page, "offline_minutes").uptime.is_monotonic_increasing


def test_pipeline(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, "pipeline")
    assert "Balanced" in page.success[0].value
    assert metrics(page) == {
        "Consumed": "67", "Stored": "65", "Duplicates": "0", "Dead": "2", "Gaps": "0", "Suppressed": "0",
    }  # fmt: skip
    ledger = table(page, "balanced")
    assert ledger[["partition", "consumed"]].values.tolist() == [[0, 62], [1, 5]]
    assert "900 stored, 90 duplicate, 180 dead." in said(page)
    dead = table(page, "unsettled").set_index("reason")
    assert dead[["records", "unsettled"]].T.to_dict("list") == {"bad_json": [2, 2], "bad_time": [2, 1]}
    runs = table(page, "command")
    assert (runs.command[0], runs.result[0]) == ("build", "success")
    assert "Worst p99:" in said(page)


def number_of(page: AppTest, name: str) -> int:
    """What of a page must be less for one household than for the fleet."""
    if name == "overview":
        return int(metrics(page)["Devices online"].split("/")[1])
    columns = {"anomalies": "anomaly_id", "devices": "presence", "households": "opens", "batteries": "days_to_empty"}
    if name in columns:
        return len(table(page, columns[name]))
    return int(metrics(page)["Opens"].replace(",", "")) if name == "access" else len(table(page, "offline_minutes"))


@pytest.mark.parametrize("name", [page for page in PAGES if page != "pipeline"])
@pytest.mark.parametrize(
    "chosen", [{"household": "trouble"}, {"region": "Nowhere"}, {"device_type": "gate", "model": "Gate X"}], ids=str
)
def test_a_filter_changes_what_a_page_counts(fleet: Fleet, visit: Visit, name: str, chosen: dict[str, str]) -> None:
    everything = visit(fleet.environment, name, **fleet.link())
    page = visit(fleet.environment, name, **fleet.link(), **chosen)
    assert 0 < number_of(page, name) < number_of(everything, name)
    assert "Showing only" in said(page)
    page.button[0].click().run()
    assert number_of(page, name) == number_of(everything, name)


HOURS = {
    "access": "SELECT {bucket} AS at, sum(opens), sum(closes), sum(fails), sum(attempts), sum(late_events)"
    " FROM {access_hours} WHERE opens + closes + fails > 0 GROUP BY 1 ORDER BY 1",
    "health": "SELECT DISTINCT {bucket} AS at FROM {health_hours} ORDER BY 1",
    "signal": "SELECT {bucket} AS at, signal_band, sum(devices) FROM {signal_hours} WHERE devices > 0"
    " GROUP BY 1, 2 ORDER BY 1, 2",
}


@pytest.mark.parametrize("hours", HOURS)
@pytest.mark.parametrize("is_local", [False, True], ids=["UTC", "household's time"])
def test_the_hours_of_the_fleet_are_those_of_all_its_devices(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, hours: str, is_local: bool
) -> None:
    """The ones are read from sums, the others added up."""
    for name, value in fleet.environment.items():
        monkeypatch.setenv(name, value)
    engine = queries.connect()
    regions = list(fleet.ask("SELECT DISTINCT region FROM raw_households").region)
    read = []
    filters: dict[str, list[str]] = {kind: [] for kind in FILTERS}
    for chosen in ([], regions):
        view = View("custom", fleet.since, fleet.until, is_local, filters | {"region": chosen})
        read.append(queries.fetch(engine, HOURS[hours], view.parameters()))
    engine.dispose()
    pd.testing.assert_frame_equal(*read, check_dtype=False)
    assert len(read[0]) > 60  # of three days


def test_a_long_range_counts_failures_by_the_day(fleet: Fleet, visit: Visit) -> None:
    since = fleet.since - pd.Timedelta(days=2)
    link = {**fleet.link(), "from": f"{since:%Y-%m-%dT%H:%M}"}
    days = """SELECT device_id, sum(fails)::int AS fails, sum(opens + fails)::int AS attempts
              FROM marts.fct_device_daily_summary
              WHERE local_date BETWEEN (%(from_day)s::timestamptz AT TIME ZONE 'UTC')::date
                                   AND (%(until)s::timestamptz AT TIME ZONE 'UTC')::date
              GROUP BY 1"""
    found = fleet.ask(days, from_day=since).set_index("device_id")
    by_model = table(visit(fleet.environment, "access", **link), "sample")
    assert (by_model.fails.sum(), by_model.attempts.sum()) == (found.fails.sum(), found.attempts.sum())
    worst = table(visit(fleet.environment, "overview", **link), "going_on").set_index("device_id")
    assert worst.fails.to_dict() == found.fails[worst.index].to_dict()
    assert worst.loc["draining", "fails"] == 12


def test_what_a_bar_stands_for_is_told_below_it(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, "access", **fleet.link(), trigger="app", event="fail")
    households = """SELECT household_id, sum(events)::int AS events FROM marts.fct_triggers_daily
                    WHERE local_date BETWEEN (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
                                         AND (%(until)s::timestamptz AT TIME ZONE 'UTC')::date
                      AND trigger_source = 'app' AND event_type = 'fail' GROUP BY 1"""
    shown = page.dataframe[-1].value.set_index("household_id").events
    assert shown.to_dict() == fleet.ask(households).set_index("household_id").events.to_dict()
    assert shown["trouble"] == 12

    signal, at = fleet.ask("""SELECT signal_dbm, floor(signal_dbm / 5) * 5 FROM marts.rpt_device_current
                              WHERE device_id = 'draining'""").iloc[0]
    page = visit(fleet.environment, "connectivity", **fleet.link(), signal=f"{at:g}", hour="3", band="good")
    weakest = table(page, "signal_band")
    known = """SELECT device_id FROM marts.rpt_device_current
               WHERE signal_dbm >= %(at)s AND signal_dbm < %(at)s + 5"""
    assert set(weakest.device_id) == set(fleet.ask(known, at=float(at)).device_id)
    assert weakest.set_index("device_id").signal_dbm["draining"] == signal
    hours = """SELECT device_id, count(*) FROM marts.fct_device_health_hourly
               WHERE hour_starts_at >= %(since)s AND hour_starts_at < %(until)s AND signal_band = 'good'
                 AND extract(hour FROM hour_starts_at AT TIME ZONE 'UTC') = 3 GROUP BY 1"""
    of_band = table(page, "hours").set_index("device_id").hours
    assert of_band.to_dict() == fleet.ask(hours).set_index("device_id")["count"][of_band.index].to_dict()

    page = visit(fleet.environment, "pipeline", reason="bad_time", topic="smart-access.health")
    assert table(page, "origin")[["origin", "fate"]].values.tolist() == [
        ["smart-access.health 1, offset 4", "replayed"],
        ["smart-access.health 1, offset 3", "unsettled"],
    ]


def test_a_filter_that_fits_nothing_shows_nothing_and_not_everything(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, "devices", region="Atlantis")
    assert "**No device** fits these filters." in said(page)


@pytest.mark.parametrize("name", ["overview", "anomalies", "devices"])
def test_the_clock_can_be_the_households(fleet: Fleet, visit: Visit, name: str) -> None:
    column = {"overview": "happened", "anomalies": "began", "devices": "seen"}[name]

    def times(**more: str) -> pd.Series:
        shown = table(visit(fleet.environment, name, **fleet.link(), household="trouble", **more), column)
        return pd.to_datetime(shown.sort_values(column)[column]).reset_index(drop=True)

    assert set(times(clock="local") - times()) == {pd.Timedelta(hours=5, minutes=45)}


def test_the_urls_range_is_the_pages(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, range="7d", clock="local", household="trouble")
    assert page.selectbox(key="range").value == "7d"
    assert page.multiselect(key="household").value == ["trouble"]
    page.selectbox(key="range").set_value("1h").run()
    assert {name: page.query_params[name] for name in page.query_params} == {
        "range": "1h",
        "clock": "local",
        "household": "trouble",
    }
    page.selectbox(key="range").set_value("24h").run()
    assert "range" not in page.query_params


@pytest.mark.parametrize(
    "parameters",
    [{"range": "a year"}, {"clock": "moon"}, {"range": "custom", "from": "yesterday"}, {"severity": "awful"}],
    ids=str,
)
def test_nonsense_in_the_url_is_ignored(fleet: Fleet, visit: Visit, parameters: dict[str, str]) -> None:
    page = visit(fleet.environment, "anomalies", **parameters)
    assert len(table(page, "anomaly_id"))


def test_a_range_that_ends_before_it_begins_is_said(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment, range="custom", **{"from": "2026-01-02T00:00", "to": "2026-01-01T00:00"})
    assert "**The range is empty**" in page.warning[0].value
    page.datetime_input(key="to").set_value(pd.Timestamp("2026-01-03").to_pydatetime()).run()
    assert not page.warning
    assert page.query_params["to"] == "2026-01-03T00:00"


@pytest.mark.slow
def test_a_list_that_was_cut_says_so_and_its_count_is_that_of_all(
    database: dict[str, str], visit: Visit, execute: Callable[[str], None], build: Callable[[], None]
) -> None:
    execute("""INSERT INTO raw_device_health (device_id, reported_at, is_online, ingested_at)
               SELECT 'lock ' || n, at, false, at
               FROM generate_series(1, 230) AS n, (SELECT now() - interval '1 hour' AS at) AS ago""")
    build()
    page = visit(database, "connectivity")
    assert metrics(page)["Silent at the last run"] == "230"
    assert len(table(page, "cause")) == 200
    assert "The first 200: a shorter range or a filter shows the rest." in said(page)


@pytest.mark.slow
def test_hours_without_any_data_are_told_from_hours_without_events(
    database: dict[str, str], visit: Visit, execute: Callable[[str], None], build: Callable[[], None]
) -> None:
    execute("""INSERT INTO raw_device_health (device_id, reported_at, is_online, ingested_at)
               SELECT 'lock', at, true, at FROM generate_series(1, 10) AS n,
               LATERAL (SELECT date_trunc('hour', now()) - n * interval '1 hour' AS at) AS ago WHERE n NOT IN (4, 5)""")
    execute("""INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, ingested_at)
               SELECT gen_random_uuid(), 'lock', at, 'open', 'app', at
               FROM (SELECT date_trunc('hour', now()) - interval '2 hours' AS at) AS ago""")
    build()
    until = pd.Timestamp.now("UTC").floor("h")
    since = until - pd.Timedelta(hours=8)
    link = {"range": "custom", "from": f"{since:%Y-%m-%dT%H:%M}", "to": f"{until:%Y-%m-%dT%H:%M}"}
    assert "1 open, 0 close, 0 fail. Grey: 2 without any data (yet)." in said(visit(database, **link))
