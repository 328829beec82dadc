"""hypothesis strategies: any JSON value, each contract's valid records, and valid records with a fault put in."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

from contract_cases import AT, MISSING, VALID, iso
from hypothesis import strategies as st

from contracts import CONTRACTS, EARLIEST, EVENT_TYPES, Contract, time_zones

# Characters that JSON, PostgreSQL's COPY and jsonb each treat in their own way, more often than chance has them
_NASTY = st.sampled_from("\\\"'\t\n\r\b\x01\x1f\x7f\x85\xa0\u2028\ufeff\ufffd\uffff\U0001f6aa\U0010ffffé{}[],:0 ")
_CHARACTER = st.characters(exclude_categories=["Cs"], exclude_characters="\0") | _NASTY
storable_text = st.text(_CHARACTER, max_size=40)
any_text = st.text(st.characters() | st.sampled_from("\0\ud800\udfff"), max_size=20)
contracts = st.sampled_from(list(CONTRACTS.values()))
timestamps = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([-1, 0, 253_370_764_799_999, 253_370_764_800_000, 253_402_300_799_999, 253_402_300_800_000]),
    st.integers(1_500_000_000_000, 2_000_000_000_000),
)


def json_values(text: st.SearchStrategy[str], numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | numbers | text,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=8,
    )


finite_numbers = st.integers(-(10**308), 10**308) | st.floats(allow_nan=False, allow_infinity=False)
any_json = json_values(any_text, st.integers(-(10**400), 10**400) | st.floats())
storable_json = json_values(storable_text, finite_numbers)

_short = st.text(_CHARACTER, min_size=1, max_size=64)
_integer = st.integers(1 - 10**63, 10**64 - 1)
_identifier = _integer | _short.filter(lambda text: text == text.strip())
_open = st.none() | st.just(MISSING) | st.text(_CHARACTER, max_size=200)


@st.composite
def _time(draw: st.DrawFn) -> str:
    at = draw(st.datetimes(EARLIEST.replace(tzinfo=None), AT.replace(tzinfo=None)))
    minutes = draw(st.none() | st.integers(-1439, 1439))
    if minutes is None:
        text = at.isoformat() + draw(st.sampled_from(["Z", ""]))
    else:
        zone = timezone(timedelta(minutes=minutes))
        text = at.replace(tzinfo=timezone.utc).astimezone(zone).isoformat()  # noqa: UP017
    return text.replace("T", draw(st.sampled_from("T ")))


def _reading(low: int, high: int) -> st.SearchStrategy[Any]:
    return st.none() | st.just(MISSING) | st.integers(low, high) | st.floats(low, high)


_optional_time = st.none() | st.just(MISSING) | _time()
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "event_id": st.uuids().map(str) | st.uuids().map(lambda value: str(value).upper()) | _short | _integer,
    "device_id": _identifier,
    "household_id": _identifier,
    "event_ts": _time(),
    "reported_at": _time(),
    "event_type": st.sampled_from(list(EVENT_TYPES)),
    "trigger_source": _short,
    "battery_pct": _reading(0, 100),
    "signal_strength_dbm": _reading(-150, 0),
    "is_online": st.booleans(),
    "device_type": _open,
    "model": _open,
    "firmware_version": _open,
    "region": _open,
    "installed_at": _optional_time | st.dates(EARLIEST.date(), AT.date()).map(str),
    "updated_at": _optional_time,
    "timezone": st.none() | st.just(MISSING) | st.sampled_from(sorted(time_zones())),
}


@st.composite
def valid_records(draw: st.DrawFn, contract: Contract) -> dict[str, Any]:
    """A record that the contract must take, its unknown fields as nasty as they may be."""
    fields = {field.name: draw(_FIELDS[field.name]) for field in contract.fields}
    unknown = st.dictionaries(storable_text.filter(lambda name: name not in fields), storable_json, max_size=3)
    record = {name: value for name, value in fields.items() if value is not MISSING} | draw(unknown)
    return {name: record[name] for name in draw(st.permutations(list(record)))}


@st.composite
def mutated_values(draw: st.DrawFn) -> tuple[Contract, bytes]:
    """A valid record's bytes with a field replaced by anything, or with bytes cut out, put in or turned over."""
    contract = draw(contracts)
    record = dict(VALID[contract.topic])
    if draw(st.booleans()):
        record[draw(st.sampled_from(sorted(record)) | any_text)] = draw(any_json)
    value = json.dumps(record, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        start = draw(st.integers(0, len(value)))
        value = value[:start] + draw(st.binary(max_size=8)) + value[start + draw(st.integers(0, 8)) :]
    return contract, value


def near_times() -> st.SearchStrategy[str]:
    """Texts that look like times and often are none."""
    part = st.integers(0, 99).map(lambda number: f"{number:02}")
    year = st.integers(0, 9999).map(lambda number: f"{number:04}")
    offset = st.sampled_from(["", "Z", "z"]) | st.tuples(st.sampled_from("+-"), part, part).map(
        lambda parts: f"{parts[0]}{parts[1]}:{parts[2]}"
    )
    built = st.tuples(year, part, part, st.sampled_from("T t"), part, part, part, offset).map(
        lambda p: f"{p[0]}-{p[1]}-{p[2]}{p[3]}{p[4]}:{p[5]}:{p[6]}{p[7]}"
    )
    edges: list[datetime] = [EARLIEST, AT, datetime.max.replace(tzinfo=EARLIEST.tzinfo)]
    return built | st.sampled_from([iso(at) for at in edges])
