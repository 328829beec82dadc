"""Do the marts find what happened to the fleet? Precision and recall of each rule against the simulator's ground truth.

    python benchmarks/detectors.py [--days D] [--hours H] [--households N] [--seed S] [--only realistic|load]

Starts a PostgreSQL of its own in a temporary folder. A `realistic` fleet of several days and a `load` fleet of some
hours go straight into the raw tables: each report through the contract as the consumer decodes it, each row with the
moment at which the simulator sends the report as its arrival, the first of two reports with one key staying. Then dbt
builds everything once, and each rule's detections are held against what the simulator says it did.

A truth is found (recall) if a detection of the same device overlaps it, and a detection is right (precision) if a truth
of the same device overlaps it; what is still going on has no end. Rows are compared by their event ids, dead letters
record by record. What cannot be seen from outside is left out, and the table says how often:

failed_burst  bursts of which five failures were sent
left_open     sessions of more than 600 s; not those of a door still open whose device is silent at the end
offline       fct_offline_sessions against outages of two health intervals or more, 2.5 for one that goes on at the end,
              from the device's first report on. A silence in which every report was sent, but malformed, is real to
              the warehouse and no outage to the simulator: counted in neither way
silent        of these, 15 minutes or more, against outages of 15 minutes or more; one shorter by up to two health
              intervals is no false alarm, since a silence lasts from the last report before to the first one after
late          event ids of fct_access_events.is_late against buffered events sent more than 120 s after they happened
duplicate     records that the primary key absorbed against those sent twice
dead          records that the contract refused against those spoilt
battery       fct_battery_forecast.replaced_on against the device's last replacement, by local day; not one on the first
              day, which has no reading before it. Of `realistic` only: `load` wears a battery down within hours
"""

from __future__ import annotations

import argparse
import io
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from warehouse import build, rows, temporary_warehouse

from contracts import CONTRACTS, Contract
from row_text import encode
from simulator import EVENTS, HEALTH, PROFILES, Simulator

START = datetime(2026, 9, 7, tzinfo=UTC)
ON_THE_WAY = timedelta(milliseconds=10)  # from sending to the row
PER_COPY = 100_000
LATE_AFTER = timedelta(seconds=120)
SILENT_FROM = timedelta(minutes=15)
FOREVER = datetime.max.replace(tzinfo=UTC)

# The load table has the arrival in milliseconds; a duplicate is a row that did not get its place.
MERGE = """
INSERT INTO {table} ({columns}, kafka_partition, kafka_offset, ingested_at)
SELECT {columns}, kafka_partition, kafka_offset, timestamptz 'epoch' + arrived_ms * interval '1 ms'
FROM arriving ORDER BY kafka_offset
ON CONFLICT DO NOTHING"""
ABSORBED = """
SELECT {key}::text FROM arriving
WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE t.{key} = arriving.{key} AND t.kafka_offset = arriving.kafka_offset)"""


@dataclass
class Sent:
    """What the simulator did, and what became of it on the way into the raw tables."""

    truths: defaultdict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    records: Counter[str] = field(default_factory=Counter)
    spoilt: set[int] = field(default_factory=set)  # numbers of the records
    refused: set[int] = field(default_factory=set)
    absorbed: Counter[str] = field(default_factory=Counter)  # event ids


class Window(NamedTuple):
    device_id: str
    start: datetime
    end: datetime


class Score(NamedTuple):
    rule: str
    truths: int
    found: int  # of the truths
    detections: int
    right: int  # of the detections
    note: str = ""

    @property
    def recall(self) -> float:
        return self.found / self.truths if self.truths else float("nan")

    @property
    def precision(self) -> float:
        return self.right / self.detections if self.detections else float("nan")


