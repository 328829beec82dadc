"""Writes a raw table as CSV that load_csv.py loads back to the same rows.

    python streaming/export_csv.py --table raw_access_events > events.csv
    python streaming/export_csv.py --table raw_device_health --since 2026-05-01 --until 2026-06-01 --output may.csv.gz

One statement, so one moment of the table. kafka_partition, kafka_offset, file_load_id and ingested_at are left out:
they say which way a row came. A file gets its name when it is complete; before it is called NAME.part.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any

import psycopg2
from psycopg2 import sql

from contracts import CONTRACTS, Contract
from pipeline_settings import (
    add_logging_options,
    connect_postgres,
    lacks_a_right,
    moment,
    postgres_parameters,
    set_up_logging,
)

log = logging.getLogger("export")

TABLES = {contract.table: contract for contract in CONTRACTS.values()}
TIMES = ("event_ts", "reported_at", "installed_at", "updated_at", "deleted_at")
RFC_3339 = 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Writes a raw table as CSV that load_csv.py loads back to the same rows.",
        epilog="PostgreSQL is named by libpq's variables: PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD …",
    )
    parser.add_argument("--table", choices=list(TABLES), required=True, help="the table to write")
    when = "event_ts, reported_at or updated_at"
    parser.add_argument("--since", type=moment, help=f"only rows whose {when} is at or after this time (default: all)")
    parser.add_argument("--until", type=moment, help=f"only rows whose {when} is before this time (default: all)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="compressed if it ends in .gz (default: standard output)"
    )
    add_logging_options(parser)
    return parser.parse_args()


def query(contract: Contract) -> sql.Composed:
    def column(name: str) -> sql.Composable:
        if name not in TIMES:
            return sql.Identifier(name)
        return sql.SQL("to_char({0}, {1}) AS {0}").format(sql.Identifier(name), sql.Literal(RFC_3339))

    return sql.SQL(
        "COPY (SELECT {columns} FROM {table} WHERE {at} >= coalesce(%(since)s, timestamptz '-infinity')"
        " AND {at} < coalesce(%(until)s, timestamptz 'infinity')) TO STDOUT WITH (FORMAT csv, HEADER)"
    ).format(
        columns=sql.SQL(", ").join(map(column, contract.columns)),
        table=sql.Identifier(contract.table),
        at=sql.Identifier(contract.happened_at),
    )


def export(connection: Any, args: argparse.Namespace, file: IO[bytes]) -> int:
    """The number of rows written."""
    with connection.cursor() as cursor:
        statement = cursor.mogrify(query(TABLES[args.table]), {"since": args.since, "until": args.until})
        cursor.copy_expert(statement.decode(), file)
        return int(cursor.rowcount)


def main() -> int:
    args = parse_arguments()
    set_up_logging(args)
    part = args.output and args.output.with_name(f"{args.output.name}.part")
    try:
        with (
            closing(connect_postgres("smart-access-export", options="-c timezone=UTC")) as connection,
            ExitStack() as opened,
        ):
            file: Any = sys.stdout.buffer
            if part:
                file = opened.enter_context((gzip.open if args.output.suffix == ".gz" else open)(part, "wb"))
            count = export(connection, args, file)
        if part:
            part.replace(args.output)
    except psycopg2.errors.InsufficientPrivilege as error:
        log.error("%s", lacks_a_right(error))
        return 1
    except (psycopg2.OperationalError, psycopg2.errors.UndefinedTable) as error:
        why = str(error).strip().splitlines()[0]
        log.error("PostgreSQL: %s. Set %s", why, ", ".join(postgres_parameters()))
        return 1
    except OSError as error:
        log.error("%s cannot be written: %s", args.output or "standard output", error.strerror)
        return 1
    log.info("%d rows of %s", count, args.table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
