"""Erases a household everywhere, and keeps it from coming back.

    python streaming/erase_household.py hh-00042 --dry-run      what would go, by table
    python streaming/erase_household.py hh-00042
    python streaming/erase_household.py --release hh-00042-d1   a device that goes to another household

First the list of whose records are no longer taken, then tombstones for the registry's topics, then the rows, and at
last the marts' sums, computed anew. Consumers and loads may run meanwhile. Stopped or killed, it is gone on with by the
same command. docs/erasure.md says what goes, what cannot, and who may do this.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from contextlib import closing
from typing import Any

import psycopg2
from kafka.errors import KafkaError
from psycopg2 import sql
from psycopg2.extras import wait_select

import backfill
import erased_tables
import erasure
import kafka_log
import suppression_list
from contracts import DEVICES, HOUSEHOLDS
from delivery import Delivery
from erased_tables import CannotErase, Deleted, Household, Table
from kafka_contact import NoContact, first_contact
from pipeline_settings import (
    add_kafka_options,
    add_logging_options,
    apply_schema,
    connect_postgres,
    kafka_connection,
    lacks_a_right,
    postgres_parameters,
    set_up_logging,
)
from topics import ensure_topics

log = logging.getLogger("erase")

TURN = "SELECT pg_try_advisory_lock(hashtext('smart-access erasure'))"
LEFT = """\
What this cannot reach: Kafka's topics of events and health reports, for 7 days, and of the registry, until they are
compacted; backups and archived WAL; files in the drop folder, and their reports; logs. docs/erasure.md"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Erases a household from every table, and keeps replays and files from bringing it back.",
        epilog="PostgreSQL is named by libpq's variables: PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD …",
    )
    parser.add_argument("household", nargs="?", metavar="HOUSEHOLD", help="its household_id")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, by table, and change nothing")
    parser.add_argument(
        "--suppress-unknown", action="store_true", help="lay down the list for a household that no table knows, too"
    )
    parser.add_argument(
        "--without-kafka", action="store_true", help="send no tombstones: the registry's topics keep the household"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--release", metavar="ID", help="take records of this device, or household, again from now on; erase nothing"
    )
    add_kafka_options(parser)
    add_logging_options(parser)
    args = parser.parse_args()
    if bool(args.household) == bool(args.release):
        parser.error("name a HOUSEHOLD, or --release ID")
    return args


def erase(connection: Any, args: argparse.Namespace) -> int:
    """Raises CannotErase, psycopg2.Error; before the list is laid down nothing has been changed."""
    with connection, connection.cursor() as cursor:
        cursor.execute(TURN)
        if not cursor.fetchone()[0]:
            raise CannotErase("another erasure is at work on this database: start again when it has ended")
        tables = erased_tables.tables_with_devices(cursor)
        household = erasure.find(cursor, args.household, tables)
        is_begun = suppression_list.unfinished(cursor, args.household) is not None
        erased_at = suppression_list.erased_at(cursor, args.household)
    if args.dry_run:
        return show(connection, household, tables)
    if not (household.is_known or is_begun):
        if erased_at:
            print(f"it was erased on {erased_at:%Y-%m-%d %H:%M:%S} UTC, and no table has it")
            return 0
        if not args.suppress_unknown:
            raise CannotErase("no table knows this household. To keep it out all the same: --suppress-unknown")
    if not (args.yes or confirmed(household)):
        print("nothing was changed")
        return 1
    delivery = None if args.without_kafka else reach_kafka(args)
    with connection, connection.cursor() as cursor:
        suppression_list.hold_writers(cursor)
        household = erasure.find(cursor, args.household, tables)  # again: a writer may have brought a device meanwhile
        number = suppression_list.suppress(cursor, household, tombstones=delivery is not None)
    try:
        log.info("begun: nothing of the household is taken any more")
        if delivery:
            send_tombstones(delivery, household)
        rows = delete(connection, number, household)
    except (KeyboardInterrupt, CannotErase, psycopg2.Error) as error:
        log.error("%s", explained(error))
        log.error("it is not complete: start the same command again; meanwhile nothing of the household is taken")
        return 1
    finally:
        if delivery:
            delivery.close()
    tell(rows, "deleted")
    print(LEFT)
    return 0


def show(connection: Any, household: Household, tables: list[Table]) -> int:
    with connection, connection.cursor() as cursor:
        rows = {str(table): erased_tables.count(cursor, table, household) for table in tables}
        cursor.execute(sql.SQL("SELECT count(*) FROM pseudonyms WHERE {}").format(erasure.pseudonyms(household)))
        [rows["public.pseudonyms"]] = cursor.fetchone()
        rows["public.dead_letters"] = sum(len(letters) for letters in erasure.letters(cursor, household))
    tell(rows, "would be deleted")
    print(f"devices: {len(household.whole)}, and {len(household.moved)} that belonged to others, too")
    return 0


def tell(rows: dict[str, int], what: str) -> None:
    for table, count in sorted(rows.items()):
        if count:
            print(f"{table:<44} {count:>12,}")
    print(f"{sum(rows.values()):,} rows {what}")


