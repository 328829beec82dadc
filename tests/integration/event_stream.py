"""Known, unique events on their way through real consumers, and the proof that each was stored exactly once.

The table's key makes a doubled row impossible, so doubling is looked for in the ledger: nothing here is sent twice, and
a duplicate is an event that was stored before its offset counted as read.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from running_consumer import PARTITIONS, ROOT, Consumer, Pipeline

from contracts import EVENTS

STARTUP_S = 30.0
WAITING = """
    SELECT pid FROM pg_stat_activity
    WHERE application_name = %s AND datname = current_database() AND wait_event_type = 'Lock'
"""


def event_id(number: int) -> str:
    return str(uuid.UUID(int=number))


def event(number: int) -> bytes:
    record = {
        "event_id": event_id(number),
        "device_id": f"lock-{number % 50}",
        "event_ts": "2025-06-01T12:00:00Z",
        "event_type": "open",
        "trigger_source": "app",
    }
    return json.dumps(record).encode()


class Stream(Pipeline):
    """A pipeline that remembers which events it has sent.

    partitions: over how many it sends them.
    """

    sent = 0
    partitions = PARTITIONS

    @property
    def bootstrap_servers(self) -> str:
        return self.environment["KAFKA_BOOTSTRAP_SERVERS"]

    def send_events(self, count: int) -> None:
        """Returns when the broker has acknowledged all of them."""
        futures = [self._send_next() for _ in range(count)]
        self.flush()
        for future in futures:
            future.get(30)

    def _send_next(self) -> Any:
        number = self.sent
        self.sent += 1
        return self.send(
            EVENTS.topic, event(number), f"lock-{number % 50}".encode(), partition=number % self.partitions
        )

    @contextmanager
    def load(self, rate: int = 1000) -> Iterator[None]:
        """Sends `rate` events a second beside the block, and leaves when all of them are acknowledged."""
        over = threading.Event()
        futures: list[Any] = []

        def send() -> None:
            while not over.wait(0.05):
                futures.extend(self._send_next() for _ in range(rate // 20))

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        for future in futures:
            future.get(60)

    def stored(self) -> list[str]:
        return [found for (found,) in self.rows("SELECT event_id::text FROM raw_access_events ORDER BY 1")]

    def progress(self) -> int:
        found: int = self.one(
            "SELECT coalesce(sum(next_offset - start_offset), 0)::bigint FROM ingest_offsets WHERE consumer_group = %s",
            self.group,
        )
        return found

    def wait_for_progress(self, running: Consumer, records: int = 1, timeout: float = STARTUP_S) -> None:
        """Until that many more records are stored."""
        goal = self.progress() + records
        wait_until(lambda: self.progress() >= goal, running, timeout)

    @contextmanager
    def rows_held_up(self) -> Iterator[None]:
        """Nobody can write events within the block: a transaction gets as far as its rows and waits."""
        with closing(self.connect()) as connection, connection, connection.cursor() as cursor:
            cursor.execute("LOCK TABLE raw_access_events IN ACCESS EXCLUSIVE MODE")
            yield

    def waiting(self, application: str) -> list[int]:
        """The server processes of the consumers that wait for a lock: `smart-access-writer` or `-consumer`."""
        return [pid for (pid,) in self.rows(WAITING, application)]

    def assert_each_once(self) -> None:
        assert self.stored() == sorted(event_id(number) for number in range(self.sent))
        assert self.ledger()[EVENTS.topic] == {
            "consumed": self.sent, "stored": self.sent, "duplicates": 0, "dead": 0, "gaps": 0,
        }  # fmt: skip
        assert self.one("SELECT count(*) FROM dead_letters") == 0


def wait_until(condition: Callable[[], Any], running: Consumer | None = None, timeout: float = STARTUP_S) -> None:
    """Until the condition holds, while `running` runs; shows its log if it does not."""
    deadline = time.monotonic() + timeout
    while not condition():
        if running is not None:
            running.assert_runs()
        assert time.monotonic() < deadline, running.log if running else "waited in vain"
        time.sleep(0.02)


class Launcher:
    """Starts consumer scripts that a test may kill, stall and stop as it likes; what is left at its end is killed."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.started: list[Consumer] = []

    def __call__(
        self, stream: Pipeline, *arguments: str, script: str = "streaming/kafka_consumer.py", **settings: str
    ) -> Consumer:
        log = self._folder / f"launched-{len(self.started)}.log"
        environment = {
            **os.environ,
            **stream.environment,
            "CONSUMER_GROUP": stream.group,
            "CONSUMER_METRICS_PORT": "0",
            "SESSION_TIMEOUT": "6",
            **settings,
        }
        command = [sys.executable, script, *arguments]
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output, text=True)
        self.started.append(Consumer(process, log))
        return self.started[-1]

    def close(self) -> None:
        """Prints the logs: pytest shows them if the test failed."""
        for number, running in enumerate(self.started):
            running.process.kill()
            running.process.wait()
            print(f"--- consumer {number}, exit code {running.process.returncode}\n{running.log}")


def stop(*running: Consumer, timeout: float = 20) -> None:
    """SIGTERM to all of them; each must end with exit code 0."""
    for consumer in running:
        consumer.assert_runs()
        consumer.process.send_signal(signal.SIGTERM)
    for consumer in running:
        assert consumer.process.wait(timeout) == 0, consumer.log


def metric(text: str, name: str) -> float:
    """The sum of a metric's samples in what /metrics gives."""
    samples = [line.rsplit(" ", 1) for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
    return sum(float(value) for _, value in samples)
