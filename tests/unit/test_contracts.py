"""Each rule of the contracts, case by case, and the promise that no bytes whatever crash the decoder."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from contract_cases import (
    ACCEPTED,
    AT,
    AT_MS,
    MISSING,
    REFUSED,
    UUID,
    VALID,
    Accepted,
    Refused,
    encoded,
    key_of,
    record,
)
from contract_strategies import (
    any_json,
    mutated_values,
    near_times,
    storable_json,
    storable_text,
    timestamps,
    valid_records,
)
from contract_strategies import contracts as any_contract
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import contracts
from contracts import CONTRACTS, DEVICES, EVENTS, HEALTH, HOUSEHOLDS, Columns, Contract, InvalidRecord, parse_json

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
REASONS = {
    "bad_extra",
    "bad_json",
    "bad_time",
    "bad_utf8",
    "bad_value",
    "key_mismatch",
    "missing_field",
    "not_an_object",
    "older_than_retention",
    "time_in_future",
    "time_too_early",
    "tombstone",
    "too_large",
    "wrong_type",
}
NOON = "2026-05-04 12:00:00.000000+00"


def decoded(contract: Contract, columns: Columns) -> dict[str, str | None]:
    return dict(zip(contract.columns, columns, strict=True))


def reason_of(contract: Contract, value: bytes | None, key: bytes | None = b"", timestamp_ms: int = AT_MS) -> str:
    with pytest.raises(InvalidRecord) as caught:
        contract.decode(value, key, timestamp_ms)
    assert caught.value.detail
    assert str(caught.value) == f"{caught.value.reason}: {caught.value.detail}"
    return caught.value.reason


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED)
def test_accepts(case: Accepted) -> None:
    said = record(case.contract, case.changes)
    found = decoded(case.contract, case.contract.decode(encoded(said), key_of(case.contract, said), AT_MS))
    assert {name: found[name] for name in case.expected} == case.expected


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refuses(case: Refused) -> None:
    said = record(case.contract, case.changes)
    key = str(said.get(case.contract.key[0])).encode()
    assert reason_of(case.contract, encoded(said), key) == case.reason


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_every_field_lands_in_the_column_of_its_name(contract: Contract) -> None:
    said = VALID[contract.topic]
    found = decoded(contract, contract.decode(encoded(said), key_of(contract, said), AT_MS))
    expected = {
        EVENTS.topic: {"event_ts": "2026-05-04 11:59:30.250000+00"},
        HEALTH.topic: {
            "reported_at": "2026-05-04 11:59:30.000000+00",
            "battery_pct": "87.5",
            "signal_strength_dbm": "-61.0",
            "is_online": "t",
        },
        DEVICES.topic: {
            "installed_at": "2024-02-29 00:00:00.000000+00",
            "updated_at": "2026-05-04 11:00:00.000000+00",
            "deleted_at": None,
        },
        HOUSEHOLDS.topic: {"updated_at": "2026-05-04 11:00:00.000000+00", "deleted_at": None},
    }[contract.topic]
    assert found == {**said, **expected, "extra": None}


def with_length(length: int) -> bytes:
    """A valid event of that many bytes: blanks between tokens are JSON too."""
    value = encoded(VALID[EVENTS.topic])
    return value[:-1] + b" " * (length - len(value)) + b"}"


WRAPPED = encoded(VALID[EVENTS.topic])
BYTES_ACCEPTED = {
    "a_value_of_64_kib": with_length(64 * 1024),
    "blanks_and_newlines_round_the_object": b" \r\n\t" + WRAPPED + b"\n ",
    "names_and_texts_with_json_escapes": WRAPPED.replace(b"event_id", b"\\u0065vent_id").replace(
        b"open", b"\\u006fpen"
    ),
    "a_repeated_key_whose_last_value_is_right": b'{"event_type": "nonsense", ' + WRAPPED[1:],
    "a_surrogate_pair_is_one_character": WRAPPED.replace(b"keypad", b"\\ud83d\\udeaa" * 64),
    "an_unknown_number_that_is_a_double_after_rounding": WRAPPED[:-1] + b', "x": 1e-400}',
}


@pytest.mark.parametrize("value", BYTES_ACCEPTED.values(), ids=BYTES_ACCEPTED)
def test_accepts_the_bytes(value: bytes) -> None:
    found = decoded(EVENTS, EVENTS.decode(value, b"lock-1", AT_MS))
    assert (found["event_id"], found["event_type"]) == (UUID, "open")


def unknown(text: bytes) -> bytes:
    return WRAPPED[:-1] + b', "x": ' + text + b"}"


BYTES_REFUSED = {
    "a_value_of_64_kib_and_a_byte": (with_length(64 * 1024 + 1), "too_large"),
    "a_large_value_that_is_no_json": (b"\xff" * (64 * 1024 + 1), "too_large"),
    "an_empty_value": (b"", "bad_json"),
    "a_blank_value": (b" ", "bad_json"),
    "a_byte_order_mark": (b"\xef\xbb\xbf" + WRAPPED, "bad_json"),
    "a_byte_order_mark_after_a_blank": (b" \xef\xbb\xbf" + WRAPPED, "bad_json"),
    "utf_16": (WRAPPED.decode().encode("utf-16"), "bad_utf8"),
    "latin_1": (WRAPPED.replace(b"keypad", b"t\xfcr"), "bad_utf8"),
    "a_surrogate_in_utf_8": (WRAPPED.replace(b"keypad", b"\xed\xa0\x80"), "bad_utf8"),
    "an_overlong_nul": (WRAPPED.replace(b"keypad", b"\xc0\x80"), "bad_utf8"),
    "a_cut_character": (WRAPPED.replace(b"keypad", b"\xf0\x9f\x9a"), "bad_utf8"),
    "bad_utf_8_in_an_unknown_field": (unknown(b'"\xff"'), "bad_utf8"),
    "bad_utf_8_in_a_name": (WRAPPED.replace(b"trigger_source", b"trigger\xff"), "bad_utf8"),
    "a_lone_high_surrogate": (WRAPPED.replace(b"keypad", b"\\ud800"), "bad_json"),
    "a_lone_low_surrogate": (WRAPPED.replace(b"keypad", b"\\udc00"), "bad_json"),
    "a_high_surrogate_before_a_letter": (WRAPPED.replace(b"keypad", b"\\ud800\\u0041"), "bad_json"),
    "two_high_surrogates": (WRAPPED.replace(b"keypad", b"\\ud800\\ud800"), "bad_json"),
    "a_lone_surrogate_in_an_unknown_field": (unknown(b'"\\ud800"'), "bad_json"),
    "a_lone_surrogate_in_an_unknown_name": (unknown(b'{"\\udfff": 1}'), "bad_json"),
    "a_raw_nul_in_a_text": (WRAPPED.replace(b"keypad", b"key\0pad"), "bad_json"),
    "a_raw_newline_in_a_text": (WRAPPED.replace(b"keypad", b"key\npad"), "bad_json"),
    "a_nul_after_the_object": (WRAPPED + b"\0", "bad_json"),
    "an_escaped_nul_in_a_known_text": (WRAPPED.replace(b"keypad", b"key\\u0000pad"), "bad_value"),
    "an_escaped_nul_in_an_unknown_text": (unknown(b'"\\u0000"'), "bad_extra"),
    "an_escaped_nul_in_an_unknown_name": (unknown(b'{"\\u0000": 1}'), "bad_extra"),
    "a_known_name_with_a_nul_is_an_unknown_one": (WRAPPED[:-1] + b', "event_id\\u0000": 1}', "bad_extra"),
    "nan": (unknown(b"NaN"), "bad_json"),
    "infinity": (unknown(b"Infinity"), "bad_json"),
    "minus_infinity": (unknown(b"-Infinity"), "bad_json"),
    "a_float_that_overflows_a_double": (unknown(b"1e400"), "bad_json"),
    "an_integer_of_310_digits": (unknown(b"1" + b"0" * 309), "bad_extra"),
    "an_integer_of_60_000_digits": (unknown(b"9" * 60_000), "bad_json"),
    "an_id_of_5_000_digits": (WRAPPED.replace(f'"{UUID}"'.encode(), b"9" * 5_000), "bad_json"),
    "a_number_with_a_leading_zero": (unknown(b"01"), "bad_json"),
    "a_number_with_a_plus": (unknown(b"+1"), "bad_json"),
    "a_number_in_hexadecimal": (unknown(b"0x1F"), "bad_json"),
    "trailing_garbage": (WRAPPED + b"x", "bad_json"),
    "two_objects_on_a_line": (WRAPPED + WRAPPED, "bad_json"),
    "two_objects_on_two_lines": (WRAPPED + b"\n" + WRAPPED, "bad_json"),
    "a_comma_before_the_brace": (WRAPPED[:-1] + b",}", "bad_json"),
    "a_comment": (WRAPPED + b"// fine", "bad_json"),
    "single_quotes": (WRAPPED.replace(b'"', b"'"), "bad_json"),
    "a_cut_object": (WRAPPED[:-1], "bad_json"),
    "the_word_null": (b"null", "not_an_object"),
    "the_word_true": (b"true", "not_an_object"),
    "a_number": (b"17", "not_an_object"),
    "a_float": (b"1.5", "not_an_object"),
    "a_text": (b'"open"', "not_an_object"),
    "an_array_of_events": (b"[" + WRAPPED + b"]", "not_an_object"),
    "an_object_in_a_text": (json.dumps(WRAPPED.decode()).encode(), "not_an_object"),
    "an_empty_object": (b"{}", "missing_field"),
    "brackets_beyond_any_stack": (b"[" * 60_000, "bad_json"),
    "objects_beyond_any_stack": (unknown(b'{"a":' * 10_000 + b"1" + b"}" * 10_000), "bad_json"),
    "a_repeated_key_whose_last_value_is_wrong": (WRAPPED[:-1] + b', "event_type": "nonsense"}', "bad_value"),
    "a_repeated_key_whose_last_value_is_null": (WRAPPED[:-1] + b', "event_type": null}', "missing_field"),
    "avro_with_a_registry_header": (b"\0\0\0\0\x01" + WRAPPED, "bad_json"),
    "a_tombstone": (None, "tombstone"),
}


@pytest.mark.parametrize(("value", "reason"), BYTES_REFUSED.values(), ids=BYTES_REFUSED)
def test_refuses_the_bytes(value: bytes | None, reason: str) -> None:
    assert reason_of(EVENTS, value, b"lock-1") == reason


def test_a_tombstone_on_health_is_invalid() -> None:
    assert reason_of(HEALTH, None, b"lock-1") == "tombstone"


def test_of_a_repeated_key_the_last_counts_in_extra_too() -> None:
    value = unknown(b'{"a": 1, "a": 2}')[:-1] + b', "y": 1, "y": 2}'
    assert EVENTS.decode(value, None, AT_MS)[-1] == '{"x":{"a":2},"y":2}'


def test_a_refusal_names_the_field() -> None:
    with pytest.raises(InvalidRecord, match=r"^bad_value: battery_pct must lie between 0 and 100$"):
        HEALTH.from_object(record(HEALTH, {"battery_pct": 101}), AT)


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (b"\xef\xbb\xbf" + WRAPPED, "starts with a byte-order mark"),
        (WRAPPED.replace(b"keypad", b"\xff"), f"byte {WRAPPED.index(b'keypad')} is not UTF-8"),
        (
            WRAPPED.replace(b'"lock-1"', b"1.0"),
            "device_id must be a string or an integer, found a floating-point number",
        ),
        (WRAPPED.replace(b'"lock-1"', b"[]"), "device_id must be a string, found an array"),
        (with_length(65537), "65537 bytes; the limit is 65536"),
    ],
    ids=["a_byte_order_mark", "bad_utf_8", "a_float_for_an_id", "a_wrong_type", "too_large"],
)
def test_a_detail_tells_a_person_what_is_wrong(value: bytes, detail: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        EVENTS.decode(value, None, AT_MS)
    assert caught.value.detail == detail


@pytest.mark.parametrize("key", [None, b"", b"lock-2", b"\xff", b"lock-1 "])
@pytest.mark.parametrize("contract", [EVENTS, HEALTH], ids=lambda contract: contract.topic)
def test_on_events_and_health_the_value_counts_and_not_the_key(contract: Contract, key: bytes | None) -> None:
    columns = contract.decode(encoded(VALID[contract.topic]), key, AT_MS)
    assert decoded(contract, columns)["device_id"] == "lock-1"


@pytest.mark.parametrize("key", [None, b"", b"other", b"\xff", b"lock-1 ", b"LOCK-1", b'"lock-1"', b"home-1\0"])
@pytest.mark.parametrize("contract", [DEVICES, HOUSEHOLDS], ids=lambda contract: contract.topic)
def test_on_a_compacted_topic_a_key_that_differs_is_invalid(contract: Contract, key: bytes | None) -> None:
    assert reason_of(contract, encoded(VALID[contract.topic]), key) == "key_mismatch"


@pytest.mark.parametrize("contract", [DEVICES, HOUSEHOLDS], ids=lambda contract: contract.topic)
@pytest.mark.parametrize("key", ["home-1", "7", "x" * 64, "🚪" * 64])
def test_a_tombstone_deletes_at_its_kafka_timestamp(contract: Contract, key: str) -> None:
    found = decoded(contract, contract.decode(None, key.encode(), AT_MS))
    assert {name: text for name, text in found.items() if text is not None} == {
        contract.key[0]: key,
        "updated_at": NOON,
        "deleted_at": NOON,
    }


@pytest.mark.parametrize(
    "key",
    [None, b"", b" home", b"home\n", b"x" * 65, b"a\0b", b"\xff", b"\xed\xa0\x80"],
    ids=lambda key: f"{key!a}"[:20],
)
@pytest.mark.parametrize("contract", [DEVICES, HOUSEHOLDS], ids=lambda contract: contract.topic)
def test_a_tombstone_whose_key_is_no_id_is_invalid(contract: Contract, key: bytes | None) -> None:
    assert reason_of(contract, None, key) == "key_mismatch"


@pytest.mark.parametrize("contract", [DEVICES, HOUSEHOLDS], ids=lambda contract: contract.topic)
def test_a_kafka_timestamp_before_2000_cannot_stand_for_updated_at(contract: Contract) -> None:
    said = record(contract, {"updated_at": MISSING, "installed_at": MISSING})
    assert reason_of(contract, encoded(said), key_of(contract, said), timestamp_ms=0) == "time_too_early"
    assert reason_of(contract, None, key_of(contract, said), timestamp_ms=0) == "time_too_early"


@pytest.mark.parametrize(
    ("timestamp_ms", "expected"),
    [(AT_MS + 1, "2026-05-04 12:00:00.001000+00"), (253_370_764_799_999, "9998-12-31 23:59:59.999000+00")],
    ids=["a_millisecond_is_kept", "the_last_instant_of_9998_is_a_time"],
)
def test_a_kafka_timestamp_is_taken_to_the_millisecond(timestamp_ms: int, expected: str) -> None:
    assert decoded(HOUSEHOLDS, HOUSEHOLDS.decode(None, b"home-1", timestamp_ms))["updated_at"] == expected


@pytest.mark.parametrize(
    "timestamp_ms",
    [-1, -(2**63), 253_370_764_800_000, 253_402_300_799_999, 253_402_300_800_000, 1_777_888_800_000_000, 2**63 - 1],
)
def test_a_kafka_timestamp_that_is_nonsense_stands_for_now(timestamp_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", AT.timestamp)
    on_time = encoded(record(EVENTS, {"event_ts": "2026-05-04T12:05:00Z"}))
    assert EVENTS.decode(on_time, None, timestamp_ms)
    ahead = encoded(record(EVENTS, {"event_ts": "2026-05-04T12:05:00.000001Z"}))
    assert reason_of(EVENTS, ahead, None, timestamp_ms) == "time_in_future"
    assert decoded(DEVICES, DEVICES.decode(None, b"lock-1", timestamp_ms))["deleted_at"] == NOON


# What a CSV file can bring and JSON cannot
FROM_A_FILE = {
    "nan_as_a_reading": (HEALTH, {"battery_pct": math.nan}, "bad_value"),
    "infinity_as_a_reading": (HEALTH, {"signal_strength_dbm": -math.inf}, "bad_value"),
    "nan_as_an_id": (EVENTS, {"event_id": math.nan}, "wrong_type"),
    "nan_in_an_unknown_field": (EVENTS, {"x": [math.nan]}, "bad_extra"),
    "infinity_in_an_unknown_field": (EVENTS, {"x": {"y": math.inf}}, "bad_extra"),
    "a_lone_surrogate_in_an_event_id": (EVENTS, {"event_id": "\udcff"}, "bad_value"),
    "a_lone_surrogate_in_a_device_id": (DEVICES, {"device_id": "a\ud800"}, "bad_value"),
    "a_lone_surrogate_in_an_open_field": (HOUSEHOLDS, {"region": "\udfff"}, "bad_value"),
    "a_lone_surrogate_in_an_unknown_field": (EVENTS, {"x": ["\udcff"]}, "bad_extra"),
    "a_lone_surrogate_in_an_unknown_name": (EVENTS, {"\udcff": 1}, "bad_extra"),
}


@pytest.mark.parametrize(("contract", "changes", "reason"), FROM_A_FILE.values(), ids=FROM_A_FILE)
def test_refuses_the_object(contract: Contract, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        contract.from_object(record(contract, changes), AT)
    assert caught.value.reason == reason


def test_the_clock_limits_a_file_as_the_kafka_timestamp_does_a_record() -> None:
    at = datetime(2026, 5, 4, 11, 54, 30, 249_999, tzinfo=UTC)
    with pytest.raises(InvalidRecord, match="time_in_future"):
        EVENTS.from_object(VALID[EVENTS.topic], at)
    assert EVENTS.from_object(VALID[EVENTS.topic], at.replace(microsecond=250_000))


def test_from_object_leaves_the_object_as_it_was() -> None:
    said = {**VALID[DEVICES.topic], "x": 1}
    before = dict(said)
    DEVICES.from_object(said, AT)
    assert said == before


def outcome(decode: Callable[[], Columns]) -> Columns | InvalidRecord:
    """The columns, or why there are none; any other exception is a fault and fails the test."""
    try:
        return decode()
    except InvalidRecord as error:
        return error


def checked(contract: Contract, value: bytes | None, key: bytes | None, timestamp_ms: int) -> Columns:
    """decode's columns, or its reason and detail; a text that a log or a table could not take fails here."""
    result = outcome(lambda: contract.decode(value, key, timestamp_ms))
    if isinstance(result, InvalidRecord):
        assert result.reason in REASONS
        assert result.detail
        result = [result.reason, result.detail]
    else:
        assert len(result) == len(contract.columns)
    for text in result:
        assert text is None or "\0" not in text
        assert text is None or len(text.encode()) <= 16 * 1024
    return result


