"""Sends numbered events at an even rate, and keeps a journal of what it has tried and what Kafka has acknowledged.

    python tests/chaos/numbered_producer.py BOOTSTRAP_SERVERS JOURNAL RATE FIRST_NUMBER

A record is in the journal before it is sent, so after a kill at any instant what Kafka holds is among what was tried,
and has all that was acknowledged. A successor with the same journal first sends again what was not acknowledged, as a
device would. One number in a hundred is sent twice on purpose. SIGTERM: waits for what is on its way, exits 0 if all of
it was acknowledged.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "streaming"), str(Path(__file__).resolve().parent)]

from numbered_events import HEADER, key, partition, read_journal, topic, value  # noqa: E402

import kafka_log  # noqa: E402
from delivery import Delivery  # noqa: E402
from pipeline_settings import KAFKA_SOCKETS  # noqa: E402

TICK_S = 0.02
MOST_IN_FLIGHT = 5000
TWICE = 0.01
TWICE_WITHIN = 5000  # an event that comes again is one of so many before it
LAST_ATTEMPTS = 2
FLUSH_S = 30.0


class Sender:
    def __init__(self, bootstrap_servers: str, journal: Path, rate: int, first: int) -> None:
        self._per_tick = max(1, round(rate * TICK_S))
        self._settled: deque[tuple[int, bool]] = deque()  # filled on kafka-python's thread
        self._in_flight = 0
        journal.touch()
        tried, acknowledged = read_journal(journal)
        self._again = deque(sorted(tried.keys() - acknowledged))
        self._next = max([first - 1, *tried]) + 1
        self._random = random.Random(self._next)
        self._file = os.open(journal, os.O_RDWR | os.O_APPEND)
        self._end_cut_line()
        # The real producer's client, with its settings; what Delivery adds knows no single record
        connection = {
            "bootstrap_servers": bootstrap_servers,
            "socket_options": KAFKA_SOCKETS,
            "bootstrap_timeout_ms": 60_000,
        }
        self._producer = Delivery(connection, None, {})._producer

    def _end_cut_line(self) -> None:
        """Of a line that a kill cut short nothing was sent yet, or nothing need be remembered."""
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        os.truncate(self._file, content.rfind(b"\n") + 1)

    def run(self, stopped: list[int]) -> bool:
        """Until there is a signal in `stopped`; True if everything was acknowledged."""
        while not stopped:
            time.sleep(TICK_S)
            self._settle()
            if self._in_flight < MOST_IN_FLIGHT:
                self._send(self._due())
        for _ in range(LAST_ATTEMPTS):  # what was not acknowledged before, or fails now, comes again
            self._send(list(self._again))
            self._again.clear()
            self._producer.flush(timeout=FLUSH_S)
            self._settle()
        return not self._in_flight and not self._again

    def _due(self) -> list[int]:
        again = [self._again.popleft() for _ in range(min(self._per_tick, len(self._again)))]
        fresh = list(range(self._next, self._next + self._per_tick))
        self._next += self._per_tick
        twice = [
            self._random.randrange(max(1, number - TWICE_WITHIN), number)
            for number in fresh
            if number > 1 and self._random.random() < TWICE
        ]
        return again + fresh + twice

    def _send(self, numbers: list[int]) -> None:
        self._note("tried", numbers)
        for number in numbers:
            future = self._producer.send(
                topic(number), value(number), key=key(number).encode(), partition=partition(number),
                headers=[(HEADER, str(number).encode())],
            )  # fmt: skip
            self._in_flight += 1
            future.add_callback(lambda _, number=number: self._settled.append((number, True)))
            future.add_errback(lambda _, number=number: self._settled.append((number, False)))

    def _settle(self) -> None:
        settled = [self._settled.popleft() for _ in range(len(self._settled))]
        self._in_flight -= len(settled)
        self._note("acknowledged", [number for number, well in settled if well])
        self._again.extend(number for number, well in settled if not well)

    def _note(self, what: str, numbers: list[int]) -> None:
        if numbers:
            os.write(self._file, f"{what} {' '.join(map(str, numbers))}\n".encode())


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    kafka_log.calm()
    stopped: list[int] = []  # no Event: a signal that comes while this thread looks at it would wait for ever to set it
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda signum, _: stopped.append(signum))
    bootstrap_servers, journal, rate, first = sys.argv[1:]
    sender = Sender(bootstrap_servers, Path(journal), int(rate), int(first))
    return 0 if sender.run(stopped) else 1


if __name__ == "__main__":
    sys.exit(main())