def store(connection: Any, simulator: Simulator, start: datetime, seconds: float) -> Sent:
    """Runs the simulator for `seconds` and stores its reports, each when it is sent."""
    sent = Sent()
    waiting: dict[str, list[tuple[int, int, bytes | None, bytes | None, tuple[()]]]] = {t: [] for t in CONTRACTS}
    zero = int((start + ON_THE_WAY).timestamp() * 1000)
    due = 0.0
    for number, (due, topic, key, value, truths) in enumerate(simulator):
        if due >= seconds:
            break
        for truth in truths or ():
            sent.truths[truth["kind"]].append(truth)
            if truth["kind"] == "malformed":
                sent.spoilt.add(number)
        waiting[topic].append((number, zero + int(due * 1000), key, value, ()))
        if number % PER_COPY == 0:
            _copy_all(connection, waiting, sent)
    _copy_all(connection, waiting, sent)
    for truth in simulator.unfinished(min(due, seconds)):
        sent.truths[truth["kind"]].append(truth)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    return sent


def _copy_all(connection: Any, waiting: dict[str, list[Any]], sent: Sent) -> None:
    for topic, records in waiting.items():
        if records:
            sent.records[topic] += len(records)
            _copy(connection, CONTRACTS[topic], records, sent)
            records.clear()


def _copy(connection: Any, contract: Contract, records: list[Any], sent: Sent) -> None:
    encoded = encode(contract, 0, records)
    sent.refused.update(record.offset for record, _ in encoded.dead)
    lines = [f"{line[:-1]}\t{record[1]}\n" for record, line in zip(encoded.records, encoded.lines, strict=True)]
    columns = ", ".join(contract.columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TEMP TABLE arriving (LIKE {contract.table});"
            " ALTER TABLE arriving ALTER ingested_at DROP NOT NULL, ADD arrived_ms bigint"
        )
        cursor.copy_expert(
            f"COPY arriving ({columns}, kafka_partition, kafka_offset, arrived_ms) FROM STDIN",
            io.StringIO("".join(lines)),
        )
        cursor.execute(MERGE.format(table=contract.table, columns=columns))
        if cursor.rowcount < len(lines) and contract.topic == EVENTS:
            cursor.execute(ABSORBED.format(table=contract.table, key=contract.key[0]))
            sent.absorbed.update(key for (key,) in cursor.fetchall())
        cursor.execute("DROP TABLE arriving")


def moment(text: str | None) -> datetime:
    return datetime.fromisoformat(text) if text else FOREVER


def windows(truths: Iterable[dict[str, Any]]) -> list[Window]:
    return [Window(truth["device_id"], moment(truth["start"]), moment(truth["end"])) for truth in truths]


def overlapped(some: Iterable[Window], others: Iterable[Window]) -> list[Window]:
    """Those of `some` that overlap one of `others` of the same device."""
    of_device: defaultdict[str, list[Window]] = defaultdict(list)
    for other in others:
        of_device[other.device_id].append(other)
    return [
        one
        for one in some
        if any(other.start <= one.end and one.start <= other.end for other in of_device[one.device_id])
    ]


def by_windows(rule: str, truths: list[Window], detections: list[Window], note: str = "",
               excused: Iterable[Window] = ()) -> Score:  # fmt: skip
    """excused: truths that make a detection right and need not be found."""
    right = overlapped(detections, [*truths, *excused])
    return Score(rule, len(truths), len(overlapped(truths, detections)), len(detections), len(right), note)


def by_ids(rule: str, truths: set[Any], detections: set[Any], note: str = "") -> Score:
    found = len(truths & detections)
    return Score(rule, len(truths), found, len(detections), found, note)


