"""One file into its table, in batches; what was begun before goes on where it stood."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import tenacity

from batch import OF_NO_PARTITION, Batch
from csv_file import CsvFile, FileError, Row
from csv_records import Header, Mapping
from file_sink import FileSink, begin, end
from sink import is_outage

log = logging.getLogger("load")

MAX_BATCH_CHARACTERS = 16 * 1024 * 1024
OUTAGE_S = 60  # so long PostgreSQL is waited for; a load that gave up goes on when it is started again
SHOWN_DEAD = 10  # of a dry run


@dataclass(frozen=True)
class Reading:
    """How files are to be read; table and delimiter are told by a file's header where they are empty."""

    table: str = ""
    delimiter: str = ""
    mapping: Mapping = field(default_factory=dict)
    batch_size: int = 20_000


@dataclass
class Outcome:
    """What became of a file so far: its counts are those of `file_loads`, its reasons those of this run's letters."""

    file: str
    sha256: str
    table: str
    rows: int = 0
    stored: int = 0
    duplicates: int = 0
    dead: int = 0
    suppressed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    loaded_before: datetime | None = None

    def __str__(self) -> str:
        before = f" loaded before, {self.loaded_before:%Y-%m-%d %H:%M:%S} UTC:" if self.loaded_before else ""
        counts = f"rows={self.rows} stored={self.stored} duplicates={self.duplicates} dead={self.dead}"
        counts += f" suppressed={self.suppressed}" if self.suppressed else ""
        return f"{self.file}: {self.table}{before} {counts} seconds={self.seconds:.1f}"


Tell = Callable[[CsvFile, Outcome], object]


class Stopped(Exception):
    """Asked to stop between two batches; its text says where."""


@contextmanager
def _opened(path: str, reading: Reading) -> Iterator[tuple[CsvFile, Header, Iterator[Row]]]:
    with CsvFile(path) as file:
        rows = file.rows(reading.delimiter)
        first = next(rows, None)
        if first is None:
            raise FileError("it is empty: not even a header")
        if first.error:
            raise FileError(f"its header is no CSV: {first.error}")
        yield file, Header(first, file.delimiter, reading.table, reading.mapping), rows


def _parts(rows: Iterator[Row], most: int) -> Iterator[list[Row]]:
    part: list[Row] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row.raw)
        if len(part) >= most or size >= MAX_BATCH_CHARACTERS:
            yield part
            part, size = [], 0
    if part:
        yield part


def load_file(
    path: str, reading: Reading, connect: Callable[..., Any], stop: threading.Event, tell: Tell, keep: bool = False
) -> Outcome:
    """Loads the file to its end. keep: no sweep deletes its rows, also if it was loaded before.

    Raises FileError; Stopped; sink.Fenced if another load of the same file is at work; psycopg2.Error.
    """
    began = time.monotonic()
    with _opened(path, reading) as (file, header, rows):
        load = begin(connect, file, header, keep)
        outcome = Outcome(
            file.name, file.sha256, header.contract.table, load.rows, load.stored, load.duplicates, load.dead,
            load.suppressed, loaded_before=load.ended_at,
        )  # fmt: skip
        if load.ended_at:
            return outcome
        if load.rows:
            log.info("%s: goes on after row %d", file.name, load.rows)
            deque(islice(rows, load.rows), maxlen=0)
        with closing(FileSink(connect, load, header.contract.topic, file.name)) as sink:
            for part in _parts(rows, reading.batch_size):
                if stop.is_set():
                    raise Stopped(f"stopped after row {outcome.rows}")
                batch = Batch()
                high = outcome.rows + len(part)
                encoded = header.encode(part, load.started_at, outcome.rows, load.number)
                batch.add(header.contract.topic, OF_NO_PARTITION, outcome.rows, high, encoded)
                _store(sink, batch, outcome, stop)
                outcome.seconds = time.monotonic() - began
                tell(file, outcome)
        end(connect, load)
        return outcome


def _store(sink: FileSink, batch: Batch, outcome: Outcome, stop: threading.Event) -> None:
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_outage),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
        stop=tenacity.stop_any(tenacity.stop_after_delay(OUTAGE_S), tenacity.stop_when_event_set(stop)),
        sleep=tenacity.sleep_using_event(stop),
        before_sleep=_say_waiting,
        reraise=True,
    )
    written = retrying(sink.write, batch)
    outcome.rows += batch.records
    outcome.stored += written.stored.total()
    outcome.duplicates += written.duplicates(batch).total()
    outcome.dead += len(written.dead)
    outcome.suppressed += written.suppressed.total()
    outcome.reasons.update(letter.reason for letter in written.dead)


def _say_waiting(attempt: tenacity.RetryCallState) -> None:
    if attempt.attempt_number == 1 and attempt.outcome:
        log.warning("waiting for PostgreSQL: %s", str(attempt.outcome.exception()).strip().splitlines()[0])


def check_file(path: str, reading: Reading, stop: threading.Event, tell: Tell) -> Outcome:
    """What a load would find, without PostgreSQL; `stored` are the rows that are valid. Raises FileError, Stopped."""
    began = time.monotonic()
    with _opened(path, reading) as (file, header, rows):
        outcome = Outcome(file.name, file.sha256, header.contract.table)
        for part in _parts(rows, reading.batch_size):
            if stop.is_set():
                raise Stopped(f"stopped after row {outcome.rows}")
            encoded = header.encode(part, datetime.now(UTC), outcome.rows)
            for record, error in encoded.dead[: max(0, SHOWN_DEAD - outcome.dead)]:
                log.info("%s:%d %s", file.name, record.offset, error)
            outcome.rows += len(part)
            outcome.dead += len(encoded.dead)
            outcome.stored = outcome.rows - outcome.dead
            outcome.reasons.update(error.reason for _, error in encoded.dead)
            outcome.seconds = time.monotonic() - began
            tell(file, outcome)
        return outcome
