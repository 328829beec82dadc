"""The group has other members than it should: two of one name, one that hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from event_stream import Launcher, Stream, stop, wait_until
from kafka import KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from contracts import CONTRACTS
from membership import REPORT_EVERY_S


@contextmanager
def member(stream: Stream, **settings: Any) -> Iterator[KafkaConsumer]:
    """A member of the group that is none of our scripts: it joins, tells that it lives, and does nothing more."""
    joined = KafkaConsumer(
        *CONTRACTS, bootstrap_servers=stream.bootstrap_servers, group_id=stream.group, enable_auto_commit=False,
        partition_assignment_strategy=[CooperativeStickyAssignor()], **settings,
    )  # fmt: skip
    with closing(joined):
        wait_until(lambda: joined.poll(timeout_ms=100) or joined.assignment())
        yield joined


def test_a_static_member_that_kafka_took_for_another_joins_anew(stream: Stream, launch: Launcher) -> None:
    """As happens by itself when the answer to its joining is lost, and it joins again."""
    running = launch(stream, CONSUMER_INSTANCE_ID="one", SESSION_TIMEOUT="6")
    stream.send_events(600)
    stream.wait_until_consumed(running)
    with member(stream, group_instance_id="one"):
        pass
    wait_until(lambda: "let another one in as CONSUMER_INSTANCE_ID=one" in running.log, running)
    stream.send_events(600)
    stream.wait_until_consumed(running)
    stop(running)
    stream.assert_each_once()


def test_of_two_consumers_of_one_name_one_says_so_and_ends(stream: Stream, launch: Launcher) -> None:
    two = [launch(stream, CONSUMER_INSTANCE_ID="one", SESSION_TIMEOUT="6") for _ in range(2)]
    wait_until(lambda: any(each.process.poll() is not None for each in two))
    [ended] = [each for each in two if each.process.poll() is not None]
    assert ended.process.returncode == 1
    assert "CONSUMER_INSTANCE_ID=one is another consumer's too" in ended.log.splitlines()[-1]
    two.remove(ended)
    stream.send_events(600)
    stream.wait_until_consumed(*two)
    stop(*two)
    stream.assert_each_once()


@pytest.mark.slow
def test_a_member_that_does_not_join_again_is_waited_for_a_minute(stream: Stream, launch: Launcher) -> None:
    stream.send_events(600)
    with member(stream, max_poll_interval_ms=20_000) as hung:
        hung._coordinator.heartbeat.poll_timeout_expired = lambda: False  # else it would leave by itself
        running = launch(stream)
        wait_until(lambda: "consumer: assigned " in running.log, running, timeout=90)
    stream.wait_until_consumed(running)
    time.sleep(REPORT_EVERY_S + 1)  # it looks for Kafka so often, and has run for more than a minute now
    stop(running)
    assert "joining anew" not in running.log  # Kafka answered all the while
    stream.assert_each_once()


@pytest.mark.slow
def test_topics_that_the_group_forgot_are_asked_for_again(stream: Stream) -> None:
    script = Path(__file__).with_name("forgetful_consumer.py")
    settings = {**os.environ, **stream.environment, "CONSUMER_GROUP": stream.group, "CONSUMER_METRICS_PORT": "0"}
    found = subprocess.run([sys.executable, script], env=settings, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_a_session_timeout_that_the_brokers_refuse_is_named(stream: Stream, launch: Launcher) -> None:
    running = launch(stream, SESSION_TIMEOUT="2")
    assert running.process.wait(timeout=30) == 1
    assert "SESSION_TIMEOUT=2 lies outside of the brokers' group.min.session.timeout.ms" in running.log.splitlines()[-1]
