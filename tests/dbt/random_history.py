"""Random histories of small fleets: what devices and registry send, cut into slices by its arrival.

A history is a function of its seed. Times are simulated: `ingested_at` is set, in a past in which clocks change in
Berlin, New York and Auckland.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from psycopg2.extras import execute_values

Row = dict[str, Any]

START = datetime(2026, 3, 12, 5, tzinfo=UTC)  # then come Berlin's change on 29 March and Auckland's on 5 April
DAYS = 25
ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kathmandu",
    "Pacific/Auckland",
    "Australia/Lord_Howe",  # half an hour at a change
    "Mars/Olympus_Mons",
    None,
]
SOURCES = ["app", "keypad", "schedule"]
SLOW_COMMIT_S = 60  # the longest that a writer's transaction may last

KEEP_FIRST = "INSERT INTO {table} ({names}) VALUES %s ON CONFLICT DO NOTHING"
KEEP_LAST = "INSERT INTO {table} ({names}) VALUES %s ON CONFLICT ({key}) DO UPDATE SET {assignments}"


@dataclass
class Slice:
    """What arrives between two runs."""

    events: list[Row] = field(default_factory=list)
    reports: list[Row] = field(default_factory=list)
    devices: list[Row] = field(default_factory=list)
    households: list[Row] = field(default_factory=list)
    minutes: list[Row] = field(default_factory=list)

    def store(self, connection: Any) -> None:
        store(connection, "raw_access_events", self.events)
        store(connection, "raw_device_health", self.reports)
        for entry in self.devices:
            store(connection, "raw_devices", [entry], key="device_id")
        for entry in self.households:
            store(connection, "raw_households", [entry], key="household_id")
        for counts in self.minutes:
            store(connection, "ingest_minutes", [counts])


def store(connection: Any, table: str, rows: list[Row], key: str = "") -> None:
    """Rows into a table: the first of a key stays, or the last if `key` names its column."""
    if not rows:
        return
    names = list(rows[0])
    statement = (KEEP_LAST if key else KEEP_FIRST).format(
        table=table,
        names=", ".join(names),
        key=key,
        assignments=", ".join(f"{name} = excluded.{name}" for name in names if name != key),
    )
    with connection.cursor() as cursor:
        execute_values(cursor, statement, [list(row.values()) for row in rows])


def histories(seeds: Iterable[int], is_restless: bool, slices: int = 4) -> list[Slice]:
    """The slices of several fleets that share a database, and so a data clock.

    is_restless: whether the registry goes on changing; else it says all that it has to say in the first two slices.
    """
    seeds = list(seeds)
    chance = random.Random(f"cuts {seeds[0]}")
    first = chance.uniform(0.5, 0.85)  # of all time
    shares = [first, *sorted(chance.uniform(first, 1) for _ in range(slices - 2)), 1]
    cuts = [START + share * timedelta(days=DAYS) for share in shares]
    cuts[2] = min(cuts[2], cuts[1] + timedelta(minutes=chance.uniform(5, 90)))  # a short slice: much goes on beyond it
    made = [Slice() for _ in cuts]
    for seed in seeds:
        Fleet(seed, cuts, is_restless).send(made)
    commit_some_late(chance, made)
    return made


def commit_some_late(chance: random.Random, slices: list[Slice]) -> None:
    """Some rows began up to a minute before the newest that the last run saw, and were committed after it."""
    clock = START
    for before, after in pairwise(slices):
        clock = max([clock, *(row["ingested_at"] for row in before.events + before.reports)])
        rows = after.events + after.reports
        for row in chance.sample(rows, min(len(rows), 12)):
            row["ingested_at"] = clock - timedelta(seconds=chance.uniform(0, SLOW_COMMIT_S))
        if after.minutes:
            began_at = clock - timedelta(seconds=chance.uniform(0, SLOW_COMMIT_S))
            after.minutes[-1]["minute_starts_at"] = began_at.replace(second=0, microsecond=0)


class Fleet:
    """Five devices in three households; the fifth is never registered, and the fourth's clock may run ahead."""

    def __init__(self, seed: int, cuts: list[datetime], is_restless: bool):
        self.seed = seed
        self.chance = random.Random(seed)
        self.cuts = cuts
        self.is_restless = is_restless
        self.devices = [f"lock {number} of {seed}" for number in range(1, 6)]
        self.households = [f"home {number} of {seed}" for number in range(1, 4)]
        # Devices that fall silent for good, and devices whose first report comes long after the first event
        self.last_event_at = {each: self.chance.choice([*self.cuts, self.cuts[-1]]) for each in self.devices}
        self.last_report_at = {each: self.chance.choice([*self.cuts, self.cuts[-1]]) for each in self.devices}
        self.first_report_at = {
            each: self.cuts[0] - self.chance.choice([DAYS, DAYS, 5, -0.5]) * timedelta(days=1) for each in self.devices
        }
        self.ahead = {self.devices[3]: timedelta(seconds=self.chance.choice([0, 90, 400, 9000]))}

    def send(self, slices: list[Slice]) -> None:
        events = [event for device_id in self.devices for event in self.events(device_id)]
        reports = [
            report for device_id in self.devices[1:] for report in self.reports(device_id)
        ]  # the first sends none
        quiet = {number for number in range(len(slices)) if self.chance.random() < 0.1}
        for kind, rows in (("events", events), ("reports", reports)):
            rows += [self.again(row) for row in rows if self.chance.random() < 0.04]
            self.chance.shuffle(rows)
            for row in rows:
                number = self.slice_of(row["ingested_at"])
                while number in quiet and number + 1 < len(slices):
                    row["ingested_at"] = self.cuts[number] + timedelta(seconds=self.chance.uniform(1, 60))
                    number += 1
                row["ingested_at"] = min(row["ingested_at"], self.cuts[-1])
                getattr(slices[number], kind).append(row)
        for arrival, table, entry in self.registry(events):
            getattr(slices[self.slice_of(arrival)], table).append(entry)
        for counts in self.minutes():
            slices[self.slice_of(counts["minute_starts_at"])].minutes.append(counts)

    def slice_of(self, arrival: datetime) -> int:
        return next((number for number, cut in enumerate(self.cuts) if arrival <= cut), len(self.cuts) - 1)

    def seconds(self, low: float, high: float) -> timedelta:
        return timedelta(seconds=round(self.chance.uniform(low, high)))

    def arrival(self, at: datetime) -> datetime:
        """Mostly soon; some in hours, some in days."""
        dice = self.chance.random()
        if dice < 0.75:
            late = self.chance.uniform(0, 5)
        elif dice < 0.85:
            late = self.chance.uniform(5, 2 * 3600)
        else:
            late = self.chance.uniform(0, 10 * 86400)
        return max(START, at + timedelta(seconds=late))

    def again(self, row: Row) -> Row:
        """A second delivery, changed so that it is seen which one stays."""
        changed = {"trigger_source": "again"} if "event_id" in row else {"is_online": not row["is_online"]}
        return {**row, **changed, "ingested_at": self.arrival(row["ingested_at"])}

    # Events

    def events(self, device_id: str) -> Iterable[Row]:
        ahead = self.ahead.get(device_id, timedelta(0))
        for at, kind in self.moves(device_id):
            if at > self.last_event_at[device_id]:
                continue
            yield {
                "event_id": str(uuid.UUID(int=self.chance.getrandbits(128))),
                "device_id": device_id,
                "event_ts": at + ahead,
                "event_type": kind,
                "trigger_source": self.chance.choice(SOURCES),
                "ingested_at": self.arrival(at),
            }

    def moves(self, device_id: str) -> Iterable[tuple[datetime, str]]:
        is_creature_of_habit = device_id == self.devices[1]
        for day in range(DAYS):
            start = START + timedelta(days=day)
            if is_creature_of_habit and self.chance.random() < 0.9:
                for hour in (7, 7, 16, 17):
                    yield from self.session(start.replace(hour=hour) + self.seconds(0, 3000), 60)
            for _ in range(self.chance.choice([0, 0, 1] if is_creature_of_habit else [0, 1, 2, 3])):
                yield from self.episode(start + self.seconds(0, 86400))
        for cut in self.cuts:  # something is going on while dbt runs
            if self.chance.random() < 0.6:
                yield from self.episode(cut - self.seconds(0, 900))
        if self.chance.random() < 0.5:
            yield datetime(2000, 1, 1, 0, 0, 7, tzinfo=UTC), self.chance.choice(["open", "fail"])

    def episode(self, at: datetime) -> Iterable[tuple[datetime, str]]:
        dice = self.chance.random()
        if dice < 0.5:
            yield from self.session(at, self.chance.choice([20, 300, 1000, 8000]))
        elif dice < 0.75:
            yield from self.burst(at)
        elif dice < 0.85:
            for _ in range(self.chance.choice([2, 3])):  # at one time
                yield at, self.chance.choice(["open", "close", "fail"])
        else:
            yield at, self.chance.choice(["open", "close", "fail"])

    def session(self, at: datetime, longest: float) -> Iterable[tuple[datetime, str]]:
        for _ in range(self.chance.choice([1, 1, 1, 2, 3])):
            yield at, "open"
            at += self.seconds(1, longest)
        if self.chance.random() < 0.9:
            yield at, "close"

    def burst(self, at: datetime) -> Iterable[tuple[datetime, str]]:
        for _ in range(self.chance.randrange(4, 14)):
            yield at, self.chance.choices(["fail", "open", "close"], [14, 1, 1])[0]
            at += self.seconds(0, self.chance.choice([30, 150, 300]))

    # Health

    def reports(self, device_id: str) -> Iterable[Row]:
        ahead = self.ahead.get(device_id, timedelta(0))
        drain = self.chance.choice([0.01, 0.5, 2, 6])
        charge = self.chance.uniform(20, 100)
        replaced_at = START + self.seconds(0, 1.5 * DAYS * 86400)
        fell_at = [START + self.seconds(0, DAYS * 86400) for _ in range(4)]
        signal = self.chance.uniform(-90, -45)
        for at, is_online, arrival in self.samples():
            if not self.first_report_at[device_id] <= at <= self.last_report_at[device_id]:
                continue
            level = charge - drain * (at - START) / timedelta(days=1)
            level -= 18 * sum(at > fall for fall in fell_at)
            if at > replaced_at:
                level = 99.5 - drain * (at - replaced_at) / timedelta(days=1)
            yield {
                "device_id": device_id,
                "reported_at": at + ahead,
                "battery_pct": None if self.chance.random() < 0.15 else round(min(100, max(0, level)), 1),
                "signal_strength_dbm": None if self.chance.random() < 0.1 else round(self.chance.gauss(signal, 6)),
                "is_online": is_online,
                "ingested_at": arrival,
            }

    def samples(self) -> Iterable[tuple[datetime, bool, datetime]]:
        """Time, whether online, and arrival of a device's reports: spells with silences between them."""
        spells = [START + self.seconds(0, DAYS * 86400) for _ in range(int(DAYS * 0.9))]
        counts = [self.chance.randrange(1, 14) for _ in spells]
        for cut in self.cuts:  # many are heard until dbt runs
            if self.chance.random() < 0.7:
                counts.append(self.chance.randrange(4, 70))
                spells.append(
                    cut - counts[-1] * timedelta(seconds=30) - self.seconds(0, self.chance.choice([60, 2400]))
                )
        for at, count in zip(spells, counts, strict=True):
            is_flaky = self.chance.random() < 0.3
            is_online = self.chance.random() < 0.8
            held_until = self.arrival(at) if self.chance.random() < 0.2 else at  # a whole spell may come late
            for _ in range(count):
                if is_flaky and self.chance.random() < 0.3:
                    is_online = not is_online
                if self.chance.random() < 0.95:
                    is_prompt = self.chance.random() < 0.9
                    arrival = at + timedelta(seconds=self.chance.random()) if is_prompt else self.arrival(at)
                    yield at, is_online, max(START, arrival, held_until)
                at += timedelta(seconds=30, milliseconds=self.chance.choice([0, 0, 250, -700]))

    # Registry

    def registry(self, events: list[Row]) -> Iterable[tuple[datetime, str, Row]]:
        """Arrival, table and row of the registry's entries, in that order: first all but one, then changes.

        Many a change came in the midst of events.
        """
        devices: dict[str, Row] = {}
        households: dict[str, Row] = {}
        homes = {device_id: self.chance.choice(self.households) for device_id in self.devices[:4]}
        for household_id in self.households[:2]:
            households[household_id] = self.household(START, household_id)
            yield START, "households", households[household_id]
        for device_id in self.devices[:3]:
            devices[device_id] = self.device(START, device_id, homes[device_id])
            yield START, "devices", devices[device_id]
        settled = self.cuts[-1] if self.is_restless else self.cuts[1]
        for at in sorted(START + (settled - START) * self.chance.random() for _ in range(12)):
            # The entry may be old news, but is never older than the one before it
            told = {"updated_at": at - self.seconds(0, self.chance.choice([2, 300, 86400 * 4])), "ingested_at": at}
            if self.chance.random() < 0.35:
                household_id = self.chance.choice(self.households)
                household = self.household(at, household_id)
                if household_id in households:
                    told["updated_at"] = max(told["updated_at"], households[household_id]["updated_at"])
                households[household_id] = {**household, **told}
                yield at, "households", households[household_id]
            else:
                device_id = self.chance.choice(self.devices[:4])
                device = devices.get(device_id) or self.device(at, device_id, homes[device_id])
                midst = [row["event_ts"] for row in events if row["device_id"] == device_id and row["event_ts"] < at]
                if midst and self.chance.random() < 0.5:
                    told["updated_at"] = self.chance.choice(sorted(midst)[-40:])
                if device_id in devices:
                    told["updated_at"] = max(told["updated_at"], device["updated_at"])
                    device = {**device, **self.device_change(at)}
                elif self.chance.random() < 0.3:  # deleted before it was announced
                    device = {**device, "household_id": None, "deleted_at": at}
                devices[device_id] = {**device, **told}
                yield at, "devices", devices[device_id]

    def household(self, at: datetime, household_id: str) -> Row:
        return {
            "household_id": household_id,
            "region": self.chance.choice(["north", "south", None]),
            "timezone": self.chance.choice(ZONES),
            "updated_at": at,
            "deleted_at": at if self.chance.random() < 0.1 else None,
            "ingested_at": at,
        }

    def device(self, at: datetime, device_id: str, household_id: str) -> Row:
        return {
            "device_id": device_id,
            "household_id": household_id,
            "device_type": self.chance.choice(["lock", "gate"]),
            "model": "L1",
            "firmware_version": "1.0",
            "installed_at": at,
            "updated_at": at,
            "deleted_at": None,
            "ingested_at": at,
        }

    def device_change(self, at: datetime) -> Row:
        home = {"household_id": self.chance.choice(self.households), "deleted_at": None}
        return self.chance.choice(
            [home, home, {"firmware_version": f"1.{self.chance.randrange(9)}"}, {"deleted_at": at}, {}]
        )

    # Ledger

    def minutes(self) -> Iterable[Row]:
        for _ in range(20):
            at = START + (self.cuts[-1] - START) * self.chance.random()
            yield {
                "cluster_id": "test",
                "consumer_group": self.chance.choice(["a", "b"]) + f" of {self.seed}",
                "topic": self.chance.choice(["smart-access.events", "smart-access.health", "smart-access.devices"]),
                "partition": self.chance.randrange(3),
                "minute_starts_at": at.replace(second=0, microsecond=0),
                "stored": self.chance.randrange(5),
                "duplicates": self.chance.randrange(3),
                "dead": self.chance.randrange(2),
            }
