"""An erased household and the writers, on a real PostgreSQL: the sink, a load of a file, the replay of dead letters."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from event_stream import event, event_id, wait_until
from running_consumer import Database

import suppression_list
from batch import Batch
from contracts import DEVICES, EVENTS
from erased_tables import Household
from record import Record
from row_text import encode
from sink import Sink

if TYPE_CHECKING:
    from csv_loads import Loads

PLACE = (EVENTS.topic, 3)


@pytest.fixture
def tables(database: dict[str, str]) -> Database:
    return Database(database)


def connect_to(tables: Database, **options: Any) -> Any:
    env = tables.environment
    return psycopg2.connect(
        host=env["PGHOST"], port=env["PGPORT"], dbname=env["PGDATABASE"], user=env["PGUSER"],
        password=env["PGPASSWORD"], **options,
    )  # fmt: skip


@contextmanager
def sink_of(tables: Database, group: str = "group", **options: Any) -> Iterator[Sink]:
    sink = Sink(lambda **session: connect_to(tables, **options, **session), "cluster", group)
    sink.positions({PLACE: 0, (DEVICES.topic, 3): 0})
    with closing(sink):
        yield sink


def suppress(tables: Database, *devices: str, **moved: list[tuple[str, str]]) -> None:
    with closing(tables.connect()) as connection, connection, connection.cursor() as cursor:
        suppression_list.hold_writers(cursor)
        suppression_list.suppress(cursor, Household("home", list(devices), moved), tombstones=False)


def batch_of(low: int, *values: bytes, topic: str = EVENTS.topic, key: bytes = b"k") -> Batch:
    contract = EVENTS if topic == EVENTS.topic else DEVICES
    records = [Record(low + at, int(time.time() * 1000), key, value, []) for at, value in enumerate(values)]
    batch = Batch()
    batch.add(topic, 3, low, low + len(values), encode(contract, 3, records))
    return batch


def ledger(tables: Database, group: str = "group") -> tuple[Any, ...]:
    """consumed, stored, duplicates, dead, gaps, suppressed; it balances, and its minutes add up to it."""
    counts = "stored, duplicates, dead, {}suppressed"
    [found] = tables.rows(
        f"SELECT balanced, consumed, {counts.format('gaps, ')} FROM live.ledger"  # noqa: S608
        " WHERE consumer_group = %s AND topic = %s", group, EVENTS.topic,
    )  # fmt: skip
    assert found[0] is True
    sums = ", ".join(f"sum({name})::int" for name in ("stored", "duplicates", "dead", "suppressed"))
    by_minute = tables.rows(f"SELECT {sums} FROM ingest_minutes WHERE consumer_group = %s", group)  # noqa: S608
    assert by_minute == [(*found[2:5], found[6])]
    return tuple(found[1:])


def test_what_is_listed_is_counted_and_its_neighbours_land(tables: Database) -> None:
    suppress(tables, "lock-1", "lock-2")
    poison, others = b'{"device_id": "lock-2"', b'{"device_id": "lock-3"'
    with sink_of(tables) as sink:
        written = sink.write(batch_of(0, *(event(number) for number in range(10)), poison, others))
        assert written.suppressed.total() == 3
        sink.write(batch_of(12, event(3), event(1), event(51), event(53)))  # by way of the temporary table
    assert ledger(tables) == (16, 9, 1, 1, 0, 5)
    assert tables.rows("SELECT FROM raw_access_events WHERE device_id IN ('lock-1', 'lock-2')") == []
    assert [bytes(value) for (value,) in tables.rows("SELECT value FROM dead_letters")] == [others]


def test_a_batch_of_which_nothing_is_left_moves_the_ledger(tables: Database) -> None:
    suppress(tables, "lock-1")
    entry = json.dumps({"device_id": "new", "household_id": "home"}).encode()
    with sink_of(tables) as sink:
        sink.write(batch_of(0, event(1), event(51)))
        sink.write(batch_of(0, entry, topic=DEVICES.topic, key=b"new"))
    assert tables.one("SELECT count(*) FROM raw_access_events") == tables.one("SELECT count(*) FROM raw_devices") == 0
    assert tables.rows("SELECT next_offset, suppressed, balanced FROM ingest_ledger ORDER BY topic") == [
        (1, 1, True), (2, 2, True),
    ]  # fmt: skip


def test_the_list_costs_a_transaction_no_statement_until_it_changes(tables: Database) -> None:
    said: list[str] = []

    class Cursor(psycopg2.extensions.cursor):
        def execute(self, query: Any, values: Any = None) -> None:
            said.append(str(query).strip().split()[0])
            super().execute(query, values)

    with sink_of(tables, cursor_factory=Cursor) as sink:
        for at in range(2):
            said.clear()
            sink.write(batch_of(at, event(at)))
            assert said == ["BEGIN;", "UPDATE"]  # and a COPY between them
        suppress(tables, "lock-1")
        for at, expected in ((2, ["BEGIN;", "SELECT", "UPDATE"]), (3, ["BEGIN;", "UPDATE"])):
            said.clear()
            sink.write(batch_of(at, event(at)))
            assert said == expected


def test_a_device_that_is_released_is_taken_again_from_then_on(tables: Database) -> None:
    suppress(tables, "lock-1")

    def lock_at(number: int, at: str) -> bytes:
        return json.dumps(json.loads(event(number)) | {"device_id": "lock-1", "event_ts": at}).encode()

    with sink_of(tables) as sink:
        sink.write(batch_of(0, event(1)))
        with closing(tables.connect()) as connection, connection, connection.cursor() as cursor:
            assert not suppression_list.release(cursor, "lock-2")
            assert suppression_list.release(cursor, "lock-1")
        now = tables.one("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        sink.write(batch_of(1, event(1), lock_at(2, now)))
    assert tables.rows("SELECT event_id::text FROM raw_access_events") == [(event_id(2),)]
    assert ledger(tables) == (3, 1, 0, 0, 0, 2)


def test_of_a_device_that_moved_only_its_time_in_the_household_is_held_back(tables: Database) -> None:
    suppress(tables, **{"lock-1": [("-infinity", "2024-01-01"), ("2025-06-01T12:00:00Z", "2025-06-01T12:00:01Z")]})

    def at(number: int, time_: str) -> bytes:
        return json.dumps(json.loads(event(number)) | {"device_id": "lock-1", "event_ts": time_}).encode()

    times = ["2023-05-05T00:00:00Z", "2024-01-01T00:00:00Z", "2025-06-01T12:00:00Z", "2025-06-01T12:00:01Z"]
    with sink_of(tables) as sink:
        sink.write(batch_of(0, *(at(number, time_) for number, time_ in enumerate(times))))
    kept = tables.rows("SELECT event_id::text FROM raw_access_events ORDER BY 1")
    assert kept == [(event_id(1),), (event_id(3),)]


def waiting(tables: Database) -> int:
    count: int = tables.one(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return count


def test_no_write_slips_past_the_list(tables: Database) -> None:
    """One writer is in the middle of its transaction when the list is laid down, and another one comes after that."""
    with sink_of(tables, "before") as before, sink_of(tables, "after") as after, closing(tables.connect()) as holder:
        for sink in (before, after):
            sink.write(batch_of(0, event(900)))  # both know that nobody is on the list
        holder.cursor().execute("LOCK TABLE raw_access_events IN ACCESS EXCLUSIVE MODE")
        threads = [threading.Thread(target=before.write, args=[batch_of(1, event(1))])]
        threads[0].start()
        wait_until(lambda: waiting(tables) == 1)
        threads.append(threading.Thread(target=suppress, args=[tables, "lock-1"]))
        threads[1].start()
        wait_until(lambda: waiting(tables) == 2)
        threads.append(threading.Thread(target=after.write, args=[batch_of(1, event(51))]))
        threads[2].start()
        wait_until(lambda: waiting(tables) == 3)
        assert tables.one("SELECT count(*) FROM suppressions") == 0
        holder.rollback()
        for thread in threads:
            thread.join(30)
    assert tables.rows("SELECT event_id::text FROM raw_access_events ORDER BY 1") == [(event_id(1),), (event_id(900),)]
    assert ledger(tables, "before")[-1] == 0
    assert ledger(tables, "after") == (2, 0, 1, 0, 0, 1)


def test_a_load_in_the_middle_of_its_transaction_is_waited_for_and_its_next_one_sees_the_list(
    tables: Database, loads: Loads
) -> None:
    file = loads.put_events("events.csv", 200)
    with loads.script(file, "--batch-size", "100") as process:
        with loads.held_up(0):
            loads.wait_until_held_up(process)
            thread = threading.Thread(target=suppress, args=[tables, "lock-1"])
            thread.start()
            wait_until(lambda: waiting(tables) == 2)
        thread.join(30)
        out, _ = process.communicate(timeout=60)
    assert " stored=198 duplicates=0 dead=0 suppressed=2 " in out
    [counts] = tables.rows("SELECT rows, stored, duplicates, dead, suppressed, balanced FROM file_loads")
    assert counts == (200, 198, 0, 0, 2, True)
    written = tables.rows("SELECT event_id::text FROM raw_access_events WHERE device_id = 'lock-1' ORDER BY 1")
    assert written == [(event_id(1),), (event_id(51),)]


def test_a_letter_of_an_erased_household_is_not_replayed(tables: Database, loads: Loads) -> None:
    suppress(tables, "lock-1")
    for number in (1, 2):
        tables.execute(
            "INSERT INTO dead_letters (topic, key, value, reason, detail) VALUES (%s, 'k', %s, 'old', '')",
            EVENTS.topic, event(number),
        )  # fmt: skip
    out, _ = loads.run("replay", name="replay_dead_letters")
    assert out == "replayed 1, duplicate 0, still invalid 1\n"
    assert tables.rows("SELECT device_id FROM raw_access_events") == [("lock-2",)]
    found = tables.one("SELECT fate_detail FROM dead_letters WHERE fate = 'still_invalid'")
    assert found == "suppressed: its household or device was erased"


OF_AN_EARLIER_VERSION = """
DROP VIEW live.ledger, live.minutes, ingest_ledger;
ALTER TABLE ingest_offsets DROP COLUMN suppressed;
ALTER TABLE ingest_minutes DROP COLUMN suppressed;
ALTER TABLE file_loads ALTER COLUMN balanced SET EXPRESSION AS (stored + duplicates + dead = rows);
ALTER TABLE file_loads DROP COLUMN suppressed;
DROP TABLE suppressions, suppression_list, erasures;
CREATE VIEW ingest_ledger AS
SELECT cluster_id, consumer_group, topic, partition, start_offset, next_offset, stored, duplicates, dead, gaps,
       next_offset - start_offset AS consumed,
       stored + duplicates + dead + gaps = next_offset - start_offset AS balanced, updated_at
