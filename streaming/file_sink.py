"""The sink of files: the same transaction as the stream's, with the load's line in `file_loads` for a ledger.

A load's position is the number of its file's rows that are accounted for. It advances by compare-and-set, as offsets
do: of two loads of one file at once one is refused (Fenced) and has written nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from typing import Any, NamedTuple

from batch import OF_NO_PARTITION, Batch, DeadLetter, TopicPartition, Written
from csv_file import CsvFile
from csv_records import Header
from sink import SESSION, Sink

NOTE = """
INSERT INTO file_loads (sha256, table_name, columns, file_name, size_bytes) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING"""
PIN = "UPDATE file_loads SET pinned = true WHERE sha256 = %s AND table_name = %s AND columns = %s AND NOT pinned"
FIND = """
SELECT file_load_id, rows, stored, duplicates, dead, suppressed, started_at, ended_at FROM file_loads
WHERE sha256 = %s AND table_name = %s AND columns = %s"""
# The fence: waits for another load's transaction, and then finds that the position has moved.
HOLD = """BEGIN;
SELECT coalesce((SELECT version FROM suppression_list), 0) FROM file_loads
WHERE file_load_id = %s AND rows = %s FOR UPDATE"""
ADVANCE_AND_COMMIT = """
UPDATE file_loads
SET rows = %s, stored = stored + %s, duplicates = duplicates + %s, dead = dead + %s, suppressed = suppressed + %s,
    updated_at = now()
WHERE file_load_id = %s;
COMMIT"""
END = "UPDATE file_loads SET ended_at = now(), updated_at = now() WHERE file_load_id = %s AND ended_at IS NULL"


class Load(NamedTuple):
    """A line of `file_loads`."""

    number: int
    rows: int
    stored: int
    duplicates: int
    dead: int
    suppressed: int
    started_at: datetime
    ended_at: datetime | None


def begin(connect: Callable[..., Any], file: CsvFile, header: Header, keep: bool) -> Load:
    """The file's load: a new one, or the one that was begun or done before. keep: no sweep deletes its rows then."""
    identity = (file.sha256, header.contract.table, json.dumps(header.names, ensure_ascii=False))
    with closing(connect(options=SESSION)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(NOTE, (*identity, file.name, file.size))
        if keep:
            cursor.execute(PIN, identity)
        cursor.execute(FIND, identity)
        return Load(*cursor.fetchone())


def end(connect: Callable[..., Any], load: Load) -> None:
    with closing(connect(options=SESSION)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(END, (load.number,))


class FileSink(Sink):
    """Writes the batches of one load; a batch's span counts the file's rows."""

    def __init__(self, connect: Callable[..., Any], load: Load, topic: str, file_name: str):
        super().__init__(connect, "", "")
        self._load, self._topic, self._file_name = load, topic, file_name

    def _advance(self, cursor: Any, batch: Batch) -> int | None:
        [span] = batch.spans.values()
        cursor.execute(HOLD, (self._load.number, span.low))
        return cursor.fetchone()[0] if cursor.rowcount == 1 else None

    def _place(self, letter: DeadLetter) -> dict[str, Any]:
        line = letter.record.offset
        return {"source_file": self._file_name, "source_line": line, "file_load_id": self._load.number}

    def _count_and_commit(self, cursor: Any, batch: Batch, written: Written) -> None:
        [span] = batch.spans.values()
        stored, duplicates = written.stored.total(), written.duplicates(batch).total()
        counts = stored, duplicates, len(written.dead), written.suppressed.total()
        cursor.execute(ADVANCE_AND_COMMIT, (span.high, *counts, self._load.number))

    def _ledger(self, cursor: Any) -> dict[TopicPartition, int]:
        cursor.execute("SELECT rows FROM file_loads WHERE file_load_id = %s", (self._load.number,))
        return {(self._topic, OF_NO_PARTITION): cursor.fetchone()[0]}