def confirmed(household: Household) -> bool:
    if not sys.stdin.isatty():
        return True
    devices = len(household.devices)
    return input(f"Erase the household and its {devices} devices? It cannot be undone. [y/N] ").lower() in ("y", "yes")


# --- Kafka ---


def reach_kafka(args: argparse.Namespace) -> Delivery:
    try:
        connection = kafka_connection(args)
        first_contact(connection)
        ensure_topics(connection, args.partitions, args.replication_factor, right="WRITE")
        return Delivery(connection, None, {})
    except (NoContact, KafkaError) as error:
        raise CannotErase(f"{error}. Nothing was begun; --without-kafka does it without tombstones") from None


def send_tombstones(delivery: Delivery, household: Household) -> None:
    for device in household.tombstones:
        delivery.send(DEVICES.topic, device.encode(), None)
    delivery.send(HOUSEHOLDS.topic, household.name.encode(), None)
    try:
        delivery.finish()
    except KafkaError as error:
        raise CannotErase(f"Kafka: {error}") from None
    if delivery.acknowledged < delivery.sent:
        raise CannotErase(f"Kafka took {delivery.acknowledged} of {delivery.sent} tombstones")
    log.info("%d tombstones are in Kafka", delivery.sent)


# --- PostgreSQL ---


def delete(connection: Any, number: int, household: Household) -> dict[str, int]:
    """Everything after the list; returns the rows deleted, by table."""
    backfill.keep_models_away(connection)
    with connection, connection.cursor() as cursor:
        tables = erased_tables.tables_with_devices(cursor)  # again: they are as long now as the barrier has left them
    for table, pages in erasure.parts(tables):
        with connection, connection.cursor() as cursor:
            deleted = erased_tables.delete(cursor, table, household, pages)
            erasure.account(cursor, number, str(table), deleted)
        if deleted.rows:
            log.info("%s: %d rows", table, deleted.rows)
    delete_letters(connection, number, household)
    with connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL("DELETE FROM pseudonyms WHERE {}").format(erasure.pseudonyms(household)))
        erasure.account(cursor, number, "public.pseudonyms", Deleted(cursor.rowcount))
        erasure.rename_files(cursor, household)
        erasure.delete_registry(cursor, number, household, tables)
    recompute(connection, number)
    with connection, connection.cursor() as cursor:
        rows = erasure.rows_deleted(cursor, number)
    vacuum(connection, [table for table in tables if rows.get(str(table))])
    with connection, connection.cursor() as cursor:
        erasure.end(cursor, number)
    return rows


def delete_letters(connection: Any, number: int, household: Household) -> None:
    with connection, connection.cursor() as reading, connection.cursor() as cursor:
        for letters in erasure.letters(reading, household):
            cursor.execute("DELETE FROM dead_letters WHERE dead_letter_id = ANY(%s)", (letters,))
            erasure.account(cursor, number, "public.dead_letters", Deleted(cursor.rowcount))


def recompute(connection: Any, number: int) -> None:
    """The sums of which the household was a part."""
    with connection, connection.cursor() as cursor:
        first, last, is_all = erasure.to_recompute(cursor, number)
    if first is None or last is None:
        return
    if not backfill.compute_anew(connection, first, last, backfill.EVERYTHING if is_all else backfill.FLEET):
        raise CannotErase("the rows are gone, but dbt has not computed the marts' sums anew (above)")


def vacuum(connection: Any, tables: list[Table]) -> None:
    """What was deleted is then overwritten on the disk, too."""
    connection.autocommit = True
    with connection.cursor() as cursor:
        for table in tables:
            if erased_tables.exists(cursor, table.identifier):
                cursor.execute(sql.SQL("VACUUM (TRUNCATE false) {}").format(table.identifier))
    connection.autocommit = False


def release(connection: Any, name: str) -> int:
    with connection, connection.cursor() as cursor:
        is_listed = suppression_list.release(cursor, name)
    if not is_listed:
        raise CannotErase("it is not on the list: nothing was changed")
    print("released: what is of now or later is taken again")
    return 0


def explained(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | psycopg2.errors.QueryCanceled):
        return "interrupted"
    if isinstance(error, psycopg2.errors.InsufficientPrivilege):
        return lacks_a_right(error)
    if isinstance(error, psycopg2.errors.LockNotAvailable):
        return "a writer, or a run of dbt, has not come to its end in time"
    if isinstance(error, psycopg2.Error):
        return f"PostgreSQL: {str(error).strip().splitlines()[0]}. Set {', '.join(postgres_parameters())}"
    return str(error)


def main() -> int:
    args = parse_arguments()
    set_up_logging(args)
    kafka_log.calm()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has it start with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    psycopg2.extensions.set_wait_callback(wait_select)  # else Ctrl+C would wait for the statement's end
    try:
        with closing(connect_postgres("smart-access-erase", options="-c timezone=UTC")) as connection:
            apply_schema(connection)
            return release(connection, args.release) if args.release else erase(connection, args)
    except (KeyboardInterrupt, CannotErase, psycopg2.Error) as error:
        log.error("%s", explained(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