FROM ingest_offsets;
CREATE VIEW live.ledger AS
SELECT cluster_id, consumer_group, topic, partition, start_offset, next_offset, consumed, stored, duplicates, dead,
       gaps, balanced, updated_at
FROM ingest_ledger;
CREATE VIEW live.minutes AS
SELECT topic, minute_starts_at, sum(stored)::bigint AS stored, sum(duplicates)::bigint AS duplicates,
       sum(dead)::bigint AS dead
FROM ingest_minutes GROUP BY topic, minute_starts_at;
INSERT INTO file_loads (sha256, table_name, columns, file_name, size_bytes, rows, stored, dead)
VALUES ('', '', '', '', 0, 3, 2, 1);
"""


def test_the_tables_of_an_earlier_version_are_brought_up_to_date_once(tables: Database) -> None:
    from pipeline_settings import apply_schema

    tables.execute(OF_AN_EARLIER_VERSION)

    def start() -> None:
        with closing(tables.connect()) as connection:
            apply_schema(connection)

    start()
    suppress(tables, "lock-1")
    with sink_of(tables) as sink:
        sink.write(batch_of(0, event(1), event(2)))
    assert ledger(tables) == (2, 1, 0, 0, 0, 1)
    assert tables.rows("SELECT rows, suppressed, balanced FROM file_loads") == [(3, 0, True)]
    with closing(tables.connect()) as user:  # who reads and writes all of them keeps no later start waiting
        user.cursor().execute(
            "SELECT FROM live.ledger, live.minutes; UPDATE file_loads SET rows = 0; UPDATE ingest_offsets SET gaps = 0;"
            " UPDATE ingest_minutes SET dead = 0"
        )
        thread = threading.Thread(target=start)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
