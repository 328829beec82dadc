"""One table of records for the contracts' tests: what is said, what comes of it, and an id that reads as a sentence.

The decoder's tests, the schemas' and the database's all walk this table, so that the three cannot drift apart.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from contracts import DEVICES, EVENTS, HEALTH, HOUSEHOLDS, Contract

AT = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)  # the Kafka timestamp of every record in the table
AT_MS = int(AT.timestamp() * 1000)
UUID = "0196a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
MISSING = object()

VALID: dict[str, dict[str, Any]] = {
    EVENTS.topic: {
        "event_id": UUID,
        "device_id": "lock-1",
        "event_ts": "2026-05-04T11:59:30.25Z",
        "event_type": "open",
        "trigger_source": "keypad",
    },
    HEALTH.topic: {
        "device_id": "lock-1",
        "reported_at": "2026-05-04T11:59:30Z",
        "battery_pct": 87.5,
        "signal_strength_dbm": -61,
        "is_online": True,
    },
    DEVICES.topic: {
        "device_id": "lock-1",
        "household_id": "home-1",
        "device_type": "lock",
        "model": "Bolt 3",
        "firmware_version": "3.1.0",
        "installed_at": "2024-02-29",
        "updated_at": "2026-05-04T11:00:00Z",
    },
    HOUSEHOLDS.topic: {
        "household_id": "home-1",
        "region": "Bavaria",
        "timezone": "Europe/Berlin",
        "updated_at": "2026-05-04T11:00:00Z",
    },
}


def record(contract: Contract, changes: dict[str, Any]) -> dict[str, Any]:
    """A valid record with some fields changed, or left out (MISSING)."""
    return {name: value for name, value in {**VALID[contract.topic], **changes}.items() if value is not MISSING}


def encoded(record: Any) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")


def key_of(contract: Contract, record: dict[str, Any]) -> bytes:
    return str(record[contract.key[0] if contract.compacted else "device_id"]).encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Accepted:
    """`expected` are the columns to look at; the others are not this case's business."""

    contract: Contract
    changes: dict[str, Any]
    expected: dict[str, str | None]


@dataclass(frozen=True)
class Refused:
    contract: Contract
    changes: dict[str, Any]
    reason: str
    in_schema: bool = True  # False: no JSON Schema can say it, or ours does not try


def uuid5(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, text))


def nested(levels: int, inner: Any = 1) -> Any:
    """An object in an object …: `levels` of them."""
    for _ in range(levels):
        inner = {"a": inner}
    return inner


