"""The dashboard in a real Chromium: it loads cleanly, keeps to this machine, ticks, and takes its visitor along."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import Visitor, browser_path, dashboard_server, open_browser
from shown_fleet import PAGES, Fleet

pytestmark = pytest.mark.skipif(browser_path() is None, reason="no Chromium here: apt install chromium")
# Streamlit looks for its server's base path by asking for these below the page's own path first
PROBES = re.compile(r"/_stcore/(health|host-config)$")


@pytest.fixture(scope="module")
def address(fleet: Fleet) -> Iterator[str]:
    with dashboard_server(fleet.environment) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def visitor(chromium: Any, address: str) -> Iterator[Callable[..., Visitor]]:
    """visitor(path, width=…, height=…, scheme=…): a browser window of its own that shows a page."""
    opened: list[Visitor] = []

    def open_page(path: str = "/", **options: Any) -> Visitor:
        opened.append(Visitor(chromium, address, **options))
        opened[-1].open(path)
        return opened[-1]

    yield open_page
    for each in opened:
        each.close()


@pytest.fixture(scope="module")
def telephone(chromium: Any, address: str) -> Iterator[Visitor]:
    """One window for all pages: each new one would load the programs of all pages first."""
    with closing(Visitor(chromium, address, width=390, height=844)) as window:
        yield window


def test_every_page_loads_without_an_error_and_asks_nobody_else(visitor: Callable[..., Visitor]) -> None:
    page = visitor()
    for name in PAGES:
        page.choose_page(name)
    assert page.complaints == []
    assert page.strangers == []


@pytest.mark.parametrize("name", PAGES)
def test_a_link_to_a_page_opens_it_and_it_fits_a_telephone(telephone: Visitor, name: str) -> None:
    telephone.open(f"/{name}" if name != "overview" else "/")
    assert telephone.title() == name.capitalize()
    assert telephone.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 390
    assert telephone.strangers == []
    assert [each for each in telephone.failed if not PROBES.search(each)] == []


def test_a_new_visitor_is_sent_numbers_before_what_takes_long_to_draw(visitor: Callable[..., Visitor]) -> None:
    page = visitor("/pipeline")
    sent = page.list_elements()
    dear = {"selectbox", "multiselect", "button_group", "checkbox", "dataframe", "vega_lite_chart", "download_button"}
    for name in ("", "anomalies", "access", "batteries"):
        sent.clear()
        page.open(f"/{name}")
        assert {"metric", "selectbox", "vega_lite_chart"} <= set(sent), name
        assert not dear.intersection(sent[: sent.index("metric")]), (name, sent)


def test_a_new_event_shows_without_a_reload(fleet: Fleet, visitor: Callable[..., Visitor]) -> None:
    page = visitor("/?household=trouble")
    with fleet.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)"
            " VALUES (gen_random_uuid(), 'draining', now(), 'open', 'the-doorbell')"
        )
    connection.close()
    page.wait_for_cell("the-doorbell", timeout=10)


def test_the_choice_of_range_devices_and_clock_survives_a_reload_and_another_page(
    visitor: Callable[..., Visitor],
) -> None:
    page = visitor()
    page.choose("Range", "Last 7 days")
    page.choose_filter("Region", "Nowhere")
    page.choose_clock("Household's time")
    wanted = {"range": ["7d"], "region": ["Nowhere"], "clock": ["local"]}
    page.wait_for_url(wanted)
    page.choose_page("devices")
    page.wait_for_url(wanted)
    page.reload()
    page.wait_for_url(wanted)
    page.wait_for_text("Showing only Region: Nowhere")
    assert page.metric("Devices") == "3"


def test_a_row_leads_to_its_device(visitor: Callable[..., Visitor]) -> None:
    page = visitor("/?range=7d")
    page.select_first_row("worst devices")
    page.wait_for_text("Door over time")
    page.wait_for_url({"range": ["7d"], "device": ["left-open"]})
    assert urlsplit(page.url).path == "/devices"


BARS = {  # page, chart → what the URL names once one of its bars was clicked
    ("", "Events over time"): {"range", "from", "to"},
    ("", "Events by weekday and hour"): {"range", "from", "to"},
    ("anomalies", "Detections by rule and severity"): {"severity", "rule"},
    ("access", "Fail rate by Model"): {"model"},
    ("access", "Share of the events by trigger and type"): {"trigger", "event"},
    ("access", "Events by day and type"): {"range", "from", "to"},
    ("batteries", "Charge by device type"): {"device_type"},
    ("connectivity", "Share of device hours in each signal band"): {"hour", "band"},
    ("connectivity", "Devices by signal strength"): {"signal"},
    ("pipeline", "Records consumed over time"): {"range", "from", "to"},
}
A_DAY = "Events by day and type"


# The gate takes one of each kind of link; the rest are the same code with other names
IN_THE_GATE = {"Events over time", "Fail rate by Model", A_DAY, "Detections by rule and severity"}
ALL_BARS = [bar if bar[1] in IN_THE_GATE else pytest.param(*bar, marks=pytest.mark.slow) for bar in BARS]


@pytest.mark.parametrize(("name", "chart"), ALL_BARS)
def test_a_bar_leads_on(visitor: Callable[..., Visitor], name: str, chart: str) -> None:
    page = visitor(f"/{name}")
    # the first of the households' days may lie in a day of UTC that has no event
    page.click_bar(chart, at=0.5 if chart == A_DAY else 0)
    named = page.wait_for_url_with(BARS[name, chart])
    if "range" in named:
        since, until = (datetime.fromisoformat(named[bound]) for bound in ("from", "to"))
        assert until - since == timedelta(hours=24 if chart == A_DAY else 1)
    page.reload()
    assert page.wait_for_url_with(BARS[name, chart]) == named


def test_a_cell_of_the_week_leads_to_its_own_hour(visitor: Callable[..., Visitor]) -> None:
    page = visitor()
    cell = dict(part.split(": ") for part in page.click_bar("Events by weekday and hour", at=1).split("; "))
    since = datetime.fromisoformat(page.wait_for_url_with({"range", "from", "to"})["from"])
    assert (f"{since:%a}", str(since.hour)) == (cell["weekday"], cell["hour"])


def test_a_click_that_a_timer_tells_of_is_not_lost(visitor: Callable[..., Visitor]) -> None:
    page = visitor()
    page.let_a_timer_tell_of_each_click()
    page.reload()
    page.wait_until(lambda: bool(page.timer))
    page.click_bar("Events by weekday and hour", at=1)
    page.wait_for_url_with({"range", "from", "to"})


def test_a_live_event_leads_to_its_device(visitor: Callable[..., Visitor]) -> None:
    page = visitor("/?household=trouble")
    page.select_first_row("latest events")
    page.wait_for_text("Door over time")


def test_a_row_chooses_and_a_later_bar_chooses_anew(visitor: Callable[..., Visitor]) -> None:
    page = visitor("/access")
    page.select_first_row("triggers")
    first = page.wait_for_url_with({"trigger", "event"})
    page.click_bar("Share of the events by trigger and type", at=1)
    page.wait_for_other_url(first)


def test_a_table_can_be_had_as_csv(fleet: Fleet, visitor: Callable[..., Visitor]) -> None:
    page = visitor("/devices")
    saved = pd.read_csv(page.download())
    known = fleet.ask("SELECT device_id, household_id FROM marts.rpt_device_current ORDER BY 1")
    columns = ["device_id", "household_id"]
    assert saved[columns].sort_values("device_id").values.tolist() == known[columns].values.tolist()


def test_who_only_looks_sees_the_page_anew_each_minute(visitor: Callable[..., Visitor]) -> None:
    page = visitor()
    page.page.clock.install()
    page.count_runs_of_the_whole_page()
    page.reload()
    runs = page.runs
    page.page.wait_for_timeout(5000)  # live tiles tick, each for itself
    assert page.runs == runs
    page.page.clock.fast_forward(61_000)
    page.wait_until(lambda: page.runs > runs)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_names_and_contrast_are_those_that_axe_asks_for(visitor: Callable[..., Visitor], scheme: str) -> None:
    page = visitor(scheme=scheme)
    rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}  # all else is the same in both
    found = []
    for path in ("/", *(f"/{name}" for name in PAGES[1:]), "/devices?device=left-open"):
        page.open(path)
        report = Axe().run(page.page, options={"resultTypes": ["violations"], **rules}).response
        found += [(path, fault["id"], fault["nodes"][0]["html"][-150:]) for fault in report["violations"]]
    assert found == []


def test_the_first_glance_needs_no_scrolling(visitor: Callable[..., Visitor]) -> None:
    page = visitor(width=1440, height=900)
    for label in ("Devices online", "Open too long now", "Critical, going on", "Batteries, 14 days"):
        box = page.page.get_by_test_id("stMetric").filter(has_text=label).bounding_box()
        assert box["y"] + box["height"] < 900
