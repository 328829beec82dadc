"""The shortcut for plain records gives what the contract gives: the same rows, the same dead, in the same order.

Two texts of a column are the same row if PostgreSQL reads the same value in them: a time is an instant, a UUID has no
case, a reading is a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from contract_cases import ACCEPTED, AT, AT_MS, MISSING, REFUSED, UUID, VALID, encoded, iso, key_of, record
from contract_strategies import mutated_values, near_times, timestamps, valid_records
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import row_text
from contracts import CONTRACTS, DEVICES, EVENTS, HEALTH, HOUSEHOLDS, MAX_VALUE_BYTES, Contract, InvalidRecord
from record import Record
from row_text import Encoded, copy_line, encode

PARTITION = 3
QUICK = (EVENTS, HEALTH)  # the contracts that have a shortcut
WHEN = {EVENTS.topic: "event_ts", HEALTH.topic: "reported_at"}
MEANING: dict[str, Callable[[str], Any]] = {
    "event_id": str.lower,
    "event_ts": datetime.fromisoformat,
    "reported_at": datetime.fromisoformat,
    "battery_pct": lambda text: repr(float(text)),  # -0.0 equals 0.0 and is another text
    "signal_strength_dbm": lambda text: repr(float(text)),
}
quick = pytest.mark.parametrize("contract", QUICK, ids=lambda contract: contract.table)


def kafka_record(contract: Contract, changes: dict[str, Any], offset: int = 0, **others: Any) -> Record:
    said = record(contract, changes)
    key = key_of(contract, {**VALID[contract.topic], **said})
    return Record(**{"offset": offset, "timestamp": AT_MS, "key": key, "value": encoded(said), "headers": (), **others})


def fields_of(line: str) -> list[str | None]:
    """A line of COPY's text format taken apart, as PostgreSQL's documentation describes it."""
    assert re.fullmatch(r"[^\n\r]*\n", line), "a row is one line"
    meaning = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    return [
        None if part == "\\N" else re.sub(r"\\(.)", lambda match: meaning[match[1]], part)
        for part in line[:-1].split("\t")
    ]


def meaning(contract: Contract, fields: list[str | None]) -> list[Any]:
    names = [*contract.columns, "kafka_partition", "kafka_offset"]
    return [None if text is None else MEANING.get(name, str)(text) for name, text in zip(names, fields, strict=True)]


def assert_agreement(contract: Contract, records: list[Record], oldest: datetime | None = None) -> Encoded:
    """Holds one poll against the definition; what stands for `now` is the same for both."""
    rows, dead, mismatched = [], [], set()
    with patch("contracts.time.time", return_value=AT.timestamp()):
        found = encode(contract, PARTITION, [tuple(each) for each in records], oldest)  # as they come, without names
        for each in records:
            try:
                columns = contract.decode(each.value, each.key, each.timestamp, oldest)
            except InvalidRecord as error:
                dead.append((each, error.reason, error.detail))
                continue
            rows.append((each, meaning(contract, [*columns, str(PARTITION), str(each.offset)])))
            if contract in QUICK and each.key != (columns[contract.columns.index("device_id")] or "").encode():
                mismatched.add(each.offset)
    assert [(each, error.reason, error.detail) for each, error in found.dead] == dead
    assert found.records == [each for each, _ in rows]
    assert [meaning(contract, fields_of(line)) for line in found.lines] == [row for _, row in rows]
    assert found.mismatched == mismatched
    return found


def among_plain_ones(contract: Contract, odd: list[Record]) -> list[Record]:
    """500 plain records with the odd ones spread over them, numbered anew."""
    plain = [kafka_record(contract, {"device_id": f"lock-{number}"}) for number in range(500)]
    step = 500 // (len(odd) + 1) + 1
    for number, each in enumerate(odd):
        plain.insert((number + 1) * step + number, each)
    return [each._replace(offset=offset) for offset, each in enumerate(plain)]


@quick
def test_plain_records_take_the_shortcut(contract: Contract) -> None:
    records = among_plain_ones(contract, [])
    with patch.object(Contract, "decode", side_effect=AssertionError("the long way")):
        found = encode(contract, PARTITION, [tuple(each) for each in records])
    assert len(found.lines) == 500
    assert_agreement(contract, records)


@quick
def test_one_odd_record_sends_no_other_the_long_way(contract: Contract) -> None:
    records = among_plain_ones(contract, [kafka_record(contract, {"device_id": "front door"})])
    with patch.object(Contract, "decode", autospec=True, side_effect=Contract.decode) as decode:
        encode(contract, PARTITION, records)
    assert [call.args[2] for call in decode.call_args_list] == [b"front door"]


@pytest.mark.parametrize("name", [name for name, case in ACCEPTED.items() if case.contract in QUICK])
def test_what_the_contract_takes_is_the_same_row(name: str) -> None:
    case = ACCEPTED[name]
    found = assert_agreement(case.contract, [kafka_record(case.contract, case.changes)])
    assert not found.dead


@pytest.mark.parametrize("name", [name for name, case in REFUSED.items() if case.contract in QUICK])
def test_what_the_contract_refuses_is_dead_for_the_same_reason(name: str) -> None:
    case = REFUSED[name]
    found = assert_agreement(case.contract, [kafka_record(case.contract, case.changes)])
    assert [error.reason for _, error in found.dead] == [case.reason]


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_all_odd_records_in_one_poll(contract: Contract) -> None:
    odd = [case.changes for case in ACCEPTED.values() if case.contract is contract]
    odd += [case.changes for case in REFUSED.values() if case.contract is contract]
    assert_agreement(contract, [kafka_record(contract, changes, at) for at, changes in enumerate(odd)])


_FORGED_ID = "0196a1b2-ffff-7e5f-8a9b-0c1d2e3f4a5b"
_LOOKS_PLAIN: dict[str, tuple[Contract, dict[str, Any]]] = {
    "february_30": (EVENTS, {"event_ts": "2026-02-30T00:00:00Z"}),
    "february_29_of_a_leap_year": (EVENTS, {"event_ts": "2024-02-29T00:00:00Z"}),
    "february_29_of_a_common_year": (HEALTH, {"reported_at": "2025-02-29T00:00:00Z"}),
    "april_31": (EVENTS, {"event_ts": "2026-04-31T00:00:00Z"}),
    "month_13": (EVENTS, {"event_ts": "2026-13-01T00:00:00Z"}),
    "hour_24": (EVENTS, {"event_ts": "2026-05-04T24:00:00Z"}),
    "second_60": (HEALTH, {"reported_at": "2016-12-31T23:59:60Z"}),
    "seven_digits_of_a_second": (EVENTS, {"event_ts": "2026-05-04T11:00:00.1234567Z"}),
    "a_newline_behind_a_device_id": (EVENTS, {"device_id": "lock-1\n"}),
    "a_newline_behind_a_time": (HEALTH, {"reported_at": "2026-05-04T11:00:00Z\n"}),
    "a_newline_behind_a_trigger_source": (EVENTS, {"trigger_source": "app\n"}),
    "digits_of_another_script": (EVENTS, {"event_ts": "2026-05-04T11:00:0０Z"}),
    "letters_of_full_width": (EVENTS, {"event_type": "ｏｐｅｎ"}),
    "a_nul_in_a_device_id": (EVENTS, {"device_id": "lock\0"}),
    "a_tab_in_a_device_id": (HEALTH, {"device_id": "lock\t1"}),
    "a_backslash_in_a_device_id": (EVENTS, {"device_id": "lock\\1"}),
    "a_backslash_n_in_a_device_id": (EVENTS, {"device_id": "\\N"}),
    "the_end_of_a_copy_as_a_device_id": (HEALTH, {"device_id": "\\."}),
    "a_carriage_return_in_a_trigger_source": (EVENTS, {"trigger_source": "a\rb"}),
    "65_characters": (EVENTS, {"trigger_source": "x" * 65}),
    "an_alias": (EVENTS, {"event_type": "command_failed"}),
    "a_uuid_without_dashes": (EVENTS, {"event_id": UUID.replace("-", "")}),
    "a_uuid_in_capitals": (EVENTS, {"event_id": UUID.upper()}),
    "a_reading_of_minus_zero": (HEALTH, {"signal_strength_dbm": -0.0}),
    "a_reading_in_scientific_notation": (HEALTH, {"battery_pct": 1e-7}),
    "a_reading_too_small_for_its_column": (HEALTH, {"battery_pct": 5e-324}),
    "a_reading_of_three_digits_out_of_range": (HEALTH, {"battery_pct": 101}),
    "a_reading_as_text": (HEALTH, {"battery_pct": "50"}),
    "no_reading": (HEALTH, {"battery_pct": None, "signal_strength_dbm": MISSING}),
    "an_unknown_field": (HEALTH, {"extra": 1}),
    "a_column_of_kafkas": (EVENTS, {"kafka_offset": 1}),
}


@pytest.mark.parametrize(("contract", "changes"), _LOOKS_PLAIN.values(), ids=_LOOKS_PLAIN)
def test_what_only_looks_plain_is_seen_through(contract: Contract, changes: dict[str, Any]) -> None:
    odd = kafka_record(contract, changes)
    assert_agreement(contract, [odd])
    assert_agreement(contract, among_plain_ones(contract, [odd, odd._replace(key=b"another")]))


@pytest.mark.parametrize(
    ("contract", "changes"),
    [
        (EVENTS, {"trigger_source": f"app\t\\N\t0\t1\n{_FORGED_ID}\tforged\t2026-05-04T11:00:00Z\topen\tapp"}),
        (EVENTS, {"device_id": f"a\t2026-05-04T11:00:00Z\topen\tapp\t\\N\t0\t1\n{_FORGED_ID}\tforged"}),
        (HEALTH, {"device_id": "a\t2026-05-04T11:00:00Z\t1.0\t-1.0\tt\t\\N\t0\t1\nforged"}),
    ],
    ids=["behind_its_last_field", "within_its_device", "as_its_device"],
)
def test_a_value_cannot_forge_a_second_row(contract: Contract, changes: dict[str, Any]) -> None:
    forger = kafka_record(contract, changes)
    alone = assert_agreement(contract, [forger])
    assert len(alone.lines) + len(alone.dead) == 1
    # an undecodable record leaves an empty line, which must not make room for the forged one
    crowd = among_plain_ones(contract, [forger, forger._replace(value=b"{"), forger])
    found = assert_agreement(contract, crowd)
    assert len(found.lines) + len(found.dead) == 503


_RAW = {
    "bytes_that_are_no_json": b"{",
    "two_objects": b'{"a":1}{"a":1}',
    "a_byte_order_mark": b"\xef\xbb\xbf" + encoded(VALID[EVENTS.topic]),
    "bad_utf8_within_a_text": encoded(VALID[EVENTS.topic]).replace(b"keypad", b"\xff"),
    "bad_utf8_behind_the_object": encoded(VALID[EVENTS.topic]) + b"\xff",
    "a_lone_surrogate": encoded(VALID[EVENTS.topic]).replace(b"keypad", b"\\ud800"),
    "a_surrogate_in_bytes": encoded(VALID[EVENTS.topic]).replace(b"keypad", b"\xed\xa0\x80"),
    "an_escaped_plain_letter": encoded(VALID[EVENTS.topic]).replace(b"keypad", b"k\\u0065ypad"),
    "a_repeated_field_of_which_the_last_is_bad": encoded(VALID[EVENTS.topic])[:-1] + b',"event_type":"ajar"}',
    "a_repeated_field_of_which_the_first_is_bad": b'{"event_type":"ajar",' + encoded(VALID[EVENTS.topic])[1:],
    "a_repeated_field_of_two_good_values": b'{"event_type":"fail",' + encoded(VALID[EVENTS.topic])[1:],
    "blanks_around": b" \n\t" + encoded(VALID[EVENTS.topic]) + b"\r\n ",
    "an_array": b"[]",
    "nothing": b"",
    "deep_nesting": b'{"x":' * 5000 + b"1" + b"}" * 5000,
    "a_tombstone": None,
    "exactly_64_kib": encoded(VALID[EVENTS.topic]).ljust(MAX_VALUE_BYTES),
    "64_kib_and_a_blank": encoded(VALID[EVENTS.topic]).ljust(MAX_VALUE_BYTES + 1),
}


@pytest.mark.parametrize("value", _RAW.values(), ids=_RAW)
def test_bytes_that_a_dictionary_cannot_say(value: bytes | None) -> None:
    odd = kafka_record(EVENTS, {}, value=value)
    assert_agreement(EVENTS, [odd])
    assert_agreement(EVENTS, among_plain_ones(EVENTS, [odd]))


@quick
def test_the_size_is_bounded_in_bytes_with_all_its_blanks(contract: Contract) -> None:
    value = encoded(VALID[contract.topic])
    fits = kafka_record(contract, {}, 0, value=value.ljust(MAX_VALUE_BYTES))
    found = assert_agreement(contract, [fits, fits._replace(offset=1, value=value.ljust(MAX_VALUE_BYTES + 1))])
    assert [(each.offset, error.reason) for each, error in found.dead] == [(1, "too_large")]


@quick
def test_each_record_is_held_to_its_own_timestamp(contract: Contract) -> None:
    day = 86_400_000
    stamps = [
        AT_MS,
        AT_MS - day,
        AT_MS + day,
        0,
        -1,
        -(2**63),
        3_999_999_999_999,
        4_000_000_000_000,
        253_402_300_800_000,
    ]
    times = [iso(AT + timedelta(minutes=minutes)) for minutes in (-3000, -1000, 0, 4, 5, 6, 1000, 3000)]
    times += ["2000-01-01T00:00:00Z", "2028-01-01T00:00:00Z", "2096-10-02T07:11:39Z", "2099-12-31T23:59:59.999999Z"]
    polls = [
        kafka_record(contract, {WHEN[contract.topic]: said}, at * 100 + number, timestamp=stamp)
        for at, stamp in enumerate(stamps)
        for number, said in enumerate(times)
    ]
    for each in polls:
        assert_agreement(contract, [each])
    assert {error.reason for _, error in assert_agreement(contract, polls).dead} == {"time_in_future"}
    for stamp in stamps[1:]:
        assert_agreement(contract, [each for each in polls if each.timestamp in (AT_MS, stamp)])


@quick
@pytest.mark.parametrize(
    ("said", "good", "bad"),
    [
        ("2026-05-04T22:00:00Z", AT_MS + 86_400_000, AT_MS),
        ("2026-05-04T22:00:00Z", AT_MS + 86_400_000, 0),
        # what is no timestamp stands for now, not for what its neighbour has
        ("2028-01-01T00:00:00Z", 1_900_000_000_000, 253_402_300_800_000),
        ("2028-01-01T00:00:00Z", 1_900_000_000_000, -1),
    ],
    ids=["a_day_apart", "in_1970", "beyond_the_year_9998", "none"],
)
def test_a_neighbours_timestamp_excuses_nobody(contract: Contract, said: str, good: int, bad: int) -> None:
    one = kafka_record(contract, {WHEN[contract.topic]: said}, 0, timestamp=good)
    other = one._replace(offset=1, timestamp=bad)
    for poll in ([one, other], [other, one]):
        assert [each.offset for each, _ in assert_agreement(contract, poll).dead] == [1]


@quick
@pytest.mark.parametrize("microseconds", [-1, 0, 1])
def test_the_five_minutes_end_at_the_microsecond(contract: Contract, microseconds: int) -> None:
    for milliseconds in (0, 1, 999):
        limit = AT + timedelta(minutes=5, milliseconds=milliseconds, microseconds=microseconds)
        late = kafka_record(contract, {WHEN[contract.topic]: iso(limit)}, timestamp=AT_MS + milliseconds)
        assert len(assert_agreement(contract, [late]).dead) == (microseconds > 0)


@quick
@pytest.mark.parametrize("microseconds", [-1, 0, 1, 500_000])
def test_the_retention_ends_at_the_microsecond(contract: Contract, microseconds: int) -> None:
    oldest = AT - timedelta(days=90) + timedelta(microseconds=microseconds)
    around = (-1_000_000, -999_999, -500_000, -1, 0, 1, 499_999, 500_000, 999_999, 1_000_000)
    times = [AT - timedelta(days=90) + timedelta(microseconds=each) for each in around]
    polls = [kafka_record(contract, {WHEN[contract.topic]: iso(at)}, number) for number, at in enumerate(times)]
    too_old = [number for number, at in enumerate(times) if at < oldest]
    for poll in (polls, among_plain_ones(contract, polls), *([each] for each in polls)):
        found = assert_agreement(contract, poll, oldest)
        assert {error.reason for _, error in found.dead} <= {"older_than_retention"}
        assert len(found.dead) == len(too_old) or len(poll) == 1
    [*_, (_, error)] = assert_agreement(contract, polls, oldest).dead
    assert error.detail.startswith(f"{WHEN[contract.topic]} lies before 2026-02-0")
    assert error.detail.endswith(" UTC, the limit that RETENTION_DAYS sets")
    offset = kafka_record(contract, {WHEN[contract.topic]: "2026-02-03 12:30:00+02:00"})  # goes the long way
    assert len(assert_agreement(contract, [offset], AT - timedelta(days=90)).dead) == 1


@pytest.mark.parametrize("contract", [DEVICES, HOUSEHOLDS], ids=lambda contract: contract.table)
def test_entries_of_the_registry_are_of_any_age(contract: Contract) -> None:
    assert not assert_agreement(contract, [kafka_record(contract, {"updated_at": "2001-01-01T00:00:00Z"})], AT).dead


@quick
def test_what_is_young_enough_takes_the_shortcut(contract: Contract) -> None:
    records = among_plain_ones(contract, [])
    with patch.object(Contract, "decode", side_effect=AssertionError("the long way")):
        assert len(encode(contract, PARTITION, records, AT - timedelta(days=1)).lines) == 500


@quick
@pytest.mark.parametrize("device", ["lock-1", "front door", 7], ids=["plain", "odd", "integer"])
def test_a_foreign_key_is_counted_once_and_only_for_rows(contract: Contract, device: str | int) -> None:
    right = kafka_record(contract, {"device_id": device}, 0)
    others = [right._replace(offset=at, key=key) for at, key in enumerate((b"x", None, b"", b"\xff"), 1)]
    dead = kafka_record(contract, {WHEN[contract.topic]: "2026-02-30T00:00:00Z"}, 9, key=b"x")
    assert assert_agreement(contract, [right, *others, dead]).mismatched == {1, 2, 3, 4}


@pytest.mark.parametrize("text", ["\\", "\t", "\n", "\r", "\\N", "\\.", "a\\tb", "", "é\\\n\t", "\x0b\x1f\x85\u2028"])
def test_a_line_gives_back_the_texts_it_was_made_of(text: str) -> None:
    line = copy_line([text, None, text], None, 5)
    assert fields_of(line) == [text, None, text, None, "5"]


@st.composite
def polls(draw: st.DrawFn) -> tuple[Contract, list[Record]]:
    """One poll: plain records, valid ones, ones with a fault, in any order, with any keys and timestamps."""
    contract = draw(st.sampled_from(list(CONTRACTS.values())))
    plain = st.just(encoded(VALID[contract.topic]))
    valid = valid_records(contract).map(encoded)
    faulty = mutated_values().filter(lambda pair: pair[0] is contract).map(lambda pair: pair[1])
    timed = near_times().map(lambda said: encoded(record(contract, {WHEN.get(contract.topic, "updated_at"): said})))
    values = draw(st.lists(st.one_of(plain, valid, timed, faulty, st.none()), min_size=1, max_size=8))
    keys = st.sampled_from([b"lock-1", b"home-1", b"", b"\xff", None])
    stamps = st.just(AT_MS) | timestamps
    return contract, [Record(at, draw(stamps), draw(keys), value, ()) for at, value in enumerate(values)]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(polls())
@example((DEVICES, [Record(0, -1, b"lock-1", None, ())]))
def test_any_poll_whatever(poll: tuple[Contract, list[Record]]) -> None:
    assert_agreement(*poll)
    assert_agreement(*poll, AT - timedelta(minutes=1))


_NEARLY_PLAIN = {
    "event_id": st.uuids().map(str) | st.from_regex(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{11,13}\n?"),
    "device_id": st.text("aZ09_.:@/+- \t\n\\é", min_size=1, max_size=66),
    "trigger_source": st.text("aZ09_.:@/+- \t\n\\é", min_size=1, max_size=66),
    "event_type": st.sampled_from(["open", "close", "fail", "command_failed", "Open", "open\n"]),
    "event_ts": near_times(),
    "reported_at": near_times(),
    "battery_pct": st.none() | st.floats(-1, 101) | st.integers(-1, 101) | st.booleans(),
    "signal_strength_dbm": st.none() | st.floats(-151, 1) | st.integers(-151, 1),
    "is_online": st.booleans() | st.sampled_from([0, 1, "t"]),
}


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_records_on_both_sides_of_being_plain(data: st.DataObject) -> None:
    contract = data.draw(st.sampled_from(QUICK))
    records = []
    for at in range(data.draw(st.integers(1, 5))):
        names = data.draw(st.sets(st.sampled_from(sorted(VALID[contract.topic])), max_size=2))
        changes = {name: data.draw(_NEARLY_PLAIN[name], label=name) for name in sorted(names)}
        records.append(Record(at, AT_MS, b"lock-1", encoded(record(contract, changes)), ()))
    oldest = data.draw(st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
    assert_agreement(contract, records, oldest)


@settings(max_examples=300)
@given(st.integers(0, row_text.UNUSABLE_FROM_MS), st.integers(0, row_text.UNUSABLE_FROM_MS))
def test_the_bound_sorts_as_time_does(one: int, other: int) -> None:
    lower, higher = sorted((one, other))
    if higher < row_text.UNUSABLE_FROM_MS:
        assert row_text._latest(lower) <= row_text._latest(higher)
