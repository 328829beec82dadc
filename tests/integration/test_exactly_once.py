"""Exactly once, whatever happens to a consumer: killed, stalled, stalled within its transaction."""

from __future__ import annotations

import random
import signal
import time

import pytest
from event_stream import Launcher, Stream, metric, stop, wait_until
from running_consumer import Consumer, get

from local_servers import free_port

pytestmark = pytest.mark.alone


@pytest.mark.parametrize("kills", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_at_random_instants_lose_nothing_and_double_nothing(stream: Stream, launch: Launcher, kills: int) -> None:
    instants = random.Random(kills)
    settings = {"CONSUMER_INSTANCE_ID": "one", "BATCH_SIZE": "40"}  # a static member's successor need not wait
    with stream.load(rate=1000):
        for _ in range(kills):
            running = launch(stream, **settings)
            stream.wait_for_progress(running)
            time.sleep(instants.uniform(0.05, 1.0))
            running.process.kill()
            running.process.wait()
        running = launch(stream, **settings)
        stream.wait_for_progress(running)
    stream.wait_until_consumed(running)
    stop(running)
    stream.assert_each_once()


def stall_within_a_transaction(stream: Stream, launch: Launcher, **settings: str) -> tuple[Consumer, int]:
    """A stopped consumer whose transaction has advanced the ledger but not stored the rows, and its server process."""
    stalled = launch(stream, **settings)
    stream.send_events(60)
    stream.wait_for_progress(stalled, 60)
    with stream.rows_held_up():
        stream.send_events(600)
        wait_until(lambda: stream.waiting("smart-access-writer"), stalled)
        [writer] = stream.waiting("smart-access-writer")
        stalled.process.send_signal(signal.SIGSTOP)
    return stalled, writer


def test_a_stalled_consumer_that_wakes_up_writes_nothing_and_joins_again(stream: Stream, launch: Launcher) -> None:
    port = free_port()
    stalled, writer = stall_within_a_transaction(stream, launch, CONSUMER_METRICS_PORT=str(port))
    # what PostgreSQL does by itself after half a minute
    stream.execute("SELECT pg_terminate_backend(%s, 5000)", writer)
    successor = launch(stream)
    stream.wait_until_consumed(successor)
    stream.assert_each_once()
    stalled.process.send_signal(signal.SIGCONT)
    wait_until(lambda: metric(get(port, "/metrics"), "consumer_fenced_total"), stalled)
    assert "fenced: another consumer owns" in stalled.log
    stream.assert_each_once()
    wait_until(lambda: stalled.log.count("assigned ") == 2, stalled)
    stream.send_events(600)
    stream.wait_until_consumed(stalled)
    stop(stalled, successor)
    stream.assert_each_once()


def test_a_successor_waits_for_the_transaction_of_a_stalled_consumer_and_goes_on_behind_it(
    stream: Stream, launch: Launcher
) -> None:
    stalled, _ = stall_within_a_transaction(stream, launch)
    successor = launch(stream)
    wait_until(lambda: stream.waiting("smart-access-consumer"), successor)  # for the ledger's rows
    stalled.process.send_signal(signal.SIGCONT)
    stream.wait_until_consumed(successor)
    stream.send_events(600)
    stream.wait_until_consumed(successor)
    stop(stalled, successor)
    stream.assert_each_once()
