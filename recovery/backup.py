"""Copies PostgreSQL and the fleet registry's topics into a folder: python -m recovery.backup FOLDER.

The database is dumped from one snapshot: rows, ledger, dead letters, marts and their history belong together. So the
ledger in the dump says exactly which records of Kafka are in it, and a consumer that starts on the restored database
reads what came after. The pipeline may run meanwhile; a run of the models waits for the dump's end.

Exit codes: 0 the backup is complete, 1 failed and nothing is left of it (one line says why), 2 usage.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import psycopg2

import pipeline_settings
from local_servers import ServerError
from local_servers.stack import local_postgres, say
from recovery import backup_folder, database_copy, registry_copy
from recovery.backup_folder import DATABASE_FILE, REGISTRY_FILE, DatabasePart, Manifest, RegistryPart, in_units
from topics import cluster_id

PARTS = ("database", "registry")
MODELS_WAIT_S = 90  # dbt/one_at_a_time.py gives up after that


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/backup",
        description="Copies PostgreSQL and the fleet registry's topics into a new folder in FOLDER.",
        epilog="PostgreSQL is named by libpq's variables: PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD …",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where backups are kept: on another disk than the data (no default)"
    )
    parser.add_argument("--only", choices=PARTS, help="one of the two parts, while the other is away (default: both)")
    pipeline_settings.add_kafka_options(parser)
    pipeline_settings.add_logging_options(parser)
    return parser.parse_args()


def back_up(args: argparse.Namespace) -> Path:
    """Returns the backup's place. Raises ServerError, psycopg2.Error; then nothing is left of it."""
    began = time.monotonic()
    manifest = Manifest(created_at=backup_folder.now())
    with backup_folder.new_backup(args.folder, manifest) as partial:
        _warn_if_beside_the_data(args.folder)
        if args.only != "database":
            manifest.registry = _copy_registry(args, partial / REGISTRY_FILE)
        if args.only != "registry":
            manifest.database = _copy_database(partial / DATABASE_FILE)
    if manifest.database and manifest.registry:
        _warn_if_kafka_was_wiped(manifest.database, manifest.registry)
    place = backup_folder.final_path(args.folder, manifest)
    say(f"complete: {place}, {in_units(backup_folder.size(place))} in {time.monotonic() - began:.0f} s")
    return place


def _warn_if_beside_the_data(folder: Path) -> None:
    server = local_postgres()
    if server is not None and server.data_dir.exists() and folder.stat().st_dev == server.data_dir.stat().st_dev:
        say(f"warning: {folder} is on the same disk as {server.data_dir}, and would be lost with it")


def _copy_registry(args: argparse.Namespace, file: Path) -> RegistryPart:
    connection = pipeline_settings.kafka_connection(args)
    with registry_copy.at_kafka(connection):
        part = RegistryPart(cluster_id(connection), dict.fromkeys(registry_copy.TOPICS, 0))
        records = registry_copy.read_registry(connection)
    registry_copy.save(records, file)
    part.records |= Counter(record.topic for record in records)
    say("registry: " + ", ".join(f"{count:,} records of {topic}" for topic, count in part.records.items()))
    return part


def _copy_database(file: Path) -> DatabasePart:
    began = time.monotonic()
    say("database: pg_dump …")
    part = database_copy.dump(file, say)
    took = time.monotonic() - began
    rows = sum(part.rows.values())
    say(f"database: {rows:,} rows of {len(part.rows)} tables, {in_units(file.stat().st_size)} in {took:.0f} s")
    if took > MODELS_WAIT_S:
        say(
            f"warning: the models wait for a dump, and a run of theirs gives up after {MODELS_WAIT_S} s: a base backup"
            " holds nothing up (docs/backup.md)"
        )
    return part


def _warn_if_kafka_was_wiped(database: DatabasePart, registry: RegistryPart) -> None:
    for topic, count in registry.records.items():
        table = f"public.{registry_copy.TABLES[topic]}"
        if not count and database.rows.get(table):
            say(f"warning: {topic} is empty, {table} is not: was Kafka made anew? An older backup has them")


def main() -> int:
    args = parse_arguments()
    pipeline_settings.set_up_logging(args)
    os.umask(0o077)  # personal data, for its owner alone
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has it start with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        place = back_up(args)
    except (KeyboardInterrupt, psycopg2.errors.QueryCanceled):
        sys.stderr.write("interrupted: no backup was made\n")
        return 1
    except (ServerError, psycopg2.Error, OSError) as error:
        sys.stderr.write(f"no backup was made: {str(error).strip()}\n")
        return 1
    kept = backup_folder.backups_in(args.folder)
    total = in_units(sum(map(backup_folder.size, kept)))
    say(f"backups in {args.folder}: {len(kept)}, {total}; none is ever removed here")
    for left_over in backup_folder.unfinished_in(args.folder):
        say(f"unfinished: {left_over}: one that was killed, unless another backup runs now")
    say(f"to look at it: scripts/restore {place} --check")
    return 0


if __name__ == "__main__":
    sys.exit(main())
