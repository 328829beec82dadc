"""Any number of consumers in the group, started and stopped at will under load."""

from __future__ import annotations

import re
from contextlib import closing

import pytest
from event_stream import Launcher, Stream, stop, wait_until
from kafka.admin import KafkaAdminClient
from running_consumer import Consumer, get

from local_servers import free_port

pytestmark = pytest.mark.alone


def owned(running: Consumer) -> set[str]:
    """The partitions that a consumer holds by its own log, as topic[partition]."""
    held: set[str] = set()
    for line in running.log.splitlines():
        _, _, said = line.partition("consumer: ")
        verb, _, names = said.replace("gave up ", "gave_up ").partition(" ")
        if verb in ("assigned", "gave_up"):
            found = {
                f"{topic}[{number}]"
                for topic, numbers in (name.rstrip("]").split("[") for name in names.split("], "))
                for number in numbers.split(", ")
            }
            held = held | found if verb == "assigned" else held - found
    return held


def shared_by(*group: Consumer) -> bool:
    """True when every one of the 24 partitions has one owner and every consumer has a share."""
    shares = [owned(running) for running in group]
    return all(shares) and sum(map(len, shares)) == len(set().union(*shares)) == 24


def lag_told_of(port: int) -> set[str]:
    """The partitions whose lag a consumer tells, as topic[partition]."""
    found = re.findall(
        r'^consumer_lag_records\{partition="(\d+)",topic="([^"]+)"\}', get(port, "/metrics"), re.MULTILINE
    )
    return {f"{topic}[{number}]" for number, topic in found}


def test_two_then_three_then_one_consumer_lose_nothing_and_double_nothing(stream: Stream, launch: Launcher) -> None:
    port = free_port()
    with stream.load(rate=1000):
        first, second = launch(stream, CONSUMER_METRICS_PORT=str(port)), launch(stream)
        wait_until(lambda: shared_by(first, second), first)
        wait_until(lambda: lag_told_of(port) == owned(first), first)
        third = launch(stream)
        wait_until(lambda: shared_by(first, second, third), first)
        wait_until(lambda: lag_told_of(port) == owned(first), first)
        stream.wait_for_progress(third, 1000)
        stop(first, second)
        wait_until(lambda: shared_by(third), third)
        stream.wait_for_progress(third, 500)
    stream.wait_until_consumed(third)
    stop(third)
    stream.assert_each_once()


def test_a_consumer_that_leaves_hands_over_at_once_though_the_session_would_last_long(
    stream: Stream, launch: Launcher
) -> None:
    with stream.load(rate=1000):
        first = launch(stream, SESSION_TIMEOUT="60")
        stream.wait_for_progress(first)
        stop(first)
        second = launch(stream, SESSION_TIMEOUT="60")
        stream.wait_for_progress(second, timeout=15)
    stream.wait_until_consumed(second)
    stop(second)
    stream.assert_each_once()


def test_a_static_member_killed_while_it_hands_over_leaves_no_partition_without_an_owner(
    stream: Stream, launch: Launcher
) -> None:
    """A cooperative group gives partitions first up, then, when the one that gave them up has joined again, away. Its
    successor of the same name is let in without a rebalance, and the group would wait for that second one for ever."""
    first = launch(stream, CONSUMER_INSTANCE_ID="first")
    stream.send_events(600)
    stream.wait_until_consumed(first)
    with stream.rows_held_up(), closing(KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers)) as admin:
        stream.send_events(600)
        wait_until(lambda: stream.waiting("smart-access-writer"), first)

        def has_let_in_two() -> bool:
            group = admin.describe_groups([stream.group])[stream.group]
            return (group["group_state"], len(group["members"])) == ("Stable", 2)

        second = launch(stream)
        wait_until(has_let_in_two, second)
        assert owned(second) == set()  # the first one waits for its rows before it gives anything up
        first.process.kill()
        successor = launch(stream, CONSUMER_INSTANCE_ID="first")
        wait_until(lambda: owned(successor), successor)
    wait_until(lambda: shared_by(successor, second), second)
    stream.wait_until_consumed(second)
    stop(successor, second)
    stream.assert_each_once()
