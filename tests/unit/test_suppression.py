"""What writers hold back of a batch: rows by their ids and times, invalid records by whatever stands in them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from batch import Batch
from contracts import CONTRACTS, DEVICES, EVENTS, HEALTH, HOUSEHOLDS, Contract
from record import Record
from row_text import encode, escape, unescape
from suppression import ALWAYS, DEVICE, HOUSEHOLD, Span, Suppressions, digest, tokens

SALT = b"salt"
AT_MS = 1_772_366_400_000  # 2026-03-01T12:00:00Z
NOON, HOUR = AT_MS / 1000, 3600.0


def suppressions(**spans: list[Span]) -> Suppressions:
    """By device; the household `home` is always on the list."""
    listed = {digest(SALT, DEVICE, name): found for name, found in spans.items()}
    return Suppressions(SALT, {**listed, digest(SALT, HOUSEHOLD, "home"): [ALWAYS]})


def event(device: Any, at: str = "2026-03-01T12:00:00Z", **changes: Any) -> bytes:
    record = {"event_id": "e", "device_id": device, "event_ts": at, "event_type": "open", "trigger_source": "app"}
    return json.dumps(record | changes).encode()


def batch_of(contract: Contract, *values: bytes | None, key: bytes | None = b"k") -> Batch:
    records = [(at, AT_MS, key, value, ()) for at, value in enumerate(values)]
    batch = Batch()
    batch.add(contract.topic, 3, 0, len(values), encode(contract, 3, records))
    return batch


def kept(listed: Suppressions, batch: Batch, contract: Contract = EVENTS) -> list[int]:
    """The offsets of what may be stored; the rest of the valid records is counted."""
    wanted, _, held = listed.sift(batch)
    offsets = [record[0] for chunk in wanted.get(contract.topic, []) for record in chunk.records]
    assert all(len(chunk.records) == len(chunk.lines) for chunk in wanted.get(contract.topic, []))
    assert held == Counter({(contract.topic, 3): batch.records - len(offsets)})
    return offsets


def test_an_empty_list_leaves_the_batch_as_it_is() -> None:
    batch = batch_of(EVENTS, event("lock-1"), b"{")
    wanted, dead, held = Suppressions().sift(batch)
    assert (wanted, dead, held.total()) == (dict(batch.chunks), batch.dead, 0)


@pytest.mark.parametrize("name", ["lock", "lock 1", "tab\there", "back\\slash", "\\N", "Tür", "17"])
def test_rows_of_a_listed_device_are_held_back_and_their_neighbours_are_not(name: str) -> None:
    """Twice, as the second time the neighbours are known."""
    listed = suppressions(**{name: [ALWAYS]})
    values = [event("other"), event(name), event("other"), event(int(name) if name == "17" else name, battery=1)]
    for _ in range(2):
        assert kept(listed, batch_of(EVENTS, *values)) == [0, 2]


@pytest.mark.parametrize("text", ["", "a", "\\", "\\t", "a\tb\nc\rd\\e", "\\\\N"])
def test_unescape_undoes_escape(text: str) -> None:
    assert unescape(escape(text)) == text


@pytest.mark.parametrize(
    ("at", "is_kept"),
    [
        ("2026-03-01T10:59:59.999999Z", True),
        ("2026-03-01T11:00:00Z", False),
        ("2026-03-01T12:59:59.9+01:00", False),
        ("2026-03-01T12:59:59.999999", False),
        ("2026-03-01T13:00:00Z", True),
        ("2026-03-01 14:00:00+01:00", True),
    ],
)
@pytest.mark.parametrize("contract", [EVENTS, HEALTH], ids=["events", "health"])
def test_of_a_device_that_moved_the_time_in_the_household_is_held_back(
    contract: Contract, at: str, is_kept: bool
) -> None:
    listed = suppressions(lock=[(NOON - HOUR, NOON + HOUR)])
    timestamp = AT_MS + 7_200_000
    report = json.dumps({"device_id": "lock", "reported_at": at, "is_online": True}).encode()
    record = (0, timestamp, b"lock", event("lock", at) if contract is EVENTS else report, ())
    batch = Batch()
    batch.add(contract.topic, 3, 0, 1, encode(contract, 3, [record]))
    assert kept(listed, batch, contract) == ([0] if is_kept else [])


def test_registry_entries_are_held_back_by_household_or_device() -> None:
    listed = suppressions(lock=[(NOON - HOUR, NOON)])

    def entry(device: str, household: str, at: str) -> bytes:
        return json.dumps({"device_id": device, "household_id": household, "updated_at": at}).encode()

    for device, household, at, expected in (
        ("new", "home", "2026-03-01T12:00:00Z", []),  # a device that nobody knew
        ("lock", "other", "2026-03-01T11:30:00Z", []),
        ("lock", "other", "2026-03-01T12:00:00Z", [0]),
        ("new", "other", "2026-03-01T11:30:00Z", [0]),
    ):
        found = kept(listed, batch_of(DEVICES, entry(device, household, at), key=device.encode()), DEVICES)
        assert found == expected, (device, household, at)
    assert kept(listed, batch_of(HOUSEHOLDS, None, key=b"home"), HOUSEHOLDS) == []
    assert kept(listed, batch_of(HOUSEHOLDS, None, key=b"other"), HOUSEHOLDS) == [0]
    assert kept(suppressions(lock=[(NOON - HOUR, NOON + 1)]), batch_of(DEVICES, None, key=b"lock"), DEVICES) == []


@pytest.mark.parametrize(
    "value",
    [
        event("lock", "never"),
        b'{"device": "lock"}',
        b'{"nested": [{"deeply": {"lock": 1}}]}',
        b'["lock"]',
        b'{"device_id": "lock", "event_ts',
        b'{"device_id":"lock"} trailing',
        b"\xef\xbb\xbf" + event("lock"),
        event("lock")[:-1] + b', "x": "\xff"}',
        b"id,lock,2026-03-01T12:00:00Z",
        b"id;\"lock\";'x'",
        b"device=lock",
        json.dumps({"household_id": "home", "x": "y" * 70_000}).encode(),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_an_invalid_record_is_held_back_by_what_stands_in_it(value: bytes) -> None:
    batch = batch_of(EVENTS, value, event("other", "never"))
    assert len(batch.dead) == 2
    _, dead, held = suppressions(lock=[ALWAYS]).sift(batch)
    assert [letter.record.offset for letter in dead] == [1]
    assert held == Counter({(EVENTS.topic, 3): 1})


def test_an_invalid_record_is_held_back_by_its_key_or_a_header() -> None:
    listed = suppressions(lock=[ALWAYS])
    assert listed.are_mentioned(Record(0, AT_MS, b"lock", None, ()))
    assert listed.are_mentioned(Record(0, AT_MS, None, b"{", [("device", b"lock")]))
    assert not listed.are_mentioned(Record(0, AT_MS, b"\xff", b"{", [("lock", None)]))


def test_an_integer_is_an_id_and_a_reading_is_none() -> None:
    listed = suppressions(**{"42": [ALWAYS]})
    assert listed.are_mentioned(Record(0, AT_MS, None, b'{"device_id": 42}', ()))
    assert not listed.are_mentioned(Record(0, AT_MS, None, b'{"battery_pct": 42, "is_online": true}', ()))
    assert not listed.are_mentioned(Record(0, AT_MS, None, b'{"x": 42.0}', ()))


@pytest.mark.parametrize(
    ("value", "timestamp", "is_held_back"),
    [
        (b'{"device_id": "lock", "event_ts": "2026-03-01T12:00:00Z"}', AT_MS + 9_000_000, True),
        (b'{"device_id": "lock", "event_ts": "2026-03-01T14:00:00Z"}', AT_MS, False),
        (b'{"device_id": "lock", "event_ts": "2026-03-01T12:00:00"', AT_MS + 9_000_000, True),
        (b'{"device_id": "lock", "event_ts": "2026-13-01T12:00:00Z"}', AT_MS, True),  # no time: when it was sent
        (b'{"device_id": "lock"}', AT_MS, True),
        (b'{"device_id": "lock"}', AT_MS + 9_000_000, False),
        (b'{"device_id": "lock"}', -1, False),
    ],
)
def test_an_invalid_record_of_a_device_that_moved_goes_by_its_times(
    value: bytes, timestamp: int, is_held_back: bool
) -> None:
    listed = suppressions(lock=[(NOON - HOUR, NOON + HOUR)])
    assert listed.are_mentioned(Record(0, timestamp, None, value, ())) is is_held_back


def test_tokens_are_no_longer_than_an_id_may_be() -> None:
    longest = "x" * 64
    found = tokens(Record(0, 0, None, json.dumps({"a": longest, "b": longest + "x", "c": ""}).encode(), ()))
    assert found == {"a", "b", "c", longest}


def test_every_topic_is_decided_upon() -> None:
    """By a place for each of its ids."""
    for contract in CONTRACTS.values():
        ids = {"device_id", "household_id"}.intersection(contract.columns)
        line = "\t".join(f"of {name}" if name in ids else "x" for name in contract.columns)
        for name in ids:
            kind = name.removesuffix("_id")
            assert Suppressions(SALT, {digest(SALT, kind, f"of {name}"): [ALWAYS]}).hold_back(contract.topic, line)