ANOMALIES = "SELECT device_id, started_at, ended_at FROM marts.fct_anomalies WHERE rule = %s"
SILENCES = "SELECT device_id, started_at, ended_at FROM marts.fct_offline_sessions"
LATE = "SELECT event_id::text FROM marts.fct_access_events WHERE is_late"
FIRST_REPORTS = "SELECT device_id, min(reported_at) FROM raw_device_health GROUP BY device_id"
DATA_CLOCK = "SELECT data_clock_at FROM intermediate.int_data_clock"
BATTERIES = """
SELECT f.device_id, f.replaced_on, d.time_zone, min(s.local_date) AS first_read_on, f.last_read_on
FROM marts.fct_battery_forecast AS f
JOIN marts.dim_devices AS d ON d.device_id = f.device_id AND d.is_current
JOIN marts.fct_device_daily_summary AS s ON s.device_id = f.device_id AND s.battery_last_pct IS NOT NULL
GROUP BY 1, 2, 3, 5"""


def _window(device_id: str, start: datetime, end: datetime | None) -> Window:
    return Window(device_id, start, end or FOREVER)


def anomalies(connection: Any, rule: str) -> list[Window]:
    return [_window(*found) for found in rows(connection, ANOMALIES, rule)]


def silences(connection: Any) -> list[Window]:
    return [_window(*found) for found in rows(connection, SILENCES)]


def event_ids(truths: Iterable[dict[str, Any]]) -> set[str]:
    return {event_id for truth in truths for event_id in truth["event_ids"]}


def scores(connection: Any, sent: Sent, health_interval: float) -> Iterator[Score]:
    """One score a rule; the database holds what `sent` tells of, and dbt has built the marts."""
    yield by_windows("failed_burst", windows(sent.truths["burst"]), anomalies(connection, "failed_burst"))
    yield _left_open(connection, sent)
    yield from _offline(connection, sent, health_interval)
    late = [t for t in sent.truths["late"] if moment(t["end"]) - moment(t["start"]) > LATE_AFTER]
    note = f"{len(sent.truths['late']) - len(late)} buffered events sent within 120 s"
    yield by_ids("late", event_ids(late), {event_id for (event_id,) in rows(connection, LATE)}, note)
    yield by_ids("duplicate", event_ids(sent.truths["duplicate"]), set(sent.absorbed))
    yield by_ids("dead", sent.spoilt, sent.refused)


def _left_open(connection: Any, sent: Sent) -> Score:
    silent = {window.device_id for window in silences(connection) if window.end == FOREVER}
    truths = windows(sent.truths["left_open"])
    known = [truth for truth in truths if truth.end < FOREVER or truth.device_id not in silent]
    note = f"{len(truths) - len(known)} open at the end, the device being silent"
    return by_windows("left_open", known, anomalies(connection, "left_open"), note)


def _offline(connection: Any, sent: Sent, health_interval: float) -> Iterator[Score]:
    """All silences, then the long ones."""
    first = dict(rows(connection, FIRST_REPORTS))
    [(data_clock,)] = rows(connection, DATA_CLOCK)
    interval = timedelta(seconds=health_interval)

    def lasted(outage: Window) -> timedelta:
        return min(outage.end, data_clock) - outage.start

    def is_visible(outage: Window) -> bool:
        """Two reports stayed away: certain after two intervals, or after 2.5 if none has come since."""
        is_over = outage.end < data_clock - interval
        seen_before = outage.device_id in first and outage.end > first[outage.device_id]
        return seen_before and lasted(outage) >= (2 if is_over else 2.5) * interval

    truths = windows(sent.truths["outage"])
    outages = [outage for outage in truths if is_visible(outage)]
    spoilt: defaultdict[str, list[datetime]] = defaultdict(list)
    for truth in sent.truths["malformed"]:
        if truth["topic"] == HEALTH:
            spoilt[truth["device_id"]].append(moment(truth["start"]))

    def is_spoilt(silence: Window) -> bool:
        """Whether every report that is missing was sent, malformed."""
        missing = round((min(silence.end, data_clock) - silence.start) / interval) - 1
        return missing <= sum(silence.start < at < silence.end for at in spoilt[silence.device_id])

    found = silences(connection)
    explained = set(overlapped(found, truths))
    judged = [silence for silence in found if silence in explained or not is_spoilt(silence)]
    note = f"{len(found) - len(judged)} silences of malformed reports alone; {len(truths) - len(outages)} outages"
    # one too short to be seen for certain is no false alarm if it is seen
    yield by_windows("offline", outages, judged, note, excused=truths)
    long = [outage for outage in outages if lasted(outage) >= SILENT_FROM]
    nearly = [outage for outage in outages if lasted(outage) >= SILENT_FROM - 2 * interval]
    yield by_windows("silent", long, anomalies(connection, "silent"), excused=nearly)