@QUICK
@given(any_contract, st.none() | st.binary(max_size=300), st.none() | st.binary(max_size=70), timestamps)
@example(EVENTS, b"\xef\xbb\xbf{}", None, -1)
@example(DEVICES, None, b"lock-1", 253_402_300_799_999)
def test_no_bytes_crash_the_decoder(
    contract: Contract, value: bytes | None, key: bytes | None, timestamp_ms: int
) -> None:
    checked(contract, value, key, timestamp_ms)


@QUICK
@given(any_contract, any_json, st.binary(max_size=70), timestamps)
def test_no_json_crashes_the_decoder(contract: Contract, said: Any, key: bytes, timestamp_ms: int) -> None:
    for value in (encoded(said), json.dumps(said).encode()):
        checked(contract, value, key, timestamp_ms)


@QUICK
@given(any_contract, any_json)
def test_no_object_crashes_the_contract(contract: Contract, said: Any) -> None:
    for found in (said, {**VALID[contract.topic], "x": said}):
        result = outcome(partial(contract.from_object, found, AT))
        if isinstance(result, InvalidRecord):
            assert result.reason in REASONS
        else:
            assert "\0" not in "".join(text for text in result if text).encode().decode()


@settings(QUICK, max_examples=300)
@given(mutated_values(), timestamps)
def test_no_mutation_of_a_valid_record_crashes_the_decoder(mutated: tuple[Contract, bytes], timestamp_ms: int) -> None:
    contract, value = mutated
    for key in (b"lock-1", b"home-1"):
        checked(contract, value, key, timestamp_ms)


