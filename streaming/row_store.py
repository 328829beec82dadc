"""Rows and dead letters into their tables, inside the caller's transaction.

`copy_straight` is the fast way and fails on the first key that is there already. `merge` goes through a temporary
table: it absorbs duplicates, keeps the newest of a registry entry, and isolates a row that PostgreSQL refuses (its
record was valid) by halving, until that row alone becomes a dead letter.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from itertools import chain
from typing import Any

import psycopg2
from psycopg2 import sql

from batch import OF_NO_PARTITION, Chunk, DeadLetter
from contracts import EPOCH, Contract
from record import Record
from row_text import escape


def is_refused_row(error: psycopg2.Error) -> bool:
    """True if it is the row's fault: its value (22), a constraint (23), a limit (54) or a trigger (P0)."""
    return (error.pgcode or "")[:2] in ("22", "23", "54", "P0")


def copy_straight(cursor: Any, contract: Contract, chunks: list[Chunk], dead: list[DeadLetter]) -> Counter[int]:
    """Rows by COPY into the table itself: fails on the first key that is there already."""
    if contract.compacted:
        return merge(cursor, contract, chunks, dead)
    _copy(cursor, contract, contract.table, chunks)
    stored: Counter[int] = Counter()
    for chunk in chunks:
        stored[chunk.partition] += len(chunk.lines)
    return stored


def merge(cursor: Any, contract: Contract, chunks: list[Chunk], dead: list[DeadLetter]) -> Counter[int]:
    """Rows by way of a temporary table: duplicates are absorbed, refused rows join `dead`."""
    stored: Counter[int] = Counter()
    for part in _rounds(chunks) if contract.compacted else [chunks]:
        stored += _merge_or_halve(cursor, contract, part, dead)
    return stored


def _rounds(chunks: list[Chunk]) -> Iterable[list[Chunk]]:
    """The rows of one registry key go in one after the other, as their order decides which one stays."""
    rounds: dict[int, list[Chunk]] = defaultdict(list)
    seen: Counter[str] = Counter()
    for chunk in chunks:
        for record, line in zip(chunk.records, chunk.lines, strict=True):
            key = line.split("\t", 1)[0]
            rounds[seen[key]].append(Chunk(chunk.partition, [record], [line]))
            seen[key] += 1
    return rounds.values()


def _merge_or_halve(cursor: Any, contract: Contract, chunks: list[Chunk], dead: list[DeadLetter]) -> Counter[int]:
    cursor.execute("SAVEPOINT rows")
    try:
        stored = _merge_rows(cursor, contract, chunks)
    except psycopg2.Error as error:
        if not is_refused_row(error):
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT rows")
        count = sum(len(chunk.lines) for chunk in chunks)
        if count == 1:
            detail = f"SQLSTATE {error.pgcode}: {error.diag.message_primary}"
            record = Record(*chunks[0].records[0])
            dead.append(DeadLetter(contract.topic, chunks[0].partition, record, "refused_by_database", detail))
            return Counter()
        first, second = _halves(chunks, count // 2)
        return _merge_or_halve(cursor, contract, first, dead) + _merge_or_halve(cursor, contract, second, dead)
    cursor.execute("RELEASE SAVEPOINT rows")
    return stored


def _halves(chunks: list[Chunk], count: int) -> tuple[list[Chunk], list[Chunk]]:
    """The first `count` rows, and the others."""
    first, second = [], []
    for partition, records, lines in chunks:
        here = min(count, len(lines))
        count -= here
        if here:
            first.append(Chunk(partition, records[:here], lines[:here]))
        if here < len(lines):
            second.append(Chunk(partition, records[here:], lines[here:]))
    return first, second


def _merge_rows(cursor: Any, contract: Contract, chunks: list[Chunk]) -> Counter[int]:
    load = f"load_{contract.table}"
    cursor.execute(
        sql.SQL(
            "CREATE TEMP TABLE IF NOT EXISTS {load} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DELETE ROWS;"
            " DELETE FROM {load}"  # of this transaction's former round or half; else there is nothing in it
        ).format(load=sql.Identifier(load), table=sql.Identifier(contract.table))
    )
    _copy(cursor, contract, load, chunks)
    cursor.execute(_merge_statement(contract, load, _columns(contract, chunks)))
    return Counter(dict(cursor.fetchall()))


def _copy(cursor: Any, contract: Contract, table: str, chunks: list[Chunk]) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, _columns(contract, chunks)))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), columns)
    text = "".join(chain.from_iterable(chunk.lines for chunk in chunks)).encode()
    # read in one piece: in small ones the two threads pass the interpreter's lock to and fro
    cursor.copy_expert(statement, io.BytesIO(text), size=len(text) or 1)