def battery_score(connection: Any, sent: Sent) -> Score:
    batteries = {device_id: more for device_id, *more in rows(connection, BATTERIES)}
    truths: dict[str, Any] = {}
    early = 0
    for truth in sent.truths["battery_replacement"]:  # of a device, the last one stays
        _, time_zone, first_read_on, last_read_on = batteries[truth["device_id"]]
        on = moment(truth["start"]).astimezone(ZoneInfo(time_zone)).date()
        if on > first_read_on and on > last_read_on - timedelta(days=14):
            truths[truth["device_id"]] = on
        else:
            early += 1
    found = {(device_id, replaced_on) for device_id, (replaced_on, *_) in batteries.items() if replaced_on}
    return by_ids("battery", set(truths.items()), found, f"{early} on a first day, or longer ago than 14 days")


WITHOUT_TRUTH = """
SELECT rule, count(*) FROM marts.fct_anomalies
WHERE rule IN ('unusual_hour', 'flapping', 'battery_cliff') GROUP BY 1 ORDER BY 1"""


def measure(profile: str, seconds: float, args: argparse.Namespace) -> None:
    with temporary_warehouse(args.health_interval) as connection:
        sizes = (args.households, args.devices_per_household, args.rate, args.health_interval)
        simulator = Simulator(*sizes, profile, args.seed, start=START)
        began = time.perf_counter()
        sent = store(connection, simulator, START, seconds)
        stored = time.perf_counter() - began
        took, _ = build()
        devices = args.households * args.devices_per_household
        print(
            f"\n{profile}: {devices} devices, {seconds / 3600:g} h, {sent.records[EVENTS]:,} events and"
            f" {sent.records[HEALTH]:,} health reports sent; stored in {stored:.0f} s, dbt took {took:.0f} s\n"
        )
        print("| rule | truths | recall | detections | precision | left out |\n|---|---|---|---|---|---|")
        found = list(scores(connection, sent, args.health_interval))
        if profile == "realistic":
            found.append(battery_score(connection, sent))
        for score in found:
            print(
                f"| {score.rule} | {score.truths} | {score.recall:.4f} | {score.detections} | {score.precision:.4f}"
                f" | {score.note} |"
            )
        others = ", ".join(f"{rule} {count}" for rule, count in rows(connection, WITHOUT_TRUTH))
        print(f"\nDetections of what the simulator does not do on purpose: {others or 'none'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=5, help="simulated days of the realistic fleet (default: 5)")
    parser.add_argument("--hours", type=float, default=6, help="simulated hours of the load fleet (default: 6)")
    parser.add_argument("--households", type=int, default=100, help="households (default: 100)")
    parser.add_argument("--devices-per-household", type=int, default=3, help="devices in each (default: 3)")
    parser.add_argument("--rate", type=float, default=0.1, help="events per device and second of load (default: 0.1)")
    parser.add_argument("--health-interval", type=float, default=30, help="seconds between two reports (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of the fleets (default: 1)")
    parser.add_argument("--only", choices=PROFILES, help="one of the fleets (default: both)")
    args = parser.parse_args()
    for profile, seconds in (("realistic", args.days * 86_400), ("load", args.hours * 3600)):
        if args.only in (None, profile):
            measure(profile, seconds, args)


if __name__ == "__main__":
    main()
