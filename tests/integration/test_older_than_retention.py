"""What is older than RETENTION_DAYS: refused from the stream, loaded from files, kept where it is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg2
from csv_loads import Loads, row
from event_stream import event_id
from running_consumer import ROOT

from contracts import DEVICES, EVENTS, HEALTH
from sweep import sweep
from sweep_parts import Retention

if TYPE_CHECKING:
    from event_stream import Stream

NOW = datetime.now(UTC)
IN_A_YEAR = Retention(days=90, months=13, today=date.today() + timedelta(days=365))


def encoded(days: float, **record: Any) -> bytes:
    """A record of the stream, so many days old."""
    when = (NOW - timedelta(days=days)).isoformat()
    time = {"event_ts": when, "trigger_source": "app"} if "event_id" in record else {"reported_at": when}
    return json.dumps({"device_id": "lock-1", **time, **record}).encode()


def replay(stream: Stream, **environment: str) -> str:
    command = [sys.executable, "streaming/replay_dead_letters.py", "replay"]
    env = {**os.environ, **stream.environment, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout


def test_the_stream_makes_dead_letters_of_what_is_older_and_a_replay_stores_them_only_without_the_setting(
    stream: Stream,
) -> None:
    for number, days in enumerate((89.9, 90.1, 0, 500)):
        stream.send(EVENTS.topic, encoded(days, event_id=event_id(number), event_type="open"), b"lock-1")
        stream.send(HEALTH.topic, encoded(days, is_online=True), b"lock-1")
    registry = {"device_id": "lock-1", "household_id": "home-1", "updated_at": "2020-01-01T00:00:00Z"}
    stream.send(DEVICES.topic, json.dumps(registry).encode(), b"lock-1")
    stream.flush()
    with stream.consumer(RETENTION_DAYS="90") as running:
        stream.wait_until_consumed(running)
    consumed = {topic: (counts["stored"], counts["dead"]) for topic, counts in stream.ledger().items()}
    assert {name: consumed[name] for name in (EVENTS.topic, HEALTH.topic, DEVICES.topic)} == {
        EVENTS.topic: (2, 2), HEALTH.topic: (2, 2), DEVICES.topic: (1, 0),
    }  # fmt: skip
    assert stream.stored() == [event_id(0), event_id(2)]
    found = stream.rows("SELECT DISTINCT topic, reason, split_part(detail, ' lies', 1) FROM dead_letters ORDER BY 1")
    reason = "older_than_retention"
    assert found == [(EVENTS.topic, reason, "event_ts"), (HEALTH.topic, reason, "reported_at")]
    assert stream.one("SELECT count(*) FROM dead_letters WHERE detail LIKE '%% limit that RETENTION_DAYS sets'") == 4

    assert replay(stream, RETENTION_DAYS="90") == "replayed 0, duplicate 0, still invalid 4\n"
    said = stream.rows("SELECT DISTINCT split_part(fate_detail, ':', 1) FROM dead_letters")
    assert said == [("older_than_retention",)]
    assert replay(stream) == "replayed 4, duplicate 0, still invalid 0\n"
    assert len(stream.stored()) == 4


def swept(loads: Loads) -> int:
    env = loads.environment
    connect = partial(
        psycopg2.connect, host=env["PGHOST"], port=env["PGPORT"], dbname=env["PGDATABASE"], user=env["PGUSER"],
        password=env["PGPASSWORD"],
    )  # fmt: skip
    return sweep(connect, IN_A_YEAR)["raw_access_events"]


def sessions(device: str, first: int, bad: int = 0) -> list[str]:
    """Five openings and closings, an hour apart, the last of which every sweep leaves."""
    return [
        row(first + n, device_id=device, event_ts=f"2025-06-01T{n:02}:00:00Z",
            event_type="ajar" if n == bad else ("close", "open")[n % 2])
        for n in range(1, 11)
    ]  # fmt: skip


def test_a_file_is_loaded_whatever_its_age_and_kept_when_asked_also_afterwards(loads: Loads) -> None:
    kept, other, later = (loads.put(f"{name}.csv", *sessions(name, at)) for name, at in
                          (("kept", 0), ("other", 100), ("later", 200)))  # fmt: skip
    loads.run(kept, "--keep", RETENTION_DAYS="90")
    loads.run(other, later, RETENTION_DAYS="90")
    assert loads.one("SELECT count(*) FROM raw_access_events WHERE file_load_id IS NOT NULL") == 30
    assert "loaded before" in loads.run(later, "--keep")[0]
    assert "loaded before" in loads.run(kept)[0]  # which takes nothing back
    assert loads.rows("SELECT file_name FROM file_loads WHERE pinned ORDER BY 1") == [(kept,), (later,)]
    assert swept(loads) == 8
    left = loads.rows("SELECT device_id, count(*)::int FROM raw_access_events GROUP BY 1 ORDER BY 1")
    assert left == [("kept", 10), ("later", 10), ("other", 2)]


def test_a_row_that_is_merged_or_replayed_is_of_its_file_too(loads: Loads) -> None:
    """A duplicate sends the batch by way of the temporary table; a dead letter knows its file."""
    repeated = sessions("lock", 0, bad=3)
    loads.run(loads.put("kept.csv", *repeated, repeated[0]), "--keep")
    number = loads.one("SELECT file_load_id FROM file_loads")
    assert loads.rows("SELECT file_load_id, count(*)::int FROM raw_access_events GROUP BY 1") == [(number, 9)]
    mended = "convert_to(replace(convert_from(value, 'UTF8'), 'ajar', 'open'), 'UTF8')"
    loads.execute(f"UPDATE dead_letters SET value = {mended}")  # noqa: S608
    out, _ = loads.run("replay", name="replay_dead_letters", RETENTION_DAYS="90")
    assert out == "replayed 1, duplicate 0, still invalid 0\n"
    assert loads.rows("SELECT file_load_id, count(*)::int FROM raw_access_events GROUP BY 1") == [(number, 10)]
    assert swept(loads) == 0
