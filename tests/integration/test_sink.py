"""The sink alone, against a real PostgreSQL: the fence, the COMMIT whose answer is lost, and rows that are refused."""

from __future__ import annotations

import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from event_stream import event, event_id
from running_consumer import Database

from batch import Batch
from contracts import EVENTS
from record import Record
from row_text import encode
from sink import Fenced, Sink, is_outage

CLUSTER, GROUP, PARTITION = "cluster", "group", 3
PLACE = (EVENTS.topic, PARTITION)


@pytest.fixture
def tables(database: dict[str, str]) -> Database:
    return Database(database)


@pytest.fixture
def make_sink(tables: Database) -> Iterator[Callable[..., Sink]]:
    """make_sink(connect): a sink that stands at offset 0, over connections of its own."""
    made: list[Sink] = []

    def make(connect: Callable[..., Any] | None = None) -> Sink:
        made.append(Sink(connect or (lambda **options: connect_to(tables, **options)), CLUSTER, GROUP))
        made[-1].positions({PLACE: 0})
        return made[-1]

    yield make
    for sink in made:
        sink.close()


def connect_to(tables: Database, **options: Any) -> Any:
    env = tables.environment
    return psycopg2.connect(
        host=env["PGHOST"], port=env["PGPORT"], dbname=env["PGDATABASE"], user=env["PGUSER"],
        password=env["PGPASSWORD"], **options,
    )  # fmt: skip


def batch_of(low: int, values: list[bytes]) -> Batch:
    now = int(time.time() * 1000)
    records = [Record(low + at, now, b"k", value, []) for at, value in enumerate(values)]
    batch = Batch()
    batch.add(EVENTS.topic, PARTITION, low, low + len(values), encode(EVENTS, PARTITION, records))
    return batch


def events(low: int, high: int) -> Batch:
    return batch_of(low, [event(number) for number in range(low, high)])


def rows(tables: Database) -> int:
    count: int = tables.one("SELECT count(*) FROM raw_access_events")
    return count


def ledger(tables: Database) -> tuple[int, ...]:
    [found] = tables.rows(
        "SELECT next_offset, stored, duplicates, dead, gaps, balanced FROM ingest_ledger"
        " WHERE (topic, partition) = (%s, %s)",
        *PLACE,
    )
    assert found[-1] is True
    by_minute = tables.rows(
        "SELECT coalesce(sum(stored), 0), coalesce(sum(duplicates), 0), coalesce(sum(dead), 0) FROM ingest_minutes"
        " WHERE (topic, partition) = (%s, %s)",
        *PLACE,
    )
    assert by_minute == [tuple(found[1:4])]
    return tuple(found[:-1])


def test_of_two_sinks_at_one_place_the_later_is_fenced_and_writes_nothing(
    tables: Database, make_sink: Callable[..., Sink]
) -> None:
    first, second = make_sink(), make_sink()
    first.write(events(0, 100))
    with pytest.raises(Fenced, match=r"smart-access\.events\[3\] at 100"):
        second.write(events(0, 200))
    assert rows(tables) == 100
    assert ledger(tables) == (100, 100, 0, 0, 0)
    second.write(events(100, 150))
    with pytest.raises(Fenced):
        first.write(events(100, 130))
    assert rows(tables) == 150
    assert ledger(tables) == (150, 150, 0, 0, 0)


def test_a_batch_with_one_stale_partition_of_two_writes_nothing_of_either(
    tables: Database, make_sink: Callable[..., Sink]
) -> None:
    sink, other = make_sink(), make_sink()
    sink.positions({(EVENTS.topic, 4): 0})
    other.write(events(0, 10))
    both = events(0, 10)
    both.add(EVENTS.topic, 4, 0, 1, encode(EVENTS, 4, [Record(0, 1_750_000_000_000, b"k", event(777), [])]))
    with pytest.raises(Fenced, match=r"events\[3\] at 10$"):
        sink.write(both)
    assert rows(tables) == 10
    assert tables.one("SELECT next_offset FROM ingest_offsets WHERE partition = 4") == 0


class Unreliable:
    """Makes connections that break at a COMMIT: before it reaches the server, or before its answer comes back."""

    def __init__(self, tables: Database, reaches_the_server: bool):
        self._tables = tables
        self._reaches_the_server = reaches_the_server
        self.breaks = 1

    def connect(self, **options: Any) -> Any:
        outer = self

        class Cursor(psycopg2.extensions.cursor):
            def execute(self, query: Any, values: Any = None) -> None:
                if "COMMIT" in str(query) and outer.breaks:
                    outer.breaks -= 1
                    if outer._reaches_the_server:
                        super().execute(query, values)
                    self.connection.close()
                    raise psycopg2.OperationalError("server closed the connection unexpectedly")
                super().execute(query, values)

        return connect_to(self._tables, cursor_factory=Cursor, **options)


