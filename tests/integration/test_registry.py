"""The fleet registry: the newest record of each device or household, whatever the order and the batches it came in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import permutations
from typing import Any

import psycopg2
import pytest
from running_consumer import Database

from batch import Batch
from contracts import DEVICES
from record import Record
from row_text import encode
from sink import Sink

DAY_MS = 86_400_000
NOON_MS = 1_748_779_200_000  # 2025-06-01T12:00:00Z
EARLIER, LATER = "2025-05-01T00:00:00Z", "2025-05-02T00:00:00Z"


class Registry(Database):
    """The table raw_devices, written through the sink as the consumer does."""

    def __init__(self, environment: dict[str, str]):
        super().__init__(environment)
        self.sink = self.new_sink("cluster")
        self.next_offset = 0

    def new_sink(self, cluster: str) -> Sink:
        env = self.environment
        sink = Sink(
            lambda **options: psycopg2.connect(
                host=env["PGHOST"], port=env["PGPORT"], dbname=env["PGDATABASE"], user=env["PGUSER"],
                password=env["PGPASSWORD"], **options,
            ),
            cluster,
            "group",
        )  # fmt: skip
        sink.positions({(DEVICES.topic, 0): 0})
        return sink

    def receive(self, *values: bytes | None, timestamp_ms: int = NOON_MS) -> int:
        """Records of device lock-1 in one batch; the number of those that changed the registry."""
        low, high = self.next_offset, self.next_offset + len(values)
        self.next_offset = high
        records = [Record(low + at, timestamp_ms, b"lock-1", value, []) for at, value in enumerate(values)]
        encoded = encode(DEVICES, 0, records)
        assert not encoded.dead
        batch = Batch()
        batch.add(DEVICES.topic, 0, low, high, encoded)
        return self.sink.write(batch).stored.total()

    def device(self) -> dict[str, Any]:
        names = ("model", "household_id", "updated_at", "is_deleted", "kafka_offset")
        [row] = self.rows(
            'SELECT model, household_id, to_char(updated_at, \'YYYY-MM-DD"T"HH24:MI:SS"Z"\'),'
            " deleted_at IS NOT NULL, kafka_offset FROM raw_devices"
        )
        return dict(zip(names, row, strict=True))


@pytest.fixture
def make_registry(postgres: Any, database: dict[str, str]) -> Iterator[Callable[[], Registry]]:
    """A registry without rows, as often as it is called."""
    made: list[Registry] = []

    def make() -> Registry:
        for registry in made:
            registry.sink.close()
        Database(database).execute("SET timezone = 'UTC'; TRUNCATE raw_devices, ingest_offsets")
        made.append(Registry(database))
        return made[-1]

    yield make
    for registry in made:
        registry.sink.close()


@pytest.fixture
def registry(make_registry: Callable[[], Registry]) -> Registry:
    return make_registry()


def device(model: str, updated_at: str | None) -> bytes:
    record = {"device_id": "lock-1", "household_id": "home-1", "model": model, "updated_at": updated_at}
    return json.dumps({name: value for name, value in record.items() if value is not None}).encode()


def test_an_older_record_never_replaces_a_newer_one(registry: Registry) -> None:
    assert registry.receive(device("new", LATER)) == 1
    assert registry.receive(device("old", EARLIER)) == 0
    assert registry.device()["model"] == "new"
    assert registry.rows("SELECT stored, duplicates, balanced FROM ingest_ledger") == [(1, 1, True)]


def test_between_equals_the_later_offset_wins(registry: Registry) -> None:
    assert registry.receive(device("first", LATER)) == 1
    assert registry.receive(device("second", LATER)) == 1
    assert registry.device() == {
        "model": "second", "household_id": "home-1", "updated_at": LATER, "is_deleted": False, "kafka_offset": 1,
    }  # fmt: skip


def test_without_updated_at_the_records_timestamp_counts(registry: Registry) -> None:
    registry.receive(device("untimed", None))
    registry.receive(device("older", LATER))
    assert registry.device()["model"] == "untimed"
    assert registry.device()["updated_at"] == "2025-06-01T12:00:00Z"


def test_a_tombstone_marks_the_device_deleted_and_keeps_what_was_known(registry: Registry) -> None:
    registry.receive(device("known", LATER))
    assert registry.receive(None) == 1
    assert registry.device() == {
        "model": "known",
        "household_id": "home-1",
        "updated_at": "2025-06-01T12:00:00Z",
        "is_deleted": True,
        "kafka_offset": 1,
    }


def test_a_tombstone_of_an_unknown_device_is_kept(registry: Registry) -> None:
    assert registry.receive(None) == 1
    assert registry.device()["is_deleted"]
    assert registry.device()["household_id"] is None


def test_a_later_record_revives_a_deleted_device_and_an_older_one_does_not(registry: Registry) -> None:
    registry.receive(device("known", LATER), None)
    assert registry.receive(device("late arrival", EARLIER)) == 0
    assert registry.device()["is_deleted"]
    assert registry.receive(device("again", "2025-06-02T00:00:00Z"), timestamp_ms=NOON_MS + DAY_MS) == 1
    assert registry.device()["model"] == "again"
    assert not registry.device()["is_deleted"]


def test_a_tombstone_wins_over_a_device_whose_clock_ran_ahead(registry: Registry) -> None:
    registry.receive(device("ahead", "2025-06-01T12:04:00Z"))
    assert registry.receive(None) == 1
    assert registry.device()["is_deleted"]


def test_the_same_records_give_the_same_device_however_they_are_batched(
    make_registry: Callable[[], Registry],
) -> None:
    versions = [device("old", EARLIER), device("new", LATER), device("same instant", LATER), None]
    for order in permutations(versions):
        one_batch, one_by_one = make_registry, make_registry
        together = one_batch()
        stored_together = together.receive(*order)
        expected = together.device(), stored_together
        apart = one_by_one()
        stored_apart = sum(apart.receive(value) for value in order)
        assert (apart.device(), stored_apart) == expected


def test_a_registry_that_is_read_again_from_the_beginning_stays_as_it_is(registry: Registry) -> None:
    versions = [device("old", EARLIER), device("new", LATER), None, device("revived", "2025-06-01T12:01:00Z")]
    registry.receive(*versions)
    before = registry.device()
    with closing(registry.new_sink("another cluster")) as registry.sink:
        registry.next_offset = 0
        assert registry.receive(*versions) == 0
        assert registry.device() == before
