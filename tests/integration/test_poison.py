"""Every kind of poison that we could think of, each between two good records, through the real consumer.

Each becomes a dead letter with its reason and its very bytes; both neighbours land; the consumer does not even stutter.
"""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from running_consumer import PARTITIONS, Headers, Pipeline

from contracts import CONTRACTS, DEVICES, EVENTS, HEALTH, HOUSEHOLDS

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker

UUID = "0196a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
GOOD: dict[str, dict[str, Any]] = {
    EVENTS.topic: {
        "event_id": UUID,
        "device_id": "lock-1",
        "event_ts": "2024-05-04T11:59:30.25Z",
        "event_type": "open",
        "trigger_source": "keypad",
    },
    HEALTH.topic: {
        "device_id": "lock-1",
        "reported_at": "2024-05-04T11:59:30Z",
        "battery_pct": 87.5,
        "signal_strength_dbm": -61,
        "is_online": True,
    },
    DEVICES.topic: {"device_id": "lock-1", "household_id": "home-1", "model": "Bolt 3", "installed_at": "2024-02-29"},
    HOUSEHOLDS.topic: {"household_id": "home-1", "region": "Bavaria", "timezone": "Europe/Berlin"},
}
KEYS = {topic: record.get("device_id", record.get("household_id")).encode() for topic, record in GOOD.items()}
IDENTITY = {EVENTS.topic: "event_id", HEALTH.topic: "device_id", DEVICES.topic: "device_id"}


class Poison(NamedTuple):
    topic: str
    value: bytes | None
    reason: str
    key: bytes | None = None
    headers: Headers = ()
    timestamp_ms: int | None = None


