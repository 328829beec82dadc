"""What the pipeline reads of a record, wherever it came from. Apart from Kafka's client, which takes long to import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Record(NamedTuple):
    """What the pipeline reads of a Kafka record; kafka-python's ConsumerRecord has the same names, and more.

    Most go through as a PlainRecord, the same five in a tuple without names: making and freeing one of these for each
    record would cost a tenth of the consumer's rate. `Record(*record)` gives the names where they are wanted.
    """

    offset: int
    timestamp: int  # milliseconds since 1970, -1 if the producer gave none
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


PlainRecord = tuple[int, int, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]