@pytest.mark.parametrize("reaches_the_server", [True, False], ids=["done", "not_done"])
def test_a_commit_whose_answer_is_lost_is_neither_doubled_nor_taken_for_anothers(
    tables: Database, make_sink: Callable[..., Sink], reaches_the_server: bool
) -> None:
    sink = make_sink(Unreliable(tables, reaches_the_server).connect)
    batch = batch_of(0, [event(number) for number in range(50)] + [b"{"])
    with pytest.raises(psycopg2.OperationalError) as lost:
        sink.write(batch)
    assert is_outage(lost.value)
    assert rows(tables) == (50 if reaches_the_server else 0)
    written = sink.write(batch)
    assert written.stored == Counter({PLACE: 50})
    assert [letter.reason for letter in written.dead] == ["bad_json"]
    assert (rows(tables), ledger(tables)) == (50, (51, 50, 0, 1, 0))
    assert tables.one("SELECT count(*) FROM dead_letters") == 1
    sink.write(events(51, 60))
    assert (rows(tables), ledger(tables)) == (59, (60, 59, 0, 1, 0))


def test_a_commit_that_did_not_happen_and_was_overtaken_is_fenced(
    tables: Database, make_sink: Callable[..., Sink]
) -> None:
    sink = make_sink(Unreliable(tables, reaches_the_server=False).connect)
    with pytest.raises(psycopg2.OperationalError):
        sink.write(events(0, 50))
    make_sink().write(events(0, 20))
    with pytest.raises(Fenced):
        sink.write(events(0, 50))
    assert (rows(tables), ledger(tables)) == (20, (20, 20, 0, 0, 0))


@pytest.mark.parametrize("fault", ["pg_terminate_backend(pid)", "pg_cancel_backend(pid)"])
def test_a_transaction_broken_in_the_middle_leaves_nothing_and_can_be_done_again(
    tables: Database, make_sink: Callable[..., Sink], fault: str
) -> None:
    """A trigger ends the very transaction that inserts: after the ledger's advance and before the rows are in."""
    statement = fault.replace("pid", "pg_backend_pid()")
    tables.execute(f"""
        CREATE FUNCTION breaks() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM {statement}; PERFORM pg_sleep(10); RETURN NEW; END $$;
        CREATE TRIGGER breaks BEFORE INSERT ON raw_access_events EXECUTE FUNCTION breaks();
    """)
    sink = make_sink()
    with pytest.raises(psycopg2.Error) as broken:
        sink.write(events(0, 50))
    assert is_outage(broken.value)
    assert (rows(tables), ledger(tables)) == (0, (0, 0, 0, 0, 0))
    tables.execute("DROP TRIGGER breaks ON raw_access_events")
    sink.write(events(0, 50))
    assert (rows(tables), ledger(tables)) == (50, (50, 50, 0, 0, 0))


@pytest.mark.parametrize("low", [0, 100])
def test_events_that_are_there_already_are_duplicates_and_their_neighbours_land(
    tables: Database, make_sink: Callable[..., Sink], low: int
) -> None:
    sink = make_sink()
    sink.write(events(0, 100))
    again = [event(number) for number in range(low, low + 60)] + [event(500)] * 3
    written = sink.write(batch_of(100, again))
    fresh = 1 if low == 0 else 61
    assert written.stored == Counter({PLACE: fresh})
    assert (rows(tables), ledger(tables)) == (100 + fresh, (163, 100 + fresh, 63 - fresh, 0, 0))