def iso(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


MICROSECOND = timedelta(microseconds=1)
FIVE_MINUTES = timedelta(minutes=5)
EXTRA_OVERHEAD = len('{"x":""}')


def event(field_name: str, value: Any, expected: str | None) -> Accepted:
    return Accepted(EVENTS, {field_name: value}, {field_name: expected})


def _accepted_ids() -> dict[str, Accepted]:
    return {
        "a_canonical_event_id_stays_as_it_is": event("event_id", UUID, UUID),
        "an_event_id_in_capitals_is_the_same_event": event("event_id", UUID.upper(), UUID),
        "an_event_id_in_mixed_case_is_the_same_event": event("event_id", UUID[:20] + UUID[20:].upper(), UUID),
        "a_uuid_of_any_version_is_canonical": event(
            "event_id", "0" * 8 + "-0000-0000-0000-" + "0" * 12, str(uuid.UUID(int=0))
        ),
        "a_uuid_without_dashes_is_other_text": event("event_id", UUID.replace("-", ""), uuid5(UUID.replace("-", ""))),
        "a_uuid_in_braces_is_other_text": event("event_id", "{" + UUID + "}", uuid5("{" + UUID + "}")),
        "a_uuid_after_a_blank_is_other_text": event("event_id", " " + UUID, uuid5(" " + UUID)),
        "a_uuid_before_a_newline_is_other_text": event("event_id", UUID + "\n", uuid5(UUID + "\n")),
        "a_uuid_with_a_foreign_digit_is_other_text": event("event_id", UUID[:-1] + "٣", uuid5(UUID[:-1] + "٣")),
        "an_event_id_of_one_character_is_other_text": event("event_id", "x", uuid5("x")),
        "an_event_id_of_64_characters_is_other_text": event("event_id", "x" * 64, uuid5("x" * 64)),
        "an_event_id_of_64_emoji_is_64_characters": event("event_id", "🔑" * 64, uuid5("🔑" * 64)),
        "an_integer_event_id_is_taken_as_its_text": event("event_id", 42, uuid5("42")),
        "a_negative_integer_event_id_is_taken_as_its_text": event("event_id", -42, uuid5("-42")),
        "an_integer_event_id_and_its_text_are_one_event": event("event_id", "42", uuid5("42")),
        "an_event_id_beyond_64_bits_keeps_its_digits": event("event_id", 2**64 + 1, uuid5(str(2**64 + 1))),
        "an_integer_event_id_of_64_digits_fits": event("event_id", 10**64 - 1, uuid5("9" * 64)),
        "a_device_id_of_one_character_fits": event("device_id", "d", "d"),
        "a_device_id_of_64_characters_fits": event("device_id", "d" * 64, "d" * 64),
        "a_device_id_of_64_emoji_fits": event("device_id", "🚪" * 64, "🚪" * 64),
        "a_device_id_may_have_blanks_within": event("device_id", "front door\tleft", "front door\tleft"),
        "an_integer_device_id_is_taken_as_its_text": event("device_id", 7, "7"),
        "a_device_id_of_minus_63_digits_fits": event("device_id", 1 - 10**63, "-" + "9" * 63),
        "a_device_id_keeps_its_case_and_its_accents": event("device_id", "Tür-É\\1", "Tür-É\\1"),
        "an_integer_household_id_is_taken_as_its_text": Accepted(DEVICES, {"household_id": 12}, {"household_id": "12"}),
        "an_integer_key_of_a_household_matches_its_text": Accepted(
            HOUSEHOLDS, {"household_id": 12}, {"household_id": "12"}
        ),
    }


def _time_case(said: str, expected: str) -> Accepted:
    return event("event_ts", said, expected)


def _accepted_times() -> dict[str, Accepted]:
    noon = "2026-05-04 10:00:00.000000+00"
    return {
        "a_time_in_utc": _time_case("2026-05-04T10:00:00Z", noon),
        "a_blank_may_stand_for_the_T": _time_case("2026-05-04 10:00:00Z", noon),
        "a_time_without_an_offset_is_utc": _time_case("2026-05-04T10:00:00", noon),
        "a_time_with_a_blank_and_without_an_offset_is_utc": _time_case("2026-05-04 10:00:00", noon),
        "an_offset_is_taken_off": _time_case("2026-05-04T12:00:00+02:00", noon),
        "a_negative_offset_is_added": _time_case("2026-05-04T04:30:00-05:30", noon),
        "an_offset_of_minus_zero_is_utc": _time_case("2026-05-04T10:00:00-00:00", noon),
        "the_largest_offset_is_23_59": _time_case("2026-05-05T09:59:00+23:59", noon),
        "the_smallest_offset_is_minus_23_59": _time_case("2026-05-03T10:01:00-23:59", noon),
        "a_fraction_of_one_digit": _time_case("2026-05-04T10:00:00.5Z", "2026-05-04 10:00:00.500000+00"),
        "a_fraction_of_six_digits": _time_case("2026-05-04T10:00:00.123456Z", "2026-05-04 10:00:00.123456+00"),
        "a_fraction_is_cut_to_the_microsecond_not_rounded": _time_case(
            "2026-05-04T10:00:00.123456999Z", "2026-05-04 10:00:00.123456+00"
        ),
        "a_fraction_of_a_thousand_digits_is_cut": _time_case(
            "2026-05-04T10:00:00." + "9" * 1000 + "Z", "2026-05-04 10:00:00.999999+00"
        ),
        "a_leap_day": _time_case("2024-02-29T23:59:59Z", "2024-02-29 23:59:59.000000+00"),
        "the_first_instant_of_2000": _time_case("2000-01-01T00:00:00Z", "2000-01-01 00:00:00.000000+00"),
        "1999_by_its_clock_but_2000_in_utc": _time_case("1999-12-31T23:00:00-01:00", "2000-01-01 00:00:00.000000+00"),
        "five_minutes_ahead_is_a_clock_that_runs_fast": _time_case(
            iso(AT + FIVE_MINUTES), "2026-05-04 12:05:00.000000+00"
        ),
        "five_minutes_ahead_by_another_offset": _time_case(
            "2026-05-04T14:05:00+02:00", "2026-05-04 12:05:00.000000+00"
        ),
        "a_health_report_five_minutes_ahead": Accepted(
            HEALTH, {"reported_at": iso(AT + FIVE_MINUTES)}, {"reported_at": "2026-05-04 12:05:00.000000+00"}
        ),
        "an_installation_on_a_bare_date_is_its_midnight": Accepted(
            DEVICES, {"installed_at": "2024-02-29"}, {"installed_at": "2024-02-29 00:00:00.000000+00"}
        ),
        "an_installation_at_a_date_time": Accepted(
            DEVICES, {"installed_at": "2024-02-29 08:00:00+01:00"}, {"installed_at": "2024-02-29 07:00:00.000000+00"}
        ),
        "an_absent_updated_at_is_the_kafka_timestamp": Accepted(
            DEVICES, {"updated_at": MISSING}, {"updated_at": "2026-05-04 12:00:00.000000+00"}
        ),
        "a_null_updated_at_is_the_kafka_timestamp": Accepted(
            HOUSEHOLDS, {"updated_at": None}, {"updated_at": "2026-05-04 12:00:00.000000+00"}
        ),
    }


def _health_case(field_name: str, value: Any, expected: str | None) -> Accepted:
    return Accepted(HEALTH, {field_name: value}, {field_name: expected})


def _accepted_values() -> dict[str, Accepted]:
    cases = {
        "an_unseen_trigger_source_is_stored_as_it_is": event("trigger_source", "Voice (β)", "Voice (β)"),
        "a_trigger_source_of_one_character": event("trigger_source", "x", "x"),
        "a_trigger_source_of_64_characters": event("trigger_source", "x" * 64, "x" * 64),
        "a_trigger_source_may_be_a_blank": event("trigger_source", " ", " "),
        "open_is_an_event_type": event("event_type", "open", "open"),
        "close_is_an_event_type": event("event_type", "close", "close"),
        "fail_is_an_event_type": event("event_type", "fail", "fail"),
        "command_failed_means_fail": event("event_type", "command_failed", "fail"),
        "battery_0": _health_case("battery_pct", 0, "0.0"),
        "battery_100": _health_case("battery_pct", 100, "100.0"),
        "battery_as_a_whole_float": _health_case("battery_pct", 100.0, "100.0"),
        "battery_minus_zero_is_zero": _health_case("battery_pct", -0.0, "0.0"),
        "battery_too_small_for_a_real_is_zero": _health_case("battery_pct", 5e-324, "0.0"),
        "battery_absent_is_null": _health_case("battery_pct", MISSING, None),
        "battery_null_is_null": _health_case("battery_pct", None, None),
        "signal_minus_150": _health_case("signal_strength_dbm", -150, "-150.0"),
        "signal_0": _health_case("signal_strength_dbm", 0, "0.0"),
        "signal_minus_zero_is_zero": _health_case("signal_strength_dbm", -0.0, "0.0"),
        "signal_as_a_whole_float": _health_case("signal_strength_dbm", -61.0, "-61.0"),
        "signal_absent_is_null": _health_case("signal_strength_dbm", MISSING, None),
        "signal_null_is_null": _health_case("signal_strength_dbm", None, None),
        "online_true": _health_case("is_online", True, "t"),
        "online_false": _health_case("is_online", False, "f"),
        "an_absent_installed_at_is_null": Accepted(DEVICES, {"installed_at": MISSING}, {"installed_at": None}),
        "an_absent_timezone_is_null": Accepted(HOUSEHOLDS, {"timezone": MISSING}, {"timezone": None}),
        "a_null_timezone_is_null": Accepted(HOUSEHOLDS, {"timezone": None}, {"timezone": None}),
        "a_live_registry_entry_is_not_deleted": Accepted(DEVICES, {}, {"deleted_at": None}),
    }
    for zone in ("UTC", "Etc/GMT+12", "America/Argentina/Buenos_Aires", "PST8PDT"):
        cases[f"{zone}_is_in_the_iana_list"] = Accepted(HOUSEHOLDS, {"timezone": zone}, {"timezone": zone})
    open_fields = [(DEVICES, "device_type"), (DEVICES, "model"), (DEVICES, "firmware_version"), (HOUSEHOLDS, "region")]
    for contract, name in open_fields:
        for words, value, expected in [
            ("of_200_characters_fits", "x" * 200, "x" * 200),
            ("may_be_empty", "", ""),
            ("may_be_absent", MISSING, None),
            ("may_be_null", None, None),
            ("is_an_open_vocabulary", "Ünseen 🚪", "Ünseen 🚪"),
        ]:
            cases[f"{name}_{words}"] = Accepted(contract, {name: value}, {name: expected})
    return cases


def _extra_case(fields: dict[str, Any], expected: str | None) -> Accepted:
    return Accepted(EVENTS, fields, {"extra": expected})


def _accepted_extra() -> dict[str, Accepted]:
    largest = "x" * (16 * 1024 - EXTRA_OVERHEAD)
    # é is two bytes, so 16 KiB are half as many characters
    accents = "é" * ((16 * 1024 - EXTRA_OVERHEAD) // 2)
    return {
        "no_unknown_field_leaves_extra_null": _extra_case({}, None),
        "an_unknown_field_is_kept": _extra_case({"x": [1, "é", None, True, {}]}, '{"x":[1,"é",null,true,{}]}'),
        "an_unknown_null_is_kept": _extra_case({"x": None}, '{"x":null}'),
        "an_unknown_field_called_extra_is_kept_within": _extra_case({"extra": {"a": 1}}, '{"extra":{"a":1}}'),
        "an_unknown_field_called_like_a_kafka_column_is_kept": _extra_case({"kafka_offset": 1}, '{"kafka_offset":1}'),
        "an_unknown_field_without_a_name_is_kept": _extra_case({"": 1}, '{"":1}'),
        "a_deleted_at_in_a_value_deletes_nothing": Accepted(
            DEVICES, {"deleted_at": "2026-05-04"}, {"deleted_at": None, "extra": '{"deleted_at":"2026-05-04"}'}
        ),
        "a_field_in_another_case_is_unknown": _extra_case({"Event_Type": "x"}, '{"Event_Type":"x"}'),
        "extra_of_16_kib_fits": _extra_case({"x": largest}, f'{{"x":"{largest}"}}'),
        "extra_of_16_kib_of_accents_fits": _extra_case({"x": accents}, f'{{"x":"{accents}"}}'),
        "extra_of_64_levels_fits": _extra_case({"x": nested(63)}, '{"x":' + '{"a":' * 63 + "1" + "}" * 64),
        "extra_of_64_levels_of_arrays_fits": _extra_case(
            {"x": json.loads("[" * 63 + "]" * 63)}, '{"x":' + "[" * 63 + "]" * 63 + "}"
        ),
        "a_number_in_extra_keeps_a_doubles_precision": _extra_case(
            {"x": 0.1234567890123456}, '{"x":0.1234567890123456}'
        ),
        "an_integer_in_extra_keeps_all_its_digits": _extra_case({"x": 2**70 + 1}, f'{{"x":{2**70 + 1}}}'),
        "the_largest_double_fits_in_extra": _extra_case({"x": 1.7976931348623157e308}, '{"x":1.7976931348623157e+308}'),
        "an_integer_of_308_digits_fits_in_extra": _extra_case({"x": 10**308}, '{"x":' + str(10**308) + "}"),
    }


ACCEPTED = {**_accepted_ids(), **_accepted_times(), **_accepted_values(), **_accepted_extra()}


def _refused_ids() -> dict[str, Refused]:
    cases: dict[str, Refused] = {}
    for contract, name in [
        (EVENTS, "event_id"),
        (EVENTS, "device_id"),
        (HEALTH, "device_id"),
        (DEVICES, "device_id"),
        (DEVICES, "household_id"),
        (HOUSEHOLDS, "household_id"),
    ]:
        place = f"{contract.table}_{name}"
        cases |= {
            f"{place}_empty": Refused(contract, {name: ""}, "bad_value"),
            f"{place}_of_65_characters": Refused(contract, {name: "x" * 65}, "bad_value"),
            f"{place}_as_a_float": Refused(contract, {name: 1.5}, "wrong_type"),
            f"{place}_as_a_whole_float": Refused(contract, {name: 1.0}, "wrong_type", in_schema=False),
            f"{place}_as_an_exponent": Refused(contract, {name: 1e2}, "wrong_type", in_schema=False),
            f"{place}_as_true": Refused(contract, {name: True}, "wrong_type"),
            f"{place}_as_an_array": Refused(contract, {name: [1]}, "wrong_type"),
            f"{place}_as_an_object": Refused(contract, {name: {}}, "wrong_type"),
            f"{place}_with_a_nul": Refused(contract, {name: "a\0b"}, "bad_value"),
            f"{place}_as_an_integer_of_400_digits": Refused(contract, {name: 10**399}, "bad_value"),
            # a schema's limit is a double, and 1e64 is the nearest
            f"{place}_as_an_integer_of_65_digits": Refused(contract, {name: 10**64}, "bad_value", in_schema=False),
            f"{place}_as_twice_that_integer": Refused(contract, {name: 2 * 10**64}, "bad_value"),
            f"{place}_as_twice_that_negative_integer": Refused(contract, {name: -2 * 10**63}, "bad_value"),
            f"{place}_as_minus_64_digits": Refused(contract, {name: -(10**63)}, "bad_value", in_schema=False),
            f"{place}_missing": Refused(contract, {name: MISSING}, "missing_field"),
            f"{place}_null": Refused(contract, {name: None}, "missing_field"),
        }
        if name != "event_id":
            for blank in (" ", "\t", "\n", "\u00a0", "\u3000"):
                words = f"U{ord(blank):04X}"
                # Python's $ also stands before a last newline, where the dialect of JSON Schema's patterns does not
                seen = blank != "\n"
                cases[f"{place}_before_the_blank_{words}"] = Refused(contract, {name: "a" + blank}, "bad_value", seen)
                cases[f"{place}_after_the_blank_{words}"] = Refused(contract, {name: blank + "a"}, "bad_value")
            cases[f"{place}_of_a_blank_alone"] = Refused(contract, {name: " "}, "bad_value")
    return cases


_NO_TIMES = {
    "a_week_date": "2026-W19-1T10:00:00Z",
    "an_ordinal_date": "2026-124T10:00:00Z",
    "a_basic_date": "20260504T100000Z",
    "a_time_without_seconds": "2026-05-04T10:00Z",
    "a_date_alone": "2026-05-04",
    "hour_24": "2026-05-04T24:00:00Z",
    "hour_25": "2026-05-04T25:00:00Z",
    "minute_60": "2026-05-04T10:60:00Z",
    "second_60": "2016-12-31T23:59:60Z",
    "month_13": "2026-13-04T10:00:00Z",
    "month_0": "2026-00-04T10:00:00Z",
    "day_0": "2026-05-00T10:00:00Z",
    "day_32": "2026-05-32T10:00:00Z",
    "a_short_year": "26-05-04T10:00:00Z",
    "a_year_of_five_digits": "12026-05-04T10:00:00Z",
    "a_negative_year": "-2026-05-04T10:00:00Z",
    "a_lower_case_t": "2026-05-04t10:00:00Z",
    "a_lower_case_z": "2026-05-04T10:00:00z",
    "an_offset_without_minutes": "2026-05-04T10:00:00+02",
    "an_offset_without_a_colon": "2026-05-04T10:00:00+0200",
    "an_offset_of_24_hours": "2026-05-04T10:00:00+24:00",
    "an_offset_of_60_minutes": "2026-05-04T10:00:00+01:60",
    "an_offset_after_a_blank": "2026-05-04T10:00:00 +02:00",
    "a_zone_by_name": "2026-05-04T10:00:00 Europe/Berlin",
    "a_fraction_without_digits": "2026-05-04T10:00:00.Z",
    "a_fraction_after_a_comma": "2026-05-04T10:00:00,5Z",
    "two_blanks_for_the_T": "2026-05-04  10:00:00Z",
    "an_underscore_for_the_T": "2026-05-04_10:00:00Z",
    "a_blank_before": " 2026-05-04T10:00:00Z",
    "a_blank_behind": "2026-05-04T10:00:00Z ",
    "a_nul_behind": "2026-05-04T10:00:00Z\0",
    "arabic_digits": "٢٠٢٦-05-04T10:00:00Z",
    "full_width_digits": "2026-05-04T10:00:0０Z",
    "seconds_since_1970_as_text": "1777888800",
    "now": "now",
    "infinity": "infinity",
    "an_empty_text": "",
}
# What is shaped like a time but is none; a pattern cannot count days, and Python's $ lets a last newline pass
_NO_TIMES_BEYOND_A_SCHEMA = {
    "february_30": "2026-02-30T10:00:00Z",
    "february_29_of_a_common_year": "2025-02-29T10:00:00Z",
    "april_31": "2026-04-31T10:00:00Z",
    "the_year_0": "0000-01-01T00:00:00Z",
    "an_instant_before_the_year_1": "0001-01-01T00:00:00+01:00",
    "an_instant_after_the_year_9999": "9999-12-31T23:59:59-01:00",
    "a_newline_behind": "2026-05-04T10:00:00Z\n",
}


def _refused_times() -> dict[str, Refused]:
    cases: dict[str, Refused] = {}
    for contract, name in [
        (EVENTS, "event_ts"),
        (HEALTH, "reported_at"),
        (DEVICES, "installed_at"),
        (DEVICES, "updated_at"),
        (HOUSEHOLDS, "updated_at"),
    ]:
        place = f"{contract.table}_{name}"
        for table, in_schema in ((_NO_TIMES, True), (_NO_TIMES_BEYOND_A_SCHEMA, False)):
            for words, text in table.items():
                if not (name == "installed_at" and words == "a_date_alone"):
                    cases[f"{place}_is_no_time_{words}"] = Refused(contract, {name: text}, "bad_time", in_schema)
        cases |= {
            f"{place}_before_2000": Refused(contract, {name: "1999-12-31T23:59:59.999999Z"}, "time_too_early", False),
            f"{place}_2000_by_its_clock_but_1999_in_utc": Refused(
                contract, {name: "2000-01-01T00:59:59+01:00"}, "time_too_early", False
            ),
            f"{place}_five_minutes_and_a_microsecond_ahead": Refused(
                contract, {name: iso(AT + FIVE_MINUTES + MICROSECOND)}, "time_in_future", False
            ),
            f"{place}_a_year_ahead": Refused(contract, {name: "2027-05-04T12:00:00Z"}, "time_in_future", False),
            f"{place}_as_a_number": Refused(contract, {name: 1777888800}, "wrong_type"),
            f"{place}_as_true": Refused(contract, {name: True}, "wrong_type"),
            f"{place}_as_an_array": Refused(contract, {name: [2026, 5, 4]}, "wrong_type"),
        }
    return cases | {
        "event_ts_missing": Refused(EVENTS, {"event_ts": MISSING}, "missing_field"),
        "event_ts_null": Refused(EVENTS, {"event_ts": None}, "missing_field"),
        "reported_at_missing": Refused(HEALTH, {"reported_at": MISSING}, "missing_field"),
        "an_installation_on_february_30": Refused(DEVICES, {"installed_at": "2024-02-30"}, "bad_time", False),
        "an_installation_before_2000": Refused(DEVICES, {"installed_at": "1999-12-31"}, "time_too_early", False),
        "an_installation_tomorrow": Refused(DEVICES, {"installed_at": "2026-05-05"}, "time_in_future", False),
        "an_installation_in_a_month": Refused(DEVICES, {"installed_at": "2024-02"}, "bad_time"),
        "an_entry_updated_on_a_bare_date": Refused(DEVICES, {"updated_at": "2024-02-29"}, "bad_time"),
    }


def _refused_values() -> dict[str, Refused]:
    cases: dict[str, Refused] = {}
    for name, low, high in (("battery_pct", 0, 100), ("signal_strength_dbm", -150, 0)):
        for words, value in {
            "just_below_its_range": low - 1e-9,
            "just_above_its_range": high + 1e-9,
            "one_above_its_range": high + 1,
            "one_below_its_range": low - 1,
            "of_400_digits": 10**399,
            "of_minus_400_digits": -(10**399),
        }.items():
            cases[f"{name}_{words}"] = Refused(HEALTH, {name: value}, "bad_value")
        for words, value in {
            "as_text": "50",
            "as_empty_text": "",
            "as_true": True,
            "as_false": False,
            "as_an_array": [],
            "as_an_object": {},
        }.items():
            cases[f"{name}_{words}"] = Refused(HEALTH, {name: value}, "wrong_type")
    for name in ("trigger_source", "event_type", "is_online"):
        contract = HEALTH if name == "is_online" else EVENTS
        cases[f"{name}_missing"] = Refused(contract, {name: MISSING}, "missing_field")
        cases[f"{name}_null"] = Refused(contract, {name: None}, "missing_field")
    for value in ("Open", "OPEN", " open", "opened", "", "open\0"):
        cases[f"event_type_{value!a}_is_not_in_the_closed_list"] = Refused(EVENTS, {"event_type": value}, "bad_value")
    for value in (1, True, [], {}, 1.5):
        cases[f"event_type_{value!a}_is_no_text"] = Refused(EVENTS, {"event_type": value}, "wrong_type")
        cases[f"trigger_source_{value!a}_is_no_text"] = Refused(EVENTS, {"trigger_source": value}, "wrong_type")
    for value in (0, 1, "true", "t", [], {}):
        cases[f"is_online_{value!a}_is_no_boolean"] = Refused(HEALTH, {"is_online": value}, "wrong_type")
    cases |= {
        "trigger_source_empty": Refused(EVENTS, {"trigger_source": ""}, "bad_value"),
        "trigger_source_of_65_characters": Refused(EVENTS, {"trigger_source": "x" * 65}, "bad_value"),
        "trigger_source_with_a_nul": Refused(EVENTS, {"trigger_source": "\0"}, "bad_value"),
    }
    for contract, name in [
        (DEVICES, "device_type"),
        (DEVICES, "model"),
        (DEVICES, "firmware_version"),
        (HOUSEHOLDS, "region"),
    ]:
        cases |= {
            f"{name}_of_201_characters": Refused(contract, {name: "x" * 201}, "bad_value"),
            f"{name}_with_a_nul": Refused(contract, {name: "x\0"}, "bad_value"),
            f"{name}_as_a_number": Refused(contract, {name: 3}, "wrong_type"),
            f"{name}_as_true": Refused(contract, {name: True}, "wrong_type"),
        }
    for zone in ("../etc/passwd", "/UTC", "UTC\0", "+02:00", ""):
        cases[f"timezone_{zone!a}_is_not_even_shaped_like_one"] = Refused(HOUSEHOLDS, {"timezone": zone}, "bad_value")
    for zone in ("europe/berlin", "Europe", "Europe/Atlantis", "CEST", "localtime", "UTC+2", "PST8PDT-bogus"):
        cases[f"timezone_{zone}_is_not_in_the_iana_list"] = Refused(HOUSEHOLDS, {"timezone": zone}, "bad_value", False)
    cases["timezone_as_a_number"] = Refused(HOUSEHOLDS, {"timezone": 2}, "wrong_type")
    return cases


def _refused_extra() -> dict[str, Refused]:
    return {
        "extra_of_16_kib_and_a_byte": Refused(
            EVENTS, {"x": "x" * (16 * 1024 - EXTRA_OVERHEAD + 1)}, "bad_extra", False
        ),
        "extra_of_16_ki_characters_in_more_bytes": Refused(EVENTS, {"x": "é" * 8200}, "bad_extra", False),
        "extra_of_65_levels": Refused(EVENTS, {"x": nested(64)}, "bad_extra", False),
        "extra_of_65_levels_with_nothing_inside": Refused(EVENTS, {"x": nested(63, {})}, "bad_extra", False),
        "extra_of_65_levels_of_arrays": Refused(EVENTS, {"x": json.loads("[" * 64 + "]" * 64)}, "bad_extra", False),
        "extra_of_401_levels": Refused(EVENTS, {"x": json.loads("[" * 400 + "]" * 400)}, "bad_extra", False),
        "a_nul_in_an_unknown_field": Refused(EVENTS, {"x": "a\0"}, "bad_extra", False),
        "a_nul_deep_in_an_unknown_field": Refused(EVENTS, {"x": [{"y": ["a\0"]}]}, "bad_extra", False),
        "a_nul_in_the_name_of_an_unknown_field": Refused(EVENTS, {"x\0": 1}, "bad_extra"),
        "a_nul_in_a_name_within_an_unknown_field": Refused(EVENTS, {"x": {"y": [{"\0": 1}]}}, "bad_extra", False),
        "an_integer_of_400_digits_in_an_unknown_field": Refused(EVENTS, {"x": 10**399}, "bad_extra", False),
        "an_integer_of_400_digits_deep_in_an_unknown_field": Refused(
            HOUSEHOLDS, {"x": {"y": [-(10**399)]}}, "bad_extra", False
        ),
    }


REFUSED = {**_refused_ids(), **_refused_times(), **_refused_values(), **_refused_extra()}
