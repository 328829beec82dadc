"""Paces a stream of due records in real time, and tells how it goes."""

from __future__ import annotations

import logging
import math
import threading
import time

from delivery import Delivery

log = logging.getLogger("producer")

PROGRESS_EVERY = 5.0  # seconds
BEHIND = 1.0  # seconds; from here on the progress says so


class Clock:
    """Paces by an absolute schedule, so no delay adds up; looks after the delivery meanwhile."""

    def __init__(self, delivery: Delivery, stop: threading.Event, max_speed: bool) -> None:
        self._delivery, self._stop, self._max_speed = delivery, stop, max_speed
        self._began = time.monotonic()
        self.reached = math.inf if max_speed else 0.0  # what is due up to here can go without a look at the clock
        self._progress_at, self._progress_sent, self._progress_settled = 0.0, 0, 0

    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def wait_until(self, due: float) -> None:
        while (ahead := due - (now := self.elapsed())) > 0 and not self._stop.is_set():
            self.tick(due)
            self._stop.wait(min(ahead, 0.2))
        self.reached = max(now, due)

    def tick(self, due: float) -> None:
        """Every few hundred records and every fraction of a second. Waits while too much is on its way."""
        self._delivery.look_after()
        self._report(due)
        while not self._delivery.has_room() and not self._stop.wait(0.01):
            self._delivery.look_after()
            self._report(due)

    def _report(self, due: float) -> None:
        now = self.elapsed()
        if now - self._progress_at < PROGRESS_EVERY:
            return
        delivery = self._delivery
        rate = (delivery.sent - self._progress_sent) / (now - self._progress_at)
        self._progress_at, self._progress_sent = now, delivery.sent
        behind = "" if self._max_speed or now - due < BEHIND else f" behind={now - due:.1f}s (cannot keep up)"
        log.info(
            "sent=%d acknowledged=%d failed=%d in_flight=%d rate=%.1f/s p99_ms=%.1f%s",
            delivery.sent,
            delivery.acknowledged,
            delivery.failed,
            delivery.in_flight,
            rate,
            delivery.p99() * 1000,
            behind,
        )
        settled = delivery.sent - delivery.in_flight
        if delivery.in_flight and settled == self._progress_settled:
            log.warning(
                "Kafka has acknowledged nothing for %.0f s, %d records wait: brokers are away, or fewer of them in sync"
                " than min.insync.replicas",
                PROGRESS_EVERY,
                delivery.in_flight,
            )
            delivery.look_for_brokers()
        self._progress_settled = settled
        delivery.publish()
