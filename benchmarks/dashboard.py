"""How fast is the dashboard, at how many devices and events?

    python benchmarks/dashboard.py [--devices N,N] [--events N]

Fills a PostgreSQL of its own with a history like that of dbt_incremental.py (111 events a device and day, a health
report every 15 minutes), up to now, runs dbt, and starts the dashboard on it. For each number of devices it tells

- the statements: every one that the eight pages and one device's page ask, for the last 24 hours, 7 and 30 days; each
  five times on a warm server, of which the median counts; told are the slowest of each range, with its page;
- a page, in Chromium, by a visitor who has been there before (medians of five): from asking for its address to the
  first numbers being painted, by the browser's own clock, and the bytes that the server sent for it; from choosing it
  in the menu to all of it being drawn. Beside them the time of an app that is one number, which is Streamlit's own
  share of the first;
- ten visitors who look at the overview and ask for it again at the same moment, all in one browser on this machine:
  the time of the first and of the last. Drawing ten windows is most of it.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from dbt_incremental import HEALTH_INTERVAL, History, vacuum
from warehouse import ROOT, build, temporary_warehouse

sys.path[:0] = [str(ROOT / "analytics"), str(ROOT / "tests/dashboard")]
PAGES = ("overview", "anomalies", "devices", "households", "access", "batteries", "connectivity", "pipeline")
ONE_DEVICE = "devices?device=device-7"
RANGES = ("24h", "7d", "30d")
TIMES = 5
VISITORS = 10

# The rows come by no consumer, but the pipeline's page is to have something to show
LEDGER = """
INSERT INTO ingest_offsets (cluster_id, consumer_group, topic, partition, start_offset, next_offset, stored)
SELECT 'benchmark', 'smart-access-sink', topic, partition, 0, 1000, 1000
FROM unnest(ARRAY['smart-access.events', 'smart-access.health']) AS topic, generate_series(0, 5) AS partition"""


class ClosedDoors(History):
    """Doors that are closed soon after they were opened, but for one in 400: else half of them would be alerts."""

    device = "(n / 2 * 7919) % {devices}"
    is_late = "n / 2 % 97 = 0"  # both of a pair, by the same time
    delay = "(n / 2 % 1009) / 1009.0"
    kind = """CASE WHEN n / 2 % 37 = 0 OR (n / 2 % 401 = 0 AND n % 2 = 1) THEN 'fail'
                   WHEN n % 2 = 0 THEN 'open' ELSE 'close' END"""


# When the first number was painted, in milliseconds from the asking for the page: the frame after it was there
PAINTED = """
new MutationObserver((_, observer) => {
    if (document.querySelector('[data-testid=stMetricValue]')) {
        observer.disconnect();
        requestAnimationFrame(() => setTimeout(() => { window.paintedAt = performance.now(); }));
    }
}).observe(document, {subtree: true, childList: true});
"""


class Statement(NamedTuple):
    page: str
    text: str
    seconds: float

    def name(self) -> str:
        """The first relation that it reads."""
        return next(word for word in self.text.split() if word.startswith(("live.", "marts.", "intermediate.")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=_numbers, default=[300, 3000], metavar="N,N", help="default: 300,3000")
    parser.add_argument("--events", type=float, default=10, help="millions of them (default: 10)")
    args = parser.parse_args()
    for devices in args.devices:
        with temporary_warehouse(HEALTH_INTERVAL) as connection:
            fill(connection, devices, round(args.events * 1e6))
            print(f"\n{args.events:g} M events, {devices:,} devices", flush=True)
            time_statements()
            time_pages()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def fill(connection: Any, devices: int, events: int) -> None:
    days = events / (devices * 111.1)
    start = datetime.now(UTC) - timedelta(days=days)
    ClosedDoors(connection, devices, f"{start:%Y-%m-%dT%H:%M:%SZ}").grow(events)
    with connection.cursor() as cursor:
        cursor.execute(LEDGER)
    vacuum(connection)
    build("--full-refresh")
    vacuum(connection)


def time_statements() -> None:
    import dashboard_queries

    engine = dashboard_queries.connect()
    print("\n| range | statements | slowest | of | next | of |\n|---|---|---|---|---|---|", flush=True)
    for name in RANGES:
        timed = {}
        for page, query, parameters in asked(name):
            key = (query, repr(sorted(parameters.items())))
            if key not in timed:
                timed[key] = Statement(page, query, time_one(engine, query, parameters))
        slowest = sorted(timed.values(), key=lambda statement: -statement.seconds)
        cells = (f"{1000 * each.seconds:.0f} ms | {each.page}, {each.name()}" for each in slowest[:2])
        print(f"| {name} | {len(timed)} | {' | '.join(cells)} |", flush=True)
    engine.dispose()


def asked(range_name: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(page, statement, parameters) of everything that the pages ask of the database."""
    import streamlit as st
    from streamlit.testing.v1 import AppTest

    import dashboard_queries

    fetch, noted = dashboard_queries.fetch, []

    def note(engine: Any, query: str, parameters: dict[str, Any]) -> Any:
        noted.append((query, parameters))
        return fetch(engine, query, parameters)

    dashboard_queries.fetch = note
    logging.disable(logging.WARNING)  # Streamlit warns twice for each page that no server runs here
    try:
        for page in (*PAGES, ONE_DEVICE):
            name, _, device = page.partition("?device=")
            st.cache_data.clear()
            app = AppTest.from_file(str(ROOT / "analytics/streamlit_app.py"), default_timeout=120)
            app.query_params["range"] = range_name
            if device:
                app.query_params["device"] = device
            if name != "overview":
                app.switch_page(f"dashboard_pages/{name}.py")
            app.run()
            if app.exception:
                raise SystemExit(f"{page}: {app.exception[0].value}")
            yield from ((name, *each) for each in noted)
            noted.clear()
    finally:
        logging.disable(logging.NOTSET)
        dashboard_queries.fetch = fetch


