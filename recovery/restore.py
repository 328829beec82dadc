"""Brings a backup back: python -m recovery.restore BACKUP. Then the consumer catches up from Kafka by itself.

Nothing that holds data is overwritten. The database is restored under a name of its own, compared with the manifest and
renamed; one that is there with rows is refused, or kept under another name (--set-aside). Registry records go only into
topics that hold none, or only for the keys that they lack (--missing-keys).

Exit codes: 0 done, 1 failed (one line says why, and nothing was changed unless it says so), 2 usage.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import psycopg2

import pipeline_settings
from local_servers import ServerError
from local_servers.stack import say
from recovery import backup_folder, registry_copy
from recovery.backup import PARTS
from recovery.backup_folder import DATABASE_FILE, REGISTRY_FILE, DatabasePart, Manifest
from recovery.catch_up import catch_up
from recovery.database_target import require_target, restore_database
from recovery.registry_copy import RegistryRecord
from topics import ensure_topics


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/restore",
        description="Restores a backup: the database into PGDATABASE, the registry into Kafka's topics. Stop the"
        " consumer first; start it afterwards, and it catches up.",
        epilog="PostgreSQL is named by libpq's variables: PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD …",
    )
    parser.add_argument("backup", type=Path, metavar="BACKUP", help="the folder that scripts/backup has made")
    parser.add_argument(
        "--only", choices=PARTS, help="database: Kafka was kept; registry: PostgreSQL was (default: both)"
    )
    parser.add_argument("--check", action="store_true", help="verify, say what a restore would meet, write nothing")
    parser.add_argument(
        "--set-aside", action="store_true", help="a database that holds rows is kept under another name, not refused"
    )
    parser.add_argument(
        "--missing-keys", action="store_true", help="into topics that hold records: the keys that they lack"
    )
    pipeline_settings.option(
        parser, "--group", "CONSUMER_GROUP", "smart-access-sink", str, "the consumer group that is to catch up"
    )
    pipeline_settings.add_kafka_options(parser)
    pipeline_settings.add_logging_options(parser)
    return parser.parse_args()


def restore(args: argparse.Namespace) -> None:
    """Raises ServerError, psycopg2.Error."""
    manifest = backup_folder.read_manifest(args.backup)
    say(f"{args.backup}: of {manifest.created_at:%Y-%m-%d %H:%M:%S} UTC, {_age(manifest)} ago")
    _require_parts(manifest, args.only)
    backup_folder.verify_files(args.backup, manifest)
    say(f"its files are what was written, {backup_folder.in_units(backup_folder.size(args.backup))}")
    # Everything that can be refused is refused before anything is changed
    database = manifest.database if args.only != "registry" else None
    if database:
        require_target(database, args.set_aside)
    records = _records_to_restore(args) if args.only != "database" else []
    if database:
        _say_catch_up(args, database)
    if args.check:
        say("checked; nothing was written")
        return
    if database:
        restore_database(args.backup / DATABASE_FILE, database)
    if args.only != "database":
        _restore_registry(args, records)
    say("next: start the consumer, python streaming/kafka_consumer.py: it goes on from the ledger and catches up")


def _age(manifest: Manifest) -> str:
    minutes = int((backup_folder.now() - manifest.created_at).total_seconds()) // 60
    return f"{minutes // 1440} d {minutes // 60 % 24} h {minutes % 60} min"


def _require_parts(manifest: Manifest, only: str | None) -> None:
    has = {"database": manifest.database, "registry": manifest.registry}
    for part in PARTS:
        if only in (None, part) and not has[part]:
            other = PARTS[1 - PARTS.index(part)]
            raise ServerError(f"this backup has no {part}: take another one, or restore --only {other}")


def _say_catch_up(args: argparse.Namespace, part: DatabasePart) -> None:
    """Only said: with or without Kafka, the database is to be restored."""
    connection = pipeline_settings.kafka_connection(args)
    try:
        with registry_copy.at_kafka(connection):
            lines = catch_up(connection, part.ledger, args.group)
    except ServerError as error:
        lines = [f"whether Kafka still has what came after the backup is not known: {error}"]
    for line in lines:
        say(line)


def _records_to_restore(args: argparse.Namespace) -> list[RegistryRecord]:
    """What the topics lack. Raises ServerError when they hold something, unless told to add to it."""
    connection = pipeline_settings.kafka_connection(args)
    with registry_copy.at_kafka(connection):
        present = {(record.topic, record.key) for record in registry_copy.read_registry(connection, missing_ok=True)}
    records = registry_copy.load(args.backup / REGISTRY_FILE)
    if present and not args.missing_keys:
        raise ServerError(
            f"Kafka's registry topics hold {len(present):,} keys already. Nothing was changed. If Kafka was kept:"
            " --only database. If it was lost and is in use again: --missing-keys adds those of the backup's"
            f" {len(records):,} that they lack"
        )
    return [record for record in records if (record.topic, record.key) not in present]


def _restore_registry(args: argparse.Namespace, records: list[RegistryRecord]) -> None:
    connection = pipeline_settings.kafka_connection(args)
    try:
        with registry_copy.at_kafka(connection):
            ensure_topics(connection, args.partitions, args.replication_factor)
            registry_copy.write_registry(connection, records)
    except (ServerError, KeyboardInterrupt) as error:
        raise ServerError(
            f"the registry is restored in part at most: {error or 'interrupted'}. To go on:"
            " --only registry --missing-keys"
        ) from None
    say(f"registry: {len(records):,} records, all acknowledged")


def main() -> int:
    args = parse_arguments()
    pipeline_settings.set_up_logging(args)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has it start with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        restore(args)
    except (KeyboardInterrupt, psycopg2.errors.QueryCanceled):
        sys.stderr.write("interrupted: no database that holds rows was changed, and nothing went to Kafka\n")
        return 1
    except (ServerError, psycopg2.Error, OSError) as error:
        sys.stderr.write(f"{str(error).strip()}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
