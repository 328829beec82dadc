"""How far a consumer is: the line in its log, and the lag of the partitions that are its own."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kafka import TopicPartition as KafkaPartition
from kafka.structs import OffsetAndMetadata

import pipeline_metrics as metrics
from writer import Writer

log = logging.getLogger("consumer")


class LagReport:
    """Of one membership in the group; what it says of the rows is since the report before."""

    def __init__(self, consumer: Any, writer: Writer) -> None:
        self._consumer = consumer
        self._writer = writer
        self._told: set[KafkaPartition] = set()

    def tell(self, offsets: Mapping[KafkaPartition, OffsetAndMetadata]) -> bool:
        """Sets the metrics by `offsets`, where each partition is stored to; False if nothing was stored meanwhile."""
        if self._told != set(offsets):  # of a partition that was given up, its next owner tells the lag
            metrics.LAG_RECORDS.clear()
            metrics.LAG_SECONDS.clear()
            self._told = set(offsets)
        lag: Counter[str] = Counter()
        age: dict[str, float] = {}
        for partition, offset in offsets.items():
            behind = max(0, (self._consumer.highwater(partition) or offset.offset) - offset.offset)
            metrics.LAG_RECORDS.labels(partition.topic, partition.partition).set(behind)
            lag[partition.topic] += behind
            newest = self._writer.newest.get(tuple(partition))
            if behind and newest is not None:
                age[partition.topic] = max(age.get(partition.topic, 0.0), time.time() - newest / 1000)
        for topic in lag:
            metrics.LAG_SECONDS.labels(topic).set(age.get(topic, 0.0))
        totals, self._writer.totals = self._writer.totals, Counter()
        if totals["batches"]:
            suppressed = f" suppressed={totals['suppressed']}" if totals["suppressed"] else ""
            log.info(
                "stored=%d duplicates=%d dead=%d%s lag=%d batches=%d ms=%.1f", totals["stored"], totals["duplicates"],
                totals["dead"], suppressed, lag.total(), totals["batches"], totals["ms"] / totals["batches"],
            )  # fmt: skip
        return bool(totals["batches"])
