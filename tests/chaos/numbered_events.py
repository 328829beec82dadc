"""What is sent under chaos: events and health reports that carry a number, and poison that the number decides.

The number rides in a header, so that whoever counts decodes nothing; in a row it is the event's id or the report's
time. Ten numbers are a second of the devices' time, so that hours and days pass, and the models have something to do.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from contracts import EVENTS, HEALTH

PARTITIONS = 6
DEVICES = 50
HEADER = "number"
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
STEP = timedelta(milliseconds=100)
POISON_EVERY = 89
POISON = (
    b'{"event_id": "cut',
    b"\xff\xfe",
    b'{"device_id": "sensor-1"}',
    b'["not", "an", "object"]',
    b'{"event_id": 1.5, "device_id": 7.5, "reported_at": 8, "is_online": "perhaps"}',
    b'{"event_id": "x", "device_id": "d", "event_ts": "yesterday", "event_type": "open", "reported_at": "yesterday"}',
    None,  # a tombstone where nothing is deleted
)
# In SQL, the number of a row
NUMBER_IN_ROW = {
    EVENTS.topic: "('x' || right(event_id::text, 12))::bit(48)::bigint",
    HEALTH.topic: "(extract(epoch FROM reported_at - '2020-01-01Z'::timestamptz) * 10)::bigint",
}


def topic(number: int) -> str:
    return HEALTH.topic if number % 4 == 3 else EVENTS.topic


def partition(number: int) -> int:
    return number // 4 % PARTITIONS


def is_poison(number: int) -> bool:
    return number % POISON_EVERY == 0


def value(number: int) -> bytes | None:
    if is_poison(number):
        return POISON[number // POISON_EVERY % len(POISON)]
    at = (EPOCH + number * STEP).isoformat()
    if topic(number) == HEALTH.topic:
        return json.dumps({"device_id": key(number), "reported_at": at, "is_online": True}).encode()
    record = {
        "event_id": str(uuid.UUID(int=number)),
        "device_id": key(number),
        "event_ts": at,
        "event_type": ("open", "close")[number // DEVICES % 2],
        "trigger_source": "app",
    }
    return json.dumps(record).encode()


def key(number: int) -> str:
    return f"sensor-{number % DEVICES}"


def read_journal(file: Path) -> tuple[Counter[int], set[int]]:
    """How often each number was tried, and which ones Kafka has acknowledged. A last line that was cut short is none.

    A line is `tried` or `acknowledged` and numbers.
    """
    tried: Counter[int] = Counter()
    acknowledged: set[int] = set()
    with file.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                what, *numbers = line.split()
                (tried if what == b"tried" else acknowledged).update(map(int, numbers))
    return tried, acknowledged