def text_of(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")


def with_changes(topic: str, **changes: Any) -> bytes:
    return text_of({**GOOD[topic], **changes})


def without(topic: str, name: str) -> bytes:
    return text_of({key: value for key, value in GOOD[topic].items() if key != name})


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def _bytes_of_any_topic(topic: str) -> dict[str, tuple[bytes, str]]:
    good = text_of(GOOD[topic])
    identity = IDENTITY.get(topic, "household_id")
    said = GOOD[topic][identity].encode()
    return {
        "words": (b"door is open", "bad_json"),
        "nothing": (b"", "bad_json"),
        "a_blank": (b"  \n", "bad_json"),
        "nul_bytes": (b"\0" * 16, "bad_json"),
        "a_nul_behind": (good + b"\0", "bad_json"),
        "cut_short": (good[:-7], "bad_json"),
        "cut_within_a_letter": (good[:-2] + "é".encode()[:1], "bad_utf8"),
        "two_objects": (good + good, "bad_json"),
        "two_lines": (good + b"\n" + good, "bad_json"),
        "single_quotes": (good.replace(b'"', b"'"), "bad_json"),
        "a_comma_too_many": (good[:-1] + b",}", "bad_json"),
        "a_comment": (b"/* */" + good, "bad_json"),
        "a_raw_newline_in_a_text": (good.replace(said, said + b"\n"), "bad_json"),
        "an_array": (b"[" + good + b"]", "not_an_object"),
        "a_number": (b"42", "not_an_object"),
        "a_string": (b'"open"', "not_an_object"),
        "true": (b"true", "not_an_object"),
        "null": (b"null", "not_an_object"),
        "json_within_a_string": (json.dumps(good.decode()).encode(), "not_an_object"),
        "no_field_at_all": (b"{}", "missing_field"),
        "NaN": (good[:-1] + b',"x":NaN}', "bad_json"),
        "infinity": (good[:-1] + b',"x":-Infinity}', "bad_json"),
        "a_byte_order_mark": (b"\xef\xbb\xbf" + good, "bad_json"),
        "utf_16": (good.decode().encode("utf-16"), "bad_utf8"),
        "utf_16_without_a_mark": (good.decode().encode("utf-16-le"), "bad_json"),
        "latin_1": (good.replace(said, b"T\xfcr"), "bad_utf8"),
        "an_overlong_slash": (good.replace(said, b"\xc0\xaf"), "bad_utf8"),
        "a_surrogate_in_bytes": (good.replace(said, b"\xed\xa0\x80"), "bad_utf8"),
        "a_lone_surrogate_escaped": (good.replace(said, b"\\ud800"), "bad_json"),
        "gzip": (gzip.compress(good, mtime=0), "bad_utf8"),
        "xml": (b"<event/>", "bad_json"),
        "csv": (b"a,b,c\n1,2,3", "bad_json"),
        "a_registry_header_of_avro": (b"\0\0\0\0\x2a\x06abc", "bad_json"),
        "64_kib_and_a_byte": (good.ljust(64 * 1024 + 1), "too_large"),
        "900_kb": (good.ljust(900_000, b"x"), "too_large"),
        "ten_thousand_arrays": (nested(10_000), "bad_json"),
        "ten_thousand_arrays_left_open": (b"[" * 10_000, "bad_json"),
        "no_id": (without(topic, identity), "missing_field"),
        "an_id_of_null": (with_changes(topic, **{identity: None}), "missing_field"),
        "an_id_of_nothing": (with_changes(topic, **{identity: ""}), "bad_value"),
        "an_id_of_65_characters": (with_changes(topic, **{identity: "x" * 65}), "bad_value"),
        "an_id_of_400_digits": (with_changes(topic, **{identity: 10**399}), "bad_value"),
        "an_id_with_a_nul": (with_changes(topic, **{identity: "a\0b"}), "bad_value"),
        "an_id_as_a_float": (with_changes(topic, **{identity: 1.5}), "wrong_type"),
        "an_id_as_an_object": (with_changes(topic, **{identity: {"id": 1}}), "wrong_type"),
        "a_nul_in_an_unknown_field": (with_changes(topic, x="a\0"), "bad_extra"),
        "400_digits_in_an_unknown_field": (with_changes(topic, x=10**399), "bad_extra"),
        "a_double_that_overflows": (good[:-1] + b',"x":1e999}', "bad_json"),
        "65_levels_in_an_unknown_field": (good[:-1] + b',"x":' + nested(64) + b"}", "bad_extra"),
        "17_kib_of_unknown_fields": (with_changes(topic, x="x" * 17_000), "bad_extra"),
    }


TOMORROW = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86_400))
FORGED = f"app\t\\N\t0\t1\n{UUID}\tforged\t2024-05-04T11:00:00Z\topen\tapp"