@QUICK
@given(st.text(max_size=40) | near_times())
def test_a_time_is_what_python_reads_too(text: str) -> None:
    result = outcome(lambda: EVENTS.from_object(record(EVENTS, {"event_ts": text}), AT))
    if isinstance(result, InvalidRecord):
        assert result.reason in {"bad_time", "time_too_early", "time_in_future"}
        return
    read = datetime.fromisoformat(text)
    read = read.replace(tzinfo=read.tzinfo or UTC).astimezone(UTC)
    assert decoded(EVENTS, result)["event_ts"] == read.strftime("%Y-%m-%d %H:%M:%S.%f+00")


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
@QUICK
@given(st.data())
def test_a_valid_record_decodes_and_always_to_the_same(contract: Contract, data: st.DataObject) -> None:
    said = data.draw(valid_records(contract))
    key = key_of(contract, said)
    columns = contract.decode(encoded(said), key, AT_MS)
    assert columns == contract.decode(json.dumps(said, indent=1).encode(), key, AT_MS)
    assert columns == checked(contract, encoded(said), key, AT_MS)
    required = {field.name for field in contract.fields if field.required}
    assert {name for name, text in decoded(contract, columns).items() if text is None}.isdisjoint(required)


@QUICK
@given(st.dictionaries(storable_text.filter(lambda name: name not in EVENTS.field_names), storable_json, max_size=4))
def test_unknown_fields_come_back_as_they_went_in(fields: dict[str, Any]) -> None:
    extra = EVENTS.decode(encoded({**VALID[EVENTS.topic], **fields}), None, AT_MS)[-1]
    assert (json.loads(extra) if extra else {}) == fields


@pytest.mark.parametrize("key", [b"lock-1", b"x", None])
def test_decode_is_deterministic(key: bytes | None) -> None:
    for value in [value for value, _ in BYTES_REFUSED.values()] + list(BYTES_ACCEPTED.values()):
        first = checked(EVENTS, value, key, AT_MS)
        assert checked(EVENTS, value, key, AT_MS) == first


def test_every_reason_is_seen_in_the_tables() -> None:
    seen = {case.reason for case in REFUSED.values()} | {reason for _, reason in BYTES_REFUSED.values()}
    source = set(re.findall(r'InvalidRecord\(\s*"(\w+)"', Path(contracts.__file__).read_text()))
    assert seen | {"key_mismatch", "older_than_retention"} == source == REASONS


def test_parse_json_takes_what_is_no_record() -> None:
    assert parse_json(b'[1, "a", null]') == [1, "a", None]
