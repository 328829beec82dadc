"""The consumer, made to forget all topics but one for five seconds as soon as it has them, as happens when they are
deleted and made again between two looks of kafka-python. Ends when it has them again, or after 40 s: exit code 3."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "streaming"))

import kafka_consumer
from assignor import Assignor
from contracts import HOUSEHOLDS
from membership import Session

assign, run = Assignor.assign, Session.run
forgets_until = 0.0


def assign_what_is_known(self: Any, cluster: Any, members: Any) -> Any:
    if time.monotonic() < forgets_until:
        for member in members:
            member.metadata.topics[:] = [HOUSEHOLDS.topic]
    return assign(self, cluster, members)


def run_and_forget(self: Session, stop: threading.Event) -> None:
    threading.Thread(target=forget, args=(self, stop), daemon=True).start()
    run(self, stop)


def forget(session: Session, stop: threading.Event) -> None:
    global forgets_until
    wait_until(lambda: len(session._positions._next) > 6)
    forgets_until = time.monotonic() + 5
    session._consumer._coordinator.request_rejoin()
    wait_until(lambda: len(session._positions._next) == 6)
    wait_until(lambda: len(session._positions._next) > 6)
    stop.set()


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 40
    while not holds():
        if time.monotonic() > deadline:
            os._exit(3)
        time.sleep(0.1)


Assignor.assign = assign_what_is_known  # type: ignore[method-assign]
Session.run = run_and_forget  # type: ignore[method-assign]
sys.argv = ["kafka_consumer.py"]
sys.exit(kafka_consumer.main())