def _events() -> dict[str, Poison]:
    cases = {
        "an_unknown_event_type": ({"event_type": "ajar"}, "bad_value"),
        "an_event_type_in_capitals": ({"event_type": "OPEN"}, "bad_value"),
        "an_event_type_as_a_number": ({"event_type": 1}, "wrong_type"),
        "no_trigger": ({"trigger_source": None}, "missing_field"),
        "a_trigger_of_65_characters": ({"trigger_source": "x" * 65}, "bad_value"),
        "a_trigger_that_forges_a_row": ({"trigger_source": FORGED}, "bad_value"),
        "a_device_after_a_blank": ({"device_id": " lock-1"}, "bad_value"),
        "a_device_before_a_newline": ({"device_id": "lock-1\n"}, "bad_value"),
        "the_year_1970": ({"event_ts": "1970-01-01T00:00:00Z"}, "time_too_early"),
        "the_end_of_1999": ({"event_ts": "1999-12-31T23:59:59.999999Z"}, "time_too_early"),
        "the_year_9999": ({"event_ts": "9999-12-31T23:59:59Z"}, "time_in_future"),
        "tomorrow": ({"event_ts": TOMORROW}, "time_in_future"),
        "february_30": ({"event_ts": "2024-02-30T00:00:00Z"}, "bad_time"),
        "hour_24": ({"event_ts": "2024-05-04T24:00:00Z"}, "bad_time"),
        "a_leap_second": ({"event_ts": "2016-12-31T23:59:60Z"}, "bad_time"),
        "seconds_since_1970": ({"event_ts": 1714823970}, "wrong_type"),
        "infinity_as_a_time": ({"event_ts": "infinity"}, "bad_time"),
        "digits_of_another_script": ({"event_ts": "2024-05-04T11:00:0０Z"}, "bad_time"),
    }
    found = {
        name: Poison(EVENTS.topic, with_changes(EVENTS.topic, **changes), reason)
        for name, (changes, reason) in cases.items()
    }
    return found | {
        "a_tombstone": Poison(EVENTS.topic, None, "tombstone", b"lock-1"),
        "a_device_whose_kafka_clock_stands_in_1970": Poison(
            EVENTS.topic, text_of(GOOD[EVENTS.topic]), "time_in_future", b"lock-1", timestamp_ms=0
        ),
        "headers_of_every_kind": Poison(
            EVENTS.topic, b"{", "bad_json", b"k", [("trace", b"\0\xff"), ("trace", b""), ("é", b"x")]
        ),
        "a_header_whose_name_has_a_nul": Poison(EVENTS.topic, b"{", "bad_json", b"k", [("a\0b", b"x")]),
        "a_key_of_any_bytes": Poison(EVENTS.topic, b"{", "bad_json", bytes(range(256))),
        "an_empty_key": Poison(EVENTS.topic, b"{", "bad_json", b""),
        "a_key_of_50_kb": Poison(EVENTS.topic, b"{", "bad_json", b"k" * 50_000),
    }


def _health() -> dict[str, Poison]:
    cases = {
        "battery_101": ({"battery_pct": 101}, "bad_value"),
        "battery_minus_1": ({"battery_pct": -1}, "bad_value"),
        "battery_as_text": ({"battery_pct": "50"}, "wrong_type"),
        "battery_true": ({"battery_pct": True}, "wrong_type"),
        "battery_of_400_digits": ({"battery_pct": 10**399}, "bad_value"),
        "signal_1": ({"signal_strength_dbm": 1}, "bad_value"),
        "signal_minus_151": ({"signal_strength_dbm": -151}, "bad_value"),
        "online_yes": ({"is_online": "yes"}, "wrong_type"),
        "online_1": ({"is_online": 1}, "wrong_type"),
        "online_null": ({"is_online": None}, "missing_field"),
        "reported_tomorrow": ({"reported_at": TOMORROW}, "time_in_future"),
        "reported_at_a_date": ({"reported_at": "2024-05-04"}, "bad_time"),
    }
    return {
        "battery_NaN": Poison(HEALTH.topic, text_of(GOOD[HEALTH.topic]).replace(b"87.5", b"NaN"), "bad_json"),
        "a_tombstone": Poison(HEALTH.topic, None, "tombstone", b"lock-1"),
    } | {
        name: Poison(HEALTH.topic, with_changes(HEALTH.topic, **changes), reason)
        for name, (changes, reason) in cases.items()
    }


