"""What the leader of a group has given to nobody, so that it is shared out anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from assignor import Assignor

EVENTS = [TopicPartition("events", number) for number in range(4)]
HEALTH = [TopicPartition("health", 0)]


class Cluster:
    """What Kafka tells of these partitions."""

    def __init__(self, *partitions: TopicPartition) -> None:
        self._partitions = partitions

    def topics(self) -> set[str]:
        return {topic for topic, _ in self._partitions}

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {number for name, number in self._partitions if name == topic} or None


def rebalance(leader: Assignor, cluster: Cluster, *others: CooperativeStickyAssignor) -> None:
    """As the group's coordinators do it."""
    members = {str(number): each for number, each in enumerate((leader, *others))}
    joined = [
        SimpleNamespace(member_id=name, metadata=each.metadata({"events", "health"})) for name, each in members.items()
    ]
    assignments: dict[str, Any] = leader.assign(cluster, joined)
    for name, each in members.items():
        each.on_assignment(assignments[name], 1)


def test_what_was_not_known_when_it_was_shared_out_has_no_owner() -> None:
    leader = Assignor()
    rebalance(leader, Cluster(*EVENTS[:2]))
    assert leader.given_to_nobody(EVENTS[:2], for_s=0) == set()
    assert leader.given_to_nobody([*EVENTS, *HEALTH], for_s=0) == {*EVENTS[2:], *HEALTH}
    rebalance(leader, Cluster(*EVENTS, *HEALTH))
    assert leader.given_to_nobody([*EVENTS, *HEALTH], for_s=0) == set()


def test_what_moves_has_no_owner_until_its_former_one_has_joined_again() -> None:
    leader, second = Assignor(), Assignor()
    rebalance(leader, Cluster(*EVENTS))
    rebalance(leader, Cluster(*EVENTS), second)
    moving = leader.given_to_nobody(EVENTS, for_s=0)
    assert len(moving) == 2
    rebalance(leader, Cluster(*EVENTS), second)
    assert leader.given_to_nobody(EVENTS, for_s=0) == set()


def test_a_while_passes_before_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("assignor.time.monotonic", lambda: now)
    leader = Assignor()
    rebalance(leader, Cluster())
    now = 109.9
    assert leader.given_to_nobody(EVENTS, for_s=10) == set()
    now = 110.1
    assert leader.given_to_nobody(EVENTS, for_s=10) == set(EVENTS)


def test_only_the_leader_knows() -> None:
    leader, second = Assignor(), Assignor()
    rebalance(leader, Cluster(), second)
    assert leader.given_to_nobody(EVENTS, for_s=0) == set(EVENTS)
    assert second.given_to_nobody(EVENTS, for_s=0) == set()
    rebalance(second, Cluster(), leader)
    assert leader.given_to_nobody(EVENTS, for_s=0) == set()
