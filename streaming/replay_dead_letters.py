"""Looks at the dead letters, and stores those that a fix has made valid, through the same contract and sink.

    python streaming/replay_dead_letters.py list                       how many, by topic and reason
    python streaming/replay_dead_letters.py show --max 5               single letters, with their bytes
    python streaming/replay_dead_letters.py replay --reason bad_value  decode and store again

A letter is never deleted and is replayed at most once: its row and its fate commit in one transaction. What is still
invalid stays a dead letter with the new reason noted, to be replayed again after the next fix.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2

from batch import OF_NO_PARTITION, Chunk, DeadLetter
from contracts import CONTRACTS, OF_FILES, InvalidRecord
from pipeline_settings import (
    add_logging_options,
    add_retention_option,
    apply_schema,
    connect_postgres,
    lacks_a_right,
    moment,
    number,
    postgres_parameters,
    set_up_logging,
)
from record import Record
from row_store import merge
from row_text import copy_line, of_file
from sink import SESSION, is_outage
from suppression import Suppressions

log = logging.getLogger("replay")

PER_TRANSACTION = 200
SHOWN_BYTES = 300

LIST = """
SELECT topic, reason, coalesce(fate, 'open'), count(*), min(created_at), max(created_at)
FROM dead_letters
WHERE (%(reason)s::text IS NULL OR reason = %(reason)s)
  AND (%(topic)s::text IS NULL OR topic = %(topic)s)
  AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
GROUP BY 1, 2, 3
ORDER BY 1, 4 DESC"""

SHOW = """
SELECT dead_letter_id, topic, partition, "offset", source_file, source_line, created_at, reason, detail,
       fate, fate_detail, key, value
FROM dead_letters
WHERE (%(reason)s::text IS NULL OR reason = %(reason)s)
  AND (%(topic)s::text IS NULL OR topic = %(topic)s)
  AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
ORDER BY dead_letter_id DESC
LIMIT %(max)s"""

TAKE = """
SELECT dead_letter_id, topic, partition, "offset", source_file, file_load_id, record_ts, created_at, key, value
FROM dead_letters
WHERE (%(reason)s::text IS NULL OR reason = %(reason)s)
  AND (%(topic)s::text IS NULL OR topic = %(topic)s)
  AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
  AND (fate IS NULL OR fate = 'still_invalid')
  AND dead_letter_id > %(after)s
