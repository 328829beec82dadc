"""Does a run of dbt cost what the new rows cost, however long the history is?

    python benchmarks/dbt_incremental.py [--sizes N,N] [--runs R] [--models]

Starts a PostgreSQL of its own in a temporary folder and grows one history in it: 300 devices in 100 households, 30 days
for each million events (111 a device and day), with a health report of each device every 15 minutes, 864,000 to a
million events; one device in twenty is on the mains and reports no battery. One row in a hundred happened up to 20
hours before it arrived; event ids are UUIDv7. Thirty days are the least, as some models look back 28: a shorter history
would be cheaper for that alone.

At each size: `dbt build --selector models --full-refresh`, VACUUM ANALYZE, one incremental run that is not counted,
then R times a slice of 15 minutes of new rows (347 events, 300 reports, as late as the others) and the incremental run
that takes it in. Told are medians of what PostgreSQL did, the sums over pg_stat_statements: seconds, planning included,
and pages of 8 kB looked at, which do not depend on how busy the machine is. By the clock there is dbt's own time beside
it: parsing, compiling, asking for relations. --models tells both by model.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from warehouse import build, rows, temporary_warehouse

DEVICES = 300
HEALTH_INTERVAL = 900
EVENTS_PER_DAY = 1_000_000 / 30
SLICE_MINUTES = 15
START = "2022-01-01T00:00:00Z"
PER_INSERT = 1_000_000  # events

REGISTRY = """
INSERT INTO raw_households (household_id, region, timezone, updated_at, ingested_at)
SELECT 'hh-' || h, 'region ' || h % 5,
       (ARRAY['Europe/Berlin', 'America/New_York', 'Asia/Kathmandu', 'Pacific/Auckland'])[1 + h % 4], at, at
FROM (SELECT h, timestamptz '{start}' AS at FROM generate_series(0, {devices} / 3 - 1) AS h) AS households;
INSERT INTO raw_devices (device_id, household_id, device_type, model, firmware_version, updated_at, ingested_at)
SELECT 'device-' || d, 'hh-' || d / 3, 'lock', 'model ' || d % 4, '1.0', at, at
FROM (SELECT d, timestamptz '{start}' AS at FROM generate_series(0, {devices} - 1) AS d) AS devices;
SELECT setseed(0.5);
SET synchronous_commit = off"""

# Rows come in the order of their arrival, as the stream's do.
EVENTS = """
INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, ingested_at)
SELECT uuidv7(event_ts - now()), 'device-' || {device}, event_ts, {kind},
       (ARRAY['app', 'keypad', 'manual'])[1 + n % 3], at
FROM (
    SELECT n, at, random() AS draw,
           at - CASE WHEN {is_late} THEN interval '20 hours' * {delay} ELSE interval '10 ms' END AS event_ts
    FROM (
        SELECT n, timestamptz '{start}' + n * interval '1 day' / {per_day} AS at
        FROM generate_series({first}::bigint, {last}::bigint - 1) AS n
    ) AS numbered
) AS arriving"""
REPORTS = """
INSERT INTO raw_device_health (device_id, reported_at, battery_pct, signal_strength_dbm, is_online, ingested_at)
SELECT 'device-' || d,
       at - CASE WHEN random() < 0.01 THEN interval '20 hours' * random() ELSE interval '10 ms' END,
       CASE WHEN d % 20 > 0 THEN 100 - (turn + 100 * d) % 17280 / 180.0 END, -60 - 10 * random(), random() > 0.002, at
FROM (
    SELECT turn, d, timestamptz '{start}' + (turn + d / {devices}.0) * interval '{interval} s' AS at
    FROM generate_series({first}::bigint, {last}::bigint - 1) AS turn, generate_series(0, {devices} - 1) AS d
) AS reports
ORDER BY at
ON CONFLICT DO NOTHING"""

SPENT = """
SELECT query, (total_exec_time + total_plan_time) / 1000,
       shared_blks_hit + shared_blks_read + local_blks_hit + local_blks_read
