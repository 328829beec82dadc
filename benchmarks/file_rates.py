"""How fast are CSV files loaded, against the floor that PostgreSQL sets?

    python benchmarks/file_rates.py [--rows N] [--rounds R]

Starts a PostgreSQL of its own in a temporary folder. In each round, one after the other on emptied tables:

floor   COPY of prepared bytes of the same rows into the same table, 20,000 a transaction, one connection
load    streaming/load_csv.py with its defaults on a file of the same rows: from the start of the process to its end,
        so with the interpreter's start, the SHA-256 of the content and everything else

`events` have UUIDv7 ids; `events.gz` is the same file compressed; in `mixed` 1 % of the rows are there twice and 1 %
are not valid, spread evenly. Ratios are taken within a round. Every load must balance.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from preloaded_topic import FLOOR_ROWS, ROOT, events, temporary_tables

from local_servers.postgres_server import PostgresServer

EVENT_COLUMNS = ["event_id", "device_id", "event_ts", "event_type", "trigger_source"]
HEALTH_COLUMNS = ["device_id", "reported_at", "battery_pct", "signal_strength_dbm", "is_online"]
TABLES = {"events": "raw_access_events", "health": "raw_device_health", "mixed": "raw_access_events"}


def event_rows(count: int, every: int = 0) -> Iterator[list[str]]:
    """every: so many rows apart one comes twice and one is not valid; 0 for never."""
    for number, (_, event) in enumerate(islice(events(count, 1, time.time()), count)):
        row = [event[name] for name in EVENT_COLUMNS]
        if every and number % every == 0:
            yield row
        elif every and number % every == 1:
            row[3] = "ajar"
        yield row


def health_rows(count: int) -> Iterator[list[str]]:
    rng = random.Random(1)
    now = time.time()
    for number in range(count):
        at = datetime.fromtimestamp(now - 30 * (number // 3000), UTC)
        battery, signal_dbm = f"{rng.uniform(0, 100):.1f}", f"{rng.uniform(-120, -30):.1f}"
        yield [f"device-{number % 3000:05d}", f"{at:%Y-%m-%dT%H:%M:%S.%fZ}", battery, signal_dbm, "true"]


def write(folder: Path, rows: int) -> dict[str, Path]:
    """The files of each kind, and of their plain rows the lines of COPY for the floor."""
    contents = {
        "events": (EVENT_COLUMNS, event_rows(rows)),
        "health": (HEALTH_COLUMNS, health_rows(rows)),
        "mixed": (EVENT_COLUMNS, event_rows(rows, every=100)),
    }
    files = {}
    for name, (header, lines) in contents.items():
        files[name] = folder / f"{name}.csv"
        with files[name].open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(lines)
    files["events.gz"] = folder / "events.csv.gz"
    files["events.gz"].write_bytes(gzip.compress(files["events"].read_bytes(), 6))
    return files


def floor_rate(connection: Any, file: Path, table: str) -> float:
    with file.open(newline="", encoding="utf-8") as text:
        header, *rows = csv.reader(text)
    lines = ["\t".join(row) + "\n" for row in rows]
    pieces = ["".join(lines[at : at + FLOOR_ROWS]).encode() for at in range(0, len(lines), FLOOR_ROWS)]
    statement = f"COPY {table} ({', '.join(header)}) FROM STDIN"
    with connection.cursor() as cursor:
        began = time.perf_counter()
        for piece in pieces:
            cursor.execute("BEGIN")
            cursor.copy_expert(statement, io.BytesIO(piece), size=len(piece))
            cursor.execute("COMMIT")
        return len(lines) / (time.perf_counter() - began)


def load_rate(connection: Any, postgres: PostgresServer, file: Path) -> float:
    command = [sys.executable, str(ROOT / "streaming/load_csv.py"), str(file), "--log-level", "ERROR"]
    began = time.perf_counter()
    subprocess.run(command, env=os.environ | postgres.environment(), check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    with connection.cursor() as cursor:
        cursor.execute("SELECT rows, balanced AND ended_at IS NOT NULL FROM file_loads")
        [(rows, is_right)] = cursor.fetchall()
    if not is_right:
        raise SystemExit(f"the load of {file.name} does not balance")
    return float(rows / seconds)


def empty(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE raw_access_events, raw_device_health, dead_letters, file_loads")
        cursor.execute("CHECKPOINT")


def measure(args: argparse.Namespace, connection: Any, postgres: PostgresServer, files: dict[str, Path]) -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
    for number in range(args.rounds):
        floors = {}
        for name in ("events", "health"):
            empty(connection)
            floors[TABLES[name]] = floor_rate(connection, files[name], TABLES[name])
        for name, file in files.items():
            empty(connection)
            floor = floors[TABLES[name.removesuffix(".gz")]]
            found[name].append((load_rate(connection, postgres, file), floor))
        told = ", ".join(f"{name} {rounds[-1][0]:,.0f}/s" for name, rounds in found.items())
        print(f"round {number + 1}: {told}", flush=True)
    print("\n| | rows/minute | rows/s | floor, rows/s | of the floor |\n|---|---|---|---|---|")
    for name, rounds in found.items():
        rate, floor = (statistics.median(values) for values in zip(*rounds, strict=True))
        ratio = statistics.median(rate / floor for rate, floor in rounds)
        print(f"| {name} | {rate * 60:,.0f} | {rate:,.0f} | {floor:,.0f} | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows in each file (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median is told (default: 3)")
    args = parser.parse_args()
    with temporary_tables() as (folder, postgres, connection):
        measure(args, connection, postgres, write(folder, args.rows))


if __name__ == "__main__":
    main()