ORDER BY dead_letter_id
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED"""

# After TAKE: an erasure keeps everybody from the letters while it lays down its list
VERSION = "SELECT coalesce((SELECT version FROM suppression_list), 0)"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Looks at dead letters and replays them.",
        epilog="PostgreSQL is named by libpq's variables: PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD …",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "list": "count dead letters by topic, reason and fate",
        "show": "print single dead letters",
        "replay": "decode and store again what is not replayed yet",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--reason", help="only letters with this reason code (default: all)")
        command.add_argument("--topic", choices=list(CONTRACTS), help="only letters of this topic (default: all)")
        command.add_argument("--since", type=moment, help="only letters made at or after this time, RFC 3339")
        if name != "list":
            default = 20 if name == "show" else None
            said = "all" if default is None else default
            command.add_argument("--max", type=number(int, 1), default=default, help=f"at most N (default: {said})")
        if name == "replay":
            command.add_argument("--dry-run", action="store_true", help="say what would happen, change nothing")
            add_retention_option(command, "what the stream brought and is older than so many days stays a dead letter")
        add_logging_options(command)
    return parser.parse_args()


def _filter(args: argparse.Namespace) -> dict[str, Any]:
    return {"reason": args.reason, "topic": args.topic, "since": args.since}


def list_letters(connection: Any, args: argparse.Namespace) -> int:
    values = _filter(args)
    with connection.cursor() as cursor:
        cursor.execute(LIST, values)
        rows = cursor.fetchall()
    if not rows:
        print("no dead letters" + (" that match" if any(values.values()) else ""))
        return 0
    print(f"{'topic':<26} {'reason':<20} {'fate':<14} {'count':>9}  first .. last (UTC)")
    for topic, reason, fate, count, first, last in rows:
        print(f"{topic:<26} {reason:<20} {fate:<14} {count:>9}  {first:%Y-%m-%d %H:%M:%S} .. {last:%Y-%m-%d %H:%M:%S}")
    return 0


def show_letters(connection: Any, args: argparse.Namespace) -> int:
    values = _filter(args)
    with connection.cursor() as cursor:
        cursor.execute(SHOW, values | {"max": args.max})
        rows = cursor.fetchall()
    for number_, topic, partition, offset, file, line, made, reason, detail, fate, fate_detail, key, value in rows:
        place = f"{file}:{line}" if file else f"{topic}[{partition}]@{offset}"
        print(f"#{number_}  {place}  {made:%Y-%m-%d %H:%M:%S} UTC")
        print(f"  {reason}: {detail}")
        print(f"  fate:  {fate or 'open'}" + (f" ({fate_detail})" if fate_detail else ""))
        print(f"  key:   {_readable(key)}")
        print(f"  value: {_readable(value)}\n")
    if not rows:
        print("no dead letters" + (" that match" if any(values.values()) else ""))
    return 0


def _readable(value: memoryview | None) -> str:
    if value is None:
        return "none"
    shown = bytes(value[:SHOWN_BYTES])
    rest = f" … {len(value)} bytes" if len(value) > SHOWN_BYTES else ""
    return repr(shown)[1:] + rest


def replay(connection: Any, args: argparse.Namespace) -> int:
    """Letter by letter, as each has a fate of its own; PER_TRANSACTION of them commit together."""
    values = _filter(args)
    fates: Counter[str] = Counter()
    days = args.retention_days
    oldest = datetime.now(UTC) - timedelta(days=days) if days else None
    suppressions = Suppressions()
    after, left = 0, args.max if args.max is not None else 1 << 62
    while left > 0:
        with connection, connection.cursor() as cursor:
            cursor.execute(TAKE, values | {"after": after, "limit": min(left, PER_TRANSACTION)})
            letters = cursor.fetchall()
            cursor.execute(VERSION)
            suppressions.update(cursor, cursor.fetchone()[0])
            for letter in letters:
                fate, detail = _replay_one(cursor, oldest, suppressions, *letter[1:])
                fates[fate] += 1
                cursor.execute(
                    "UPDATE dead_letters SET fate = %s, fate_detail = %s, fate_at = now(),"
                    " replay_attempts = replay_attempts + 1 WHERE dead_letter_id = %s",
                    (fate, detail, letter[0]),
                )
            if args.dry_run:
                connection.rollback()
        if not letters:
            break
        after, left = letters[-1][0], left - len(letters)
        log.info("%d letters so far", fates.total())
    would = "would be " if args.dry_run else ""
    print(
        f"{would}replayed {fates['replayed']}, duplicate {fates['duplicate']}, still invalid {fates['still_invalid']}"
    )
    return 0


def _replay_one(
    cursor: Any, oldest: datetime | None, suppressions: Suppressions, topic: str, partition: int | None,
    offset: int | None, file: str | None, load: int | None, record_ts: datetime | None, created_at: datetime,
    key: memoryview | None, value: memoryview | None,
) -> tuple[str, str | None]:  # fmt: skip
    """What becomes of one letter, its row stored if it is valid now.

    Its Kafka timestamp bounds its times as it did at first; one that had none is held to when the letter was made.
    """
    contract = (OF_FILES if file else CONTRACTS)[topic]
    at = int((record_ts or created_at).timestamp() * 1000)
    raw_key, raw_value = (None if part is None else bytes(part) for part in (key, value))
    try:
        columns = contract.decode(raw_value, raw_key, at, None if file else oldest)
    except InvalidRecord as error:
        return "still_invalid", str(error)
    record = Record(-1 if offset is None else offset, at, raw_key, raw_value, ())
    refused: list[DeadLetter] = []
    place = OF_NO_PARTITION if partition is None else partition
    line = copy_line(columns, partition, offset)
    if suppressions.hold_back(topic, line):
        return "still_invalid", "suppressed: its household or device was erased"
    chunk = Chunk(place, [record], of_file(contract, [line], load) if partition is None else [line])
    stored = merge(cursor, contract, [chunk], refused)
    if refused:
        return "still_invalid", f"{refused[0].reason}: {refused[0].detail}"
    return ("replayed", None) if stored.total() else ("duplicate", None)


def main() -> int:
    args = parse_arguments()
    set_up_logging(args)
    try:
        connection = connect_postgres("smart-access-replay", options=SESSION)
        apply_schema(connection)
    except psycopg2.OperationalError as error:
        log.error("no PostgreSQL: %s. Set %s", str(error).strip(), ", ".join(postgres_parameters()))
        return 1
    command = {"list": list_letters, "show": show_letters, "replay": replay}[args.command]
    try:
        return command(connection, args)
    except KeyboardInterrupt:
        log.info("stopped; what was replayed before is kept")
        return 1
    except psycopg2.errors.InsufficientPrivilege as error:
        log.error("%s", lacks_a_right(error))
        return 1
    except psycopg2.Error as error:
        if not is_outage(error):
            raise
        # rolling back over a broken connection fails too: the first of the two errors tells why
        reason = str(error.__context__ or error).strip().splitlines()[0]
        log.error("PostgreSQL ended it: %s; what was replayed before is kept", reason)
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