def _registry() -> dict[str, Poison]:
    device, home = text_of(GOOD[DEVICES.topic]), text_of(GOOD[HOUSEHOLDS.topic])
    cases = {
        "a_device_without_a_household": (DEVICES, {"household_id": None}, "missing_field"),
        "a_model_of_201_characters": (DEVICES, {"model": "x" * 201}, "bad_value"),
        "a_model_as_a_number": (DEVICES, {"model": 3}, "wrong_type"),
        "an_installation_tomorrow": (DEVICES, {"installed_at": TOMORROW}, "time_in_future"),
        "an_entry_of_tomorrow": (DEVICES, {"updated_at": TOMORROW}, "time_in_future"),
        "an_entry_of_1999": (DEVICES, {"updated_at": "1999-01-01T00:00:00Z"}, "time_too_early"),
        "a_time_zone_of_atlantis": (HOUSEHOLDS, {"timezone": "Europe/Atlantis"}, "bad_value"),
        "a_time_zone_with_a_path": (HOUSEHOLDS, {"timezone": "../etc/passwd"}, "bad_value"),
        "a_region_as_a_list": (HOUSEHOLDS, {"region": ["Bavaria"]}, "wrong_type"),
    }
    found = {
        name: Poison(contract.topic, with_changes(contract.topic, **changes), reason)
        for name, (contract, changes, reason) in cases.items()
    }
    return found | {
        "a_device_under_anothers_key": Poison(DEVICES.topic, device, "key_mismatch", b"lock-2"),
        "a_device_under_an_empty_key": Poison(DEVICES.topic, device, "key_mismatch", b""),
        "a_household_under_its_key_in_capitals": Poison(HOUSEHOLDS.topic, home, "key_mismatch", b"HOME-1"),
        "a_tombstone_of_an_empty_key": Poison(DEVICES.topic, None, "key_mismatch", b""),
        "a_tombstone_of_a_blank_key": Poison(DEVICES.topic, None, "key_mismatch", b" lock-1"),
        "a_tombstone_of_65_characters": Poison(HOUSEHOLDS.topic, None, "key_mismatch", b"x" * 65),
        "a_tombstone_of_bytes": Poison(HOUSEHOLDS.topic, None, "key_mismatch", b"\xff\xfe"),
        "a_tombstone_with_a_nul": Poison(HOUSEHOLDS.topic, None, "key_mismatch", b"a\0b"),
    }


POISON = {
    f"{CONTRACTS[topic].table}_{name}": Poison(topic, value, reason, KEYS[topic])
    for topic in CONTRACTS
    for name, (value, reason) in _bytes_of_any_topic(topic).items()
} | {
    f"{CONTRACTS[poison.topic].table}_{name}": poison
    if poison.key is not None or poison.topic == EVENTS.topic
    else poison._replace(key=KEYS[poison.topic])
    for table in (_events(), _health(), _registry())
    for name, poison in table.items()
}


class BytesForText(str):
    """A header's name that goes out as bytes which are no UTF-8; kafka-python cannot send such a one otherwise."""

    def encode(self, *_: Any) -> bytes:  # type: ignore[override]
        return b"na\xffme"


@pytest.fixture
def pipeline(kafka: KafkaBroker, database: dict[str, str], tmp_path: Path) -> Iterator[Pipeline]:
    with closing(Pipeline(kafka, database, tmp_path)) as made:
        yield made


def good_one(topic: str, number: int) -> tuple[bytes, bytes, str]:
    """A valid record's key and value, and what identifies its row."""
    identity = IDENTITY.get(topic, "household_id")
    name = f"{UUID[:24]}{number:012d}" if identity == "event_id" else f"good-{number}"
    record = {**GOOD[topic], identity: name}
    return str(record.get("device_id", record.get("household_id"))).encode(), text_of(record), name


def stored_in(pipeline: Pipeline, topic: str) -> list[str]:
    queries = {
        EVENTS.topic: "SELECT event_id::text FROM raw_access_events",
        HEALTH.topic: "SELECT device_id FROM raw_device_health",
        DEVICES.topic: "SELECT device_id FROM raw_devices",
        HOUSEHOLDS.topic: "SELECT household_id FROM raw_households",
    }
    return sorted(name for (name,) in pipeline.rows(queries[topic]))


def dead_letters(pipeline: Pipeline) -> dict[tuple[str, int, int], tuple[Any, ...]]:
    found = pipeline.rows(
        'SELECT topic, partition, "offset", reason, key, value, headers, record_ts, detail, cluster_id, consumer_group'
        " FROM dead_letters"
    )
    assert {tuple(row[-2:]) for row in found} == {(pipeline.cluster, pipeline.group)}
    return {
        (topic, partition, offset): (reason, *(None if part is None else bytes(part) for part in (key, value)), *rest)
        for topic, partition, offset, reason, key, value, *rest, _, _ in found
    }