def time_one(engine: Any, query: str, parameters: dict[str, Any]) -> float:
    import dashboard_queries

    took = []
    for _ in range(TIMES + 1):
        began = time.perf_counter()
        dashboard_queries.fetch(engine, query, parameters)
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


def time_pages() -> None:
    from browser import Visitor, browser_path, dashboard_server, open_browser, open_profile

    if not browser_path():
        print("no Chromium here: apt install chromium", file=sys.stderr)
        return
    print("\n| page | by its address, s | kB | from the menu, s |\n|---|---|---|---|", flush=True)
    with (
        dashboard_server(dict(os.environ)) as address,
        tempfile.TemporaryDirectory() as folder,
        open_profile(Path(folder)) as profile,
    ):
        print(f"| an app of one number | {time_one_number(profile):.2f} | | |", flush=True)
        visitor = returning_visitor(profile, address)
        for page in (*PAGES, ONE_DEVICE):
            path = "/" if page == "overview" else f"/{page}"
            seconds, received = time_visits(visitor, path)
            name, chosen = ("one device", "") if page == ONE_DEVICE else (page, f"{time_choice(visitor, page):.2f}")
            print(f"| {name} | {seconds:.2f} | {received / 1000:.0f} | {chosen} |", flush=True)
    with dashboard_server(dict(os.environ)) as address, open_browser() as browser:
        time_visitors_together([Visitor(browser, address) for _ in range(VISITORS)], address)


def returning_visitor(profile: Any, address: str) -> Any:
    from browser import Visitor

    visitor = Visitor(None, address, profile=profile)
    visitor.page.add_init_script(PAINTED)
    return visitor


def time_visitors_together(visitors: list[Any], address: str) -> None:
    for visitor in visitors:  # each has been there before; and its live tiles tick until it asks again
        visitor.page.goto(address, wait_until="commit")
        wait_for_numbers(visitor)
    began, waited = time.perf_counter(), []
    for visitor in visitors:
        visitor.page.goto(address, wait_until="commit")
    for visitor in visitors:
        wait_for_numbers(visitor)
        waited.append(time.perf_counter() - began)
    print(f"\n{VISITORS} visitors at once: the first one's numbers after {waited[0]:.2f} s,"
          f" the last one's after {waited[-1]:.2f} s", flush=True)  # fmt: skip


def time_one_number(profile: Any) -> float:
    """Seconds, as for a page, of an app that does nothing else."""
    from browser import dashboard_server

    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "one_number.py"
        app.write_text('import streamlit\n\nstreamlit.metric("Devices", 1)\n')
        with dashboard_server({}, app) as address:
            return time_visits(returning_visitor(profile, address), "/")[0]


def time_visits(visitor: Any, path: str) -> tuple[float, float]:
    """Seconds to the first numbers and bytes received, of one who was there before."""
    for _ in range(3):  # Chromium keeps a compiled program from its second use on
        visitor.open(path)
    seconds, received = zip(*(visit(visitor, path) for _ in range(TIMES)), strict=True)
    return statistics.median(seconds), statistics.median(received)


def time_choice(visitor: Any, page: str) -> float:
    """Seconds from choosing the page in the menu to all of it being drawn."""
    took = []
    for _ in range(TIMES):
        visitor.choose_page("pipeline" if page != "pipeline" else "overview")
        began = time.perf_counter()
        visitor.choose_page(page)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def wait_for_numbers(visitor: Any) -> None:
    visitor.page.get_by_test_id("stMetric").first.wait_for()


def visit(visitor: Any, path: str) -> tuple[float, int]:
    """Seconds until the first numbers were painted, and bytes that came over the page's WebSocket until all was."""
    received = 0

    def count(frame: Any) -> None:
        nonlocal received
        received += len(frame)

    def listen(socket: Any) -> None:
        socket.on("framereceived", count)

    visitor.page.on("websocket", listen)
    visitor.page.goto("about:blank")
    visitor.page.wait_for_timeout(1000)  # what the visit before has left to do, in the browser and at the server
    visitor.open(path)
    visitor.page.remove_listener("websocket", listen)
    return visitor.page.evaluate("window.paintedAt") / 1000, received


if __name__ == "__main__":
    main()