@pytest.mark.parametrize("refusal", ["constraint", "trigger", "limit"])
def test_rows_that_postgresql_refuses_become_dead_letters_and_their_neighbours_land(
    tables: Database, make_sink: Callable[..., Sink], refusal: str
) -> None:
    refused = [0, 250, 499]
    ids = ", ".join(f"'{event_id(number)}'" for number in refused)
    body = {
        "constraint": f"ALTER TABLE raw_access_events ADD CONSTRAINT c CHECK (event_id NOT IN ({ids}))",
        "trigger": f"IF NEW.event_id IN ({ids}) THEN RAISE EXCEPTION 'not this one'; END IF;",
        "limit": f"IF NEW.event_id IN ({ids}) THEN RAISE program_limit_exceeded; END IF;",
    }[refusal]
    if refusal != "constraint":
        body = f"""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON raw_access_events FOR EACH ROW EXECUTE FUNCTION refuse();
        """
    tables.execute(body)
    written = make_sink().write(events(0, 500))
    assert written.stored == Counter({PLACE: 497})
    assert (rows(tables), ledger(tables)) == (497, (500, 497, 0, 3, 0))
    letters = tables.rows('SELECT "offset", reason, detail, value, key FROM dead_letters ORDER BY 1')
    state = {"constraint": "23514", "trigger": "P0001", "limit": "54000"}[refusal]
    for number, (offset, reason, detail, value, key) in zip(refused, letters, strict=True):
        assert (offset, reason, bytes(value), bytes(key)) == (number, "refused_by_database", event(number), b"k")
        assert detail.startswith(f"SQLSTATE {state}: ")


def test_a_failure_that_is_neither_an_outage_nor_a_rows_fault_is_raised_and_writes_nothing(
    tables: Database, make_sink: Callable[..., Sink]
) -> None:
    sink = make_sink()
    tables.execute("ALTER TABLE raw_access_events RENAME COLUMN device_id TO device")
    with pytest.raises(psycopg2.errors.UndefinedColumn) as bug:
        sink.write(events(0, 10))
    assert not is_outage(bug.value)
    assert (rows(tables), ledger(tables)) == (0, (0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("state", "passes"),
    [
        ("08006", True),  # connection_failure
        ("25P03", True),  # idle_in_transaction_session_timeout
        ("25P04", True),  # transaction_timeout
        ("25006", True),  # read_only_sql_transaction: a standby
        ("40001", True),  # serialization_failure
        ("40P01", True),  # deadlock_detected
        ("53100", True),  # disk_full
        ("53300", True),  # too_many_connections
        ("55P03", True),  # lock_not_available
        ("57014", True),  # query_canceled
        ("57P01", True),  # admin_shutdown
        ("57P02", True),  # crash_shutdown
        ("57P03", True),  # cannot_connect_now
        ("58030", True),  # io_error
        ("22P02", False),  # invalid_text_representation
        ("23505", False),  # unique_violation
        ("23514", False),  # check_violation
        ("42P01", False),  # undefined_table
        ("42501", False),  # insufficient_privilege
        ("54000", False),  # program_limit_exceeded
        ("P0001", False),  # raise_exception
        ("XX000", False),  # internal_error
    ],
)
def test_an_outage_is_told_from_a_refusal_by_its_sqlstate(tables: Database, state: str, passes: bool) -> None:
    with pytest.raises(psycopg2.Error) as raised:
        tables.execute(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END $$")
    assert raised.value.pgcode == state
    assert is_outage(raised.value) is passes


def test_a_connection_that_fails_or_is_closed_is_an_outage(tables: Database) -> None:
    connection = connect_to(tables)
    connection.close()
    with pytest.raises(psycopg2.InterfaceError) as closed:
        connection.cursor()
    assert is_outage(closed.value)
    with pytest.raises(psycopg2.OperationalError) as refused:
        psycopg2.connect(host="127.0.0.1", port=1)
    assert is_outage(refused.value)
    assert not is_outage(ValueError("a bug"))


def test_a_write_into_a_connection_that_was_reset_is_an_outage(tables: Database) -> None:
    """What the server said last can still be read (of an immediate shutdown it tells), so libpq does not call the
    connection bad."""
    connection = connect_to(tables)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("LISTEN news")
        tables.execute("NOTIFY news")
        assert select.select([connection], [], [], 10)[0]
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_WR)
        with pytest.raises(psycopg2.DatabaseError) as broken:
            cursor.execute("SELECT 1")
    connection.close()
    assert not isinstance(broken.value, psycopg2.OperationalError)
    assert is_outage(broken.value)


def test_a_position_is_kept_however_often_it_is_asked_for(tables: Database, make_sink: Callable[..., Sink]) -> None:
    sink = make_sink()
    sink.write(events(0, 10))
    assert sink.positions({PLACE: 5}) == {PLACE: 10}
    assert sink.positions({PLACE: 50, (EVENTS.topic, 9): 7}) == {PLACE: 10, (EVENTS.topic, 9): 7}
    assert ledger(tables) == (10, 10, 0, 0, 0)