def said(headers: Headers) -> list[list[str]] | None:
    """Headers as a dead letter has them: any bytes in base64, and no NUL in a name."""
    return [[name.replace("\0", "\ufffd"), base64.b64encode(value).decode()] for name, value in headers] or None


def test_there_are_more_than_a_hundred_kinds() -> None:
    assert len(POISON) > 250
    assert {poison.topic for poison in POISON.values()} == set(CONTRACTS)


def test_each_is_a_dead_letter_and_its_neighbours_land(pipeline: Pipeline) -> None:
    odd_name = Poison(EVENTS.topic, b"{", "bad_json", b"k", [(BytesForText("name"), b"x")])
    sent: dict[str, tuple[Poison, Any]] = {}
    good: dict[str, list[str]] = {topic: [] for topic in CONTRACTS}
    for number, (name, poison) in enumerate([*POISON.items(), ("a_header_whose_name_is_no_utf8", odd_name)]):
        place = number % PARTITIONS
        for neighbour in (0, 1):
            key, value, row = good_one(poison.topic, 2 * number + neighbour)
            good[poison.topic].append(row)
            pipeline.send(poison.topic, value, key, [("trace", b"\xff")] if number % 3 else (), partition=place)
            if not neighbour:
                future = pipeline.send(
                    poison.topic, poison.value, poison.key, poison.headers, poison.timestamp_ms, partition=place
                )
                sent[name] = poison, future
    pipeline.flush()

    with pipeline.consumer(BATCH_SIZE="300") as running:
        pipeline.wait_until_consumed(running)
    assert running.complaints() == []
    assert running.log.count("assigned ") == 1

    found = dead_letters(pipeline)
    for name, (poison, future) in sent.items():
        place = future.get(10)
        reason, key, value, headers, at, detail = found.pop((place.topic, place.partition, place.offset))
        assert (name, reason, detail) == (name, poison.reason, detail)
        assert detail
        assert (key, value) == (poison.key, poison.value), name
        expected = said(poison.headers) if name != "a_header_whose_name_is_no_utf8" else [["na\ufffdme", "eA=="]]
        assert headers == expected, name
        assert round(at.timestamp() * 1000) == place.timestamp, name
    assert not found
    for topic, rows in good.items():
        assert stored_in(pipeline, topic) == sorted(rows)
    deaths = {topic: sum(poison.topic == topic for poison, _ in sent.values()) for topic in CONTRACTS}
    assert pipeline.ledger() == {
        topic: {
            "consumed": len(good[topic]) + deaths[topic],
            "stored": len(good[topic]),
            "duplicates": 0,
            "dead": deaths[topic],
            "gaps": 0,
        }
        for topic in CONTRACTS
    }


def test_nothing_but_poison_does_not_hold_it_up(pipeline: Pipeline) -> None:
    kinds = [poison for poison in POISON.values() if len(poison.value or b"") < 1000 and poison.topic == EVENTS.topic]
    for number in range(5000):
        poison = kinds[number % len(kinds)]
        pipeline.send(poison.topic, poison.value, poison.key, poison.headers, poison.timestamp_ms, number % PARTITIONS)
    pipeline.flush()
    with pipeline.consumer() as running:
        pipeline.wait_until_consumed(running)
        key, value, row = good_one(EVENTS.topic, 1)
        pipeline.send(EVENTS.topic, value, key)
        pipeline.flush()
        pipeline.wait_until_consumed(running)
    assert pipeline.ledger()[EVENTS.topic] == {
        "consumed": 5001, "stored": 1, "duplicates": 0, "dead": 5000, "gaps": 0,
    }  # fmt: skip
    assert pipeline.one("SELECT count(*) FROM dead_letters") == 5000
    assert stored_in(pipeline, EVENTS.topic) == [row]
    assert running.complaints() == []
