"""The writing half of the consumer: a thread that stores what has piled up whenever it is free.

Batches are therefore as small as the stream is calm and grow by themselves under load. While the poll keeps coming back
full there is a backlog, and the batch is left to grow to BATCH_SIZE rows or for BATCH_TIMEOUT seconds.
An outage of PostgreSQL is waited out, for as long as it takes, with the batch kept as it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter

import tenacity

import pipeline_metrics as metrics
from batch import Batch, TopicPartition, Written
from record import Record
from row_text import Encoded
from sink import Sink, is_outage

log = logging.getLogger("writer")

MAX_BATCH_BYTES = 32 * 1024 * 1024


class Status:
    """What /readyz tells: the state, since when, why; and the times by which a stuck thread shows."""

    STATES = ("starting", "running", "backing_off", "stopping")

    def __init__(self) -> None:
        self.polled_at = self.changed_at = time.monotonic()
        self.write_began_at: float | None = None
        self.set("starting")

    def set(self, state: str, detail: str = "") -> None:
        self.state, self.detail = state, detail
        self.changed_at = time.monotonic()
        for name in self.STATES:
            metrics.STATE.labels(name).set(name == state)

    def report(self) -> tuple[bool, dict[str, object]]:
        now = time.monotonic()
        began = self.write_began_at
        stuck = now - self.polled_at > 60 or (began is not None and self.state == "running" and now - began > 90)
        report = {"state": self.state, "detail": self.detail, "seconds": round(now - self.changed_at, 1)}
        return self.state == "running" and not stuck, {**report, "stuck": stuck}


class Writer:
    """Owns the batch being built, a full one that waits, and the one being written.

    `add` and `drop` may come from two threads. Without the one that waits, each thread would stand still whenever it
    happened to be the quicker one.
    """

    def __init__(self, sink: Sink, status: Status, batch_size: int, batch_timeout: float):
        self._sink = sink
        self._status = status
        self._batch_size = batch_size
        self._batch_timeout = batch_timeout
        self._changed = threading.Condition()
        self._waiting: Batch | None = None
        self._building = Batch()
        self._opened_at = 0.0
        self._closed = False  # the batch that is being built may be taken
        self._writing = False
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self.stored_to: dict[TopicPartition, int] = {}  # the ledger's position after the last transaction
        self.newest: dict[TopicPartition, int] = {}  # timestamp, in ms, of the newest record stored
        self.totals: Counter[str] = Counter()

    def start(self) -> None:
        self._thread.start()

    def add(self, topic: str, partition: int, low: int, high: int, encoded: Encoded) -> None:
        with self._changed:
            if not self._building.spans:
                self._opened_at = time.monotonic()
            self._building.add(topic, partition, low, high, encoded)

    def close_batch(self, more_to_come: bool) -> None:
        """Lets the thread have the batch, unless more is about to come and there is room and time for it."""
        with self._changed:
            aged = time.monotonic() - self._opened_at >= self._batch_timeout
            if self._building.spans and (not more_to_come or aged or self._is_full()):
                if self._is_full() and self._waiting is None:
                    self._waiting, self._building = self._building, Batch()
                else:
                    self._closed = True
                self._changed.notify_all()

    def _is_full(self) -> bool:
        return self._building.records >= self._batch_size or self._building.size >= MAX_BATCH_BYTES

    def _take(self) -> Batch:
        """The next batch in order; empty if there is none to be had yet."""
        if self._waiting is not None:
            batch, self._waiting = self._waiting, None
        elif self._closed:
            batch, self._building, self._closed = self._building, Batch(), False
        else:
            batch = Batch()
        return batch

    def wait_for_room(self, timeout: float) -> bool:
        """False if the batch being built is still full after `timeout` seconds. Raises what the thread died of."""
        with self._changed:
            has_room = self._changed.wait_for(lambda: self._failure or not self._is_full(), timeout)
            if self._failure:
                raise self._failure
            return bool(has_room)

    def drop(self, partitions: set[TopicPartition], timeout: float) -> None:
        """Writes what there is for up to `timeout` seconds, then forgets what is left of these partitions."""
        self.flush(timeout)
        with self._changed:
            for batch in (self._waiting, self._building):
                if batch is not None:
                    batch.drop(partitions)
            for partition in partitions:
                self.stored_to.pop(partition, None)
                self.newest.pop(partition, None)

    def flush(self, timeout: float) -> bool:
        """True if everything given to `add` is stored within `timeout` seconds."""
        self.close_batch(more_to_come=False)
        with self._changed:
            self._changed.wait_for(self._is_idle, timeout)
            return not self._has_work()

    def _is_idle(self) -> bool:
        return self._failure is not None or self._stop.is_set() or not self._has_work()

    def _has_work(self) -> bool:
        return self._writing or self._waiting is not None or bool(self._building.spans)

    def stop(self) -> None:
        """Ends the thread; what is not stored yet will be read again by whoever comes next."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()
        self._sink.close()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closed or self._stop.is_set())
                    if self._stop.is_set():
                        return
                    batch, self._writing = self._take(), True
                    self._changed.notify_all()
                began = time.perf_counter()
                written = self._write(batch)
                self._account(batch, written, time.perf_counter() - began)
                with self._changed:
                    self._writing = False
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, it is raised in the polling thread
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _write(self, batch: Batch) -> Written:
        if not batch.spans:
            return Written()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_outage),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
            stop=tenacity.stop_when_event_set(self._stop),
            sleep=tenacity.sleep_using_event(self._stop),
            before_sleep=self._backing_off,
            reraise=True,
        )
        self._status.write_began_at = time.monotonic()
        written: Written = retrying(self._sink.write, batch)
        self._status.write_began_at = None
        if self._status.state == "backing_off":
            log.info("PostgreSQL is back")
            self._status.set("running")
        return written

    def _backing_off(self, attempt: tenacity.RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome else None
        state = getattr(error, "pgcode", None) or "connection"
        metrics.RETRIES.labels(state).inc()
        detail = f"PostgreSQL is down ({state}: {str(error).strip().splitlines()[0]}), backing off"
        if self._status.state != "backing_off":
            log.warning("%s; nothing is lost, the batch is kept", detail)
            self._status.set("backing_off", detail)

    def _account(self, batch: Batch, written: Written, seconds: float) -> None:
        now = time.time()
        duplicates = written.duplicates(batch)
        for (topic, partition), span in batch.spans.items():
            metrics.CONSUMED.labels(topic).inc(span.count)
            metrics.STORED.labels(topic).inc(written.stored[topic, partition])
            metrics.DUPLICATES.labels(topic).inc(duplicates[topic, partition])
            metrics.SUPPRESSED.labels(topic).inc(written.suppressed[topic, partition])
        for (topic, reason), count in Counter((letter.topic, letter.reason) for letter in written.dead).items():
            metrics.DEAD.labels(topic, reason).inc(count)
        for topic, chunks in batch.chunks.items():
            for chunk in chunks:
                first, last = Record(*chunk.records[0]), Record(*chunk.records[-1])
                for record in (first, last):
                    metrics.EVENT_TO_ROW_SECONDS.observe(max(0.0, now - record.timestamp / 1000))
                self.newest[topic, chunk.partition] = last.timestamp
        metrics.BATCH_RECORDS.observe(batch.records)
        metrics.COMMIT_SECONDS.observe(seconds)
        self.stored_to.update({partition: span.high for partition, span in batch.spans.items()})
        self.totals.update(
            batches=1,
            stored=written.stored.total(),
            duplicates=duplicates.total(),
            dead=len(written.dead),
            suppressed=written.suppressed.total(),
            ms=round(seconds * 1000),
        )
        log.debug(
            "batch stored=%d duplicates=%d dead=%d suppressed=%d ms=%d",
            written.stored.total(), duplicates.total(), len(written.dead), written.suppressed.total(), seconds * 1000,
        )  # fmt: skip
