"""Does a sweep hold up ingestion, and is the disk used again?

    python benchmarks/retention.py [--rows N] [--old N] [--records N] [--share S]

Starts a Kafka and a PostgreSQL of its own in a temporary folder; raw_access_events has --rows rows, of which the --old
oldest are to go. One consumer with its defaults takes --records records of a full topic four times, each time from
where it stood:

alone     with nothing beside it, before and after the sweep
deleting  beside streaming/apply_retention.py while that deletes
vacuum    beside it while it vacuums

A rate is the ledger's advance over time, the first tenth of the records left out. The ratio is to the mean of the two
rates alone; asked is 0.8. Then as many rows come in as went, and the table must not have grown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingest import consumed, running_consumer
from preloaded_topic import ROOT, Dataset, fill, running_broker, temporary_tables

from local_servers.kafka_broker import KafkaBroker
from local_servers.postgres_server import PostgresServer

DAYS = 90
# Each device opens its door and closes it a minute later, again and again
HISTORY = """
INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)
SELECT uuidv7(), 'device-' || lpad((n / 2 %% 3000)::text, 5, '0'),
       %(since)s + n / 6000 * (%(until)s - %(since)s) / greatest(1, %(count)s / 6000) + n %% 2 * interval '1 minute',
       (ARRAY['open', 'close'])[1 + n %% 2], 'app'
FROM generate_series(0, %(count)s - 1) AS n"""

DELETED = "SELECT coalesce(max((deleted ->> 'raw_access_events')::bigint), 0) FROM sweeps"
VACUUMS = "SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = 'raw_access_events'::regclass"


def one(connection: Any, statement: str, *values: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchone()[0]


def put(connection: Any, count: int, oldest: int, newest: int) -> None:
    """So many events, of so many days ago."""
    now = "SELECT now() - %s * interval '1 day'"
    values = {"count": count, "since": one(connection, now, oldest), "until": one(connection, now, newest)}
    with connection.cursor() as cursor:
        cursor.execute(HISTORY, values)


def sizes(connection: Any) -> tuple[int, int]:
    """MB of the table, and of its indexes."""
    table = "SELECT pg_relation_size('raw_access_events') / 1000000"
    return one(connection, table), one(connection, "SELECT pg_indexes_size('raw_access_events') / 1000000")


def rate(
    broker: KafkaBroker, postgres: PostgresServer, connection: Any, records: int, log: Path, still: Callable[[], bool]
) -> float | None:
    """Records/s; None if `still` has ceased to hold before they were there."""
    start = consumed(connection)
    began: tuple[float, int] | None = None
    with running_consumer(broker, postgres, log) as process:
        while (done := consumed(connection) - start) < records:
            if process.poll() is not None:
                raise SystemExit(f"the consumer ended: {log.read_text()[-2000:]}")
            if done and not still():  # not before it can be stopped
                return None
            if began is None and done > records / 10:
                began = time.perf_counter(), done
            time.sleep(0.05)
        ended = time.perf_counter()
    if began is None:
        raise SystemExit("too few records: one transaction took all of them")
    return (done - began[1]) / (ended - began[0])


def measure(
    args: argparse.Namespace, folder: Path, broker: KafkaBroker, postgres: PostgresServer, connection: Any
) -> None:
    def consume(still: Callable[[], bool] = lambda: True) -> float | None:
        return rate(broker, postgres, connection, args.records, folder / "consumer.log", still)

    before = consume()
    command = [sys.executable, str(ROOT / "streaming/apply_retention.py")]
    command += ["--retention-days", str(DAYS), "--share", str(args.share)]
    began = time.perf_counter()
    with subprocess.Popen(command, env=os.environ | postgres.environment()) as sweep:

        def deletes() -> bool:
            return bool(one(connection, DELETED))

        def vacuums() -> bool:
            return bool(one(connection, VACUUMS))

        def wait_for(condition: Callable[[], bool]) -> bool:
            while sweep.poll() is None and not condition():
                time.sleep(0.05)
            return sweep.poll() is None

        deleting = consume(lambda: sweep.poll() is None and not vacuums()) if wait_for(deletes) else None
        vacuum = consume(vacuums) if wait_for(vacuums) else None
        sweep.wait()
        if sweep.returncode:
            raise SystemExit(f"the sweep exited with {sweep.returncode}")
    seconds = time.perf_counter() - began
    gone = one(connection, DELETED)
    print(f"{gone:,} rows went in {seconds:.0f} s", flush=True)
    after = consume()
    if before is None or after is None:
        raise SystemExit("no rate alone")
    alone = (before + after) / 2
    print("\n| beside | records/s | of the rate alone |\n|---|---|---|")
    print(f"| nothing, before and after | {before:,.0f}, {after:,.0f} | 1.00 |")
    for name, found in (("deleting", deleting), ("vacuum", vacuum)):
        told = f"{found:,.0f} | {found / alone:.2f}" if found else "it was over sooner: more --rows | –"
        print(f"| {name} | {told} |")
    full = sizes(connection)
    put(connection, gone, 1, 0)
    print(f"\ntable and indexes: {full[0]} and {full[1]} MB after the sweep, ", end="")
    print("{} and {} MB when as many rows had come".format(*sizes(connection)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=15_000_000, help="rows in the table (default: 15000000)")
    parser.add_argument("--old", type=int, default=10_000_000, help="of these, to be deleted (default: 10000000)")
    parser.add_argument("--records", type=int, default=1_500_000, help="of each measurement (default: 1500000)")
    parser.add_argument("--share", type=float, default=0.2, help="SWEEP_SHARE (default: 0.2)")
    args = parser.parse_args()
    with temporary_tables() as (folder, postgres, connection):
        put(connection, args.old, 400, DAYS + 2)
        put(connection, args.rows - args.old, DAYS - 1, 1)
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE raw_access_events")
            cursor.execute("CHECKPOINT")
        print(f"{args.rows:,} rows, {args.old:,} of them to go; now the topic", flush=True)
        with running_broker(folder / "kafka") as broker:
            # a consumer takes some beyond its records until it is stopped
            fill(broker, Dataset(), 6 * args.records)
            measure(args, folder, broker, postgres, connection)


if __name__ == "__main__":
    main()