def _columns(contract: Contract, chunks: list[Chunk]) -> list[str]:
    """As the lines have them: a batch is of the stream, or of one file."""
    of_file = bool(chunks) and chunks[0].partition == OF_NO_PARTITION and not contract.compacted
    return [*contract.columns, "kafka_partition", "kafka_offset", *(["file_load_id"] if of_file else [])]


def _merge_statement(contract: Contract, load: str, names: list[str]) -> sql.Composed:
    """Inserts what `load` holds and counts, by partition, the rows that were stored."""
    return sql.SQL(
        "WITH stored AS (INSERT INTO {table} AS t ({columns}) SELECT {columns} FROM {load}"
        " ON CONFLICT ({key}) {action} RETURNING coalesce(kafka_partition, {of_no_partition}) AS partition)"
        " SELECT partition, count(*) FROM stored GROUP BY 1"
    ).format(
        table=sql.Identifier(contract.table),
        load=sql.Identifier(load),
        of_no_partition=sql.Literal(OF_NO_PARTITION),
        columns=sql.SQL(", ").join(map(sql.Identifier, names)),
        key=sql.SQL(", ").join(map(sql.Identifier, contract.key)),
        action=_replace_older(contract) if contract.compacted else sql.SQL("DO NOTHING"),
    )


def _replace_older(contract: Contract) -> sql.Composed:
    """The newer updated_at wins, between equals the later offset. A tombstone keeps the fields, and wins over what came
    before it in its partition though a device's clock ran ahead of it."""
    kept = sql.SQL("{0} = CASE WHEN excluded.deleted_at IS NULL THEN excluded.{0} ELSE t.{0} END")
    taken = sql.SQL("{0} = excluded.{0}")
    fields = [name for name in contract.columns if name not in (*contract.key, "updated_at", "deleted_at")]
    newest = sql.SQL("updated_at = greatest(t.updated_at, excluded.updated_at)")
    taken_over = ("deleted_at", "kafka_partition", "kafka_offset", "ingested_at")
    assignments = [kept.format(sql.Identifier(name)) for name in fields]
    assignments += [newest, *(taken.format(sql.Identifier(name)) for name in taken_over)]
    return sql.SQL(
        "DO UPDATE SET {} WHERE (excluded.updated_at, coalesce(excluded.kafka_offset, -1))"
        " > (t.updated_at, coalesce(t.kafka_offset, -1)) OR (excluded.deleted_at IS NOT NULL"
        " AND excluded.kafka_partition = t.kafka_partition AND excluded.kafka_offset > t.kafka_offset)"
    ).format(sql.SQL(", ").join(assignments))


def copy_dead_letters(cursor: Any, dead: list[DeadLetter], place: Callable[[DeadLetter], dict[str, Any]]) -> None:
    """place: the columns that say where a letter came from, the same ones for each."""
    if not dead:
        return
    names = [*place(dead[0]), "topic", "record_ts", "headers", "reason", "detail", "key", "value"]
    text = "".join(_dead_letter_line(letter, list(place(letter).values())) for letter in dead).encode()
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    statement = sql.SQL("COPY dead_letters ({}) FROM STDIN").format(columns)
    cursor.copy_expert(statement, io.BytesIO(text), size=len(text))


def _dead_letter_line(letter: DeadLetter, place: list[Any]) -> str:
    record = letter.record
    plausible = 0 <= record.timestamp < 253_402_300_800_000  # up to the year 9999
    texts = [
        *map(str, place),
        letter.topic,
        str(EPOCH + timedelta(milliseconds=record.timestamp)) if plausible else None,
        _headers_json(record.headers),
        letter.reason,
        letter.detail.replace("\0", "\ufffd"),
    ]
    columns = ["\\N" if text is None else escape(text) for text in texts]
    return "\t".join([*columns, _bytea(record.key), _bytea(record.value)]) + "\n"


def _headers_json(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """[[name, value in base64 or null], …]: a value may be any bytes; a name keeps all but NUL, which jsonb refuses."""
    pairs = [
        [name.replace("\0", "\ufffd"), None if value is None else base64.b64encode(value).decode()]
        for name, value in headers
    ]
    return json.dumps(pairs) if pairs else None


def _bytea(value: bytes | None) -> str:
    """As COPY takes it: its backslash is escaped."""
    return "\\N" if value is None else "\\\\x" + value.hex()
