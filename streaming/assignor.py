"""How the group's leader shares the partitions out, and what it has given to nobody."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from kafka import TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor


class Assignor(CooperativeStickyAssignor):
    """Cooperative and sticky, as kafka-python's; the leader's remembers its last sharing out.

    It gives to nobody what is to move, until the former owner has joined again, and what Kafka did not tell it of. Both
    are put right by the next rebalance, which may not come by itself: a member dies before it joins again, and its
    successor is let in without one; a topic is deleted and made again between two looks at it, which then are the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sharing_out: set[TopicPartition] | None = None
        self._shared_out: tuple[float, set[TopicPartition]] | None = None  # None: another member is the leader

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, Any]:
        """Called of the leader alone, in each rebalance."""
        assignments: dict[str, Any] = super().assign(cluster, members)
        self._sharing_out = {each for assignment in assignments.values() for each in assignment.partitions()}
        return assignments

    def on_assignment(self, assignment: Any, generation: int) -> None:
        """Called at the end of each rebalance."""
        super().on_assignment(assignment, generation)
        self._shared_out = None if self._sharing_out is None else (time.monotonic(), self._sharing_out)
        self._sharing_out = None

    def given_to_nobody(self, known: Iterable[TopicPartition], for_s: float) -> set[TopicPartition]:
        """Those of the known partitions that have had no owner for so many seconds; of another than the leader none."""
        if self._shared_out is None or time.monotonic() - self._shared_out[0] < for_s:
            return set()
        return set(known) - self._shared_out[1]