FROM pg_stat_statements"""


class History:
    """The raw tables up to a number of events; grows forward from `start`, at the same rate for each device."""

    device = "floor(random() * {devices})"
    is_late = "random() < 0.01"
    delay = "random()"
    kind = "CASE WHEN draw < 0.485 THEN 'open' WHEN draw < 0.97 THEN 'close' ELSE 'fail' END"

    def __init__(self, connection: Any, devices: int = DEVICES, start: str = START) -> None:
        self._connection = connection
        self.events_per_day = EVENTS_PER_DAY * devices / DEVICES
        self._sizes = {"start": start, "devices": devices, "interval": HEALTH_INTERVAL, "per_day": self.events_per_day}
        self.events = self._turns = 0
        self._execute(REGISTRY.format(start=start, devices=devices))

    def grow(self, to: int) -> None:
        while self.events < to:
            last = min(to, self.events + PER_INSERT)
            turns = round(last / self.events_per_day * 86_400 / HEALTH_INTERVAL)
            device = self.device.format(**self._sizes)
            expressions = {"device": device, "kind": self.kind, "is_late": self.is_late, "delay": self.delay}
            self._execute(EVENTS.format(first=self.events, last=last, **expressions, **self._sizes))
            self._execute(REPORTS.format(first=self._turns, last=turns, **self._sizes))
            self.events, self._turns = last, turns

    def _execute(self, statement: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)


class Cost(NamedTuple):
    """What PostgreSQL did in one run of dbt."""

    seconds: float
    pages: int


def measured_build(connection: Any, *arguments: str) -> tuple[dict[str, Cost], float]:
    """The cost of each model, what dbt asks for itself standing under `dbt`; and seconds by the clock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_statements_reset()")
    clock, models = build(*arguments)
    costs = dict.fromkeys([*models, "dbt"], Cost(0, 0))
    for query, seconds, pages in rows(connection, SPENT):
        names = (name for name in re.findall(r'"(\w+?)(?:__dbt_\w+)?"', query) if name in models)
        name = next(names, "dbt")
        costs[name] = Cost(costs[name].seconds + seconds, costs[name].pages + pages)
    return costs, clock


def total(costs: dict[str, Cost]) -> Cost:
    return Cost(sum(cost.seconds for cost in costs.values()), sum(cost.pages for cost in costs.values()))


def median(costs: Sequence[Cost]) -> Cost:
    return Cost(statistics.median(c.seconds for c in costs), round(statistics.median(c.pages for c in costs)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "events of history, ascending, in millions (default: 1,10,50; the last needs 60 GB and an hour)"
    parser.add_argument("--sizes", type=_sizes, default=[1.0, 10.0, 50.0], metavar="N,N", help=text)
    parser.add_argument("--runs", type=int, default=5, help="slices at each size; the median is told (default: 5)")
    parser.add_argument("--models", action="store_true", help="tell each model's cost as well")
    args = parser.parse_args()
    settings = {"pg_stat_statements.track_planning": "on"}
    with temporary_warehouse(HEALTH_INTERVAL, settings) as connection:
        with connection.cursor() as cursor:
            cursor.execute("CREATE EXTENSION pg_stat_statements")
        measure(connection, args)


def _sizes(text: str) -> list[float]:
    sizes = [float(part) for part in text.split(",")]
    if sizes != sorted(sizes) or sizes[0] <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an ascending list of millions, such as 1,10")
    return sizes


def measure(connection: Any, args: argparse.Namespace) -> None:
    history, slice_events = History(connection), round(EVENTS_PER_DAY / 24 / 60 * SLICE_MINUTES)
    found: list[Cost] = []
    by_model: list[dict[str, Cost]] = []
    print("| events | database | full refresh | by the clock | 15 minutes | range | by the clock | of the first"
          " | of the full refresh | pages | of the first |\n" + "|---" * 11 + "|", flush=True)  # fmt: skip
    for size in args.sizes:
        say(f"{size:g} M: inserting")
        history.grow(round(size * 1e6))
        vacuum(connection)
        say(f"{size:g} M: full refresh")
        full, full_clock = measured_build(connection, "--full-refresh")
        vacuum(connection)
        say(f"{size:g} M: {args.runs} slices")
        runs = []
        for _ in range(args.runs + 1):
            history.grow(history.events + slice_events)
            runs.append(measured_build(connection))
        costs, clocks = zip(*runs[1:], strict=True)
        totals = [total(cost) for cost in costs]
        found.append(median(totals))
        by_model.append({name: median([cost[name] for cost in costs]) for name in costs[0]})
        (seconds, pages), (first_seconds, first_pages) = found[-1], found[0]
        low, high = min(totals).seconds, max(totals).seconds
        [(stored,)] = rows(connection, "SELECT pg_size_pretty(pg_database_size(current_database()))")
        print(f"| {size:g} M | {stored} | {total(full).seconds:.1f} s | {full_clock:.0f} s | {seconds:.3f} s"
              f" | {low:.3f} to {high:.3f} s | {statistics.median(clocks):.1f} s | {seconds / first_seconds:.2f}"
              f" | {seconds / total(full).seconds:.4f} | {pages:,} | {pages / first_pages:.2f} |",
              flush=True)  # fmt: skip
    if args.models:
        print_models(args.sizes, by_model)


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def vacuum(connection: Any) -> None:
    """What autovacuum would do soon. Not beside it: rows newer than its snapshot are not marked as visible to all."""
    while rows(connection, "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'"):
        time.sleep(1)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE)")


def print_models(sizes: Sequence[float], by_model: list[dict[str, Cost]]) -> None:
    titles = [f"{size:g} M, ms | pages" for size in sizes]
    print("\n| model | " + " | ".join(titles) + " |\n" + "|---" * (1 + 2 * len(sizes)) + "|")
    for name in sorted(by_model[-1], key=lambda name: -by_model[-1][name].seconds):
        cells = [f"{1000 * costs[name].seconds:.1f} | {costs[name].pages:,}" for costs in by_model]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
