"""The four topics' contracts, declared once: the decoder, the tables' columns and the JSON Schemas come from here.

`decode` turns a record's bytes into the texts of its columns or raises InvalidRecord, whatever the bytes are. It is the
definition; sink.py has a shortcut for the common shape of a record that a test holds equal to it.

    python streaming/contracts.py            writes streaming/schemas/*.json
"""

from __future__ import annotations

import json
import math
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

MAX_VALUE_BYTES = 64 * 1024
MAX_EXTRA_BYTES = 16 * 1024
MAX_EXTRA_DEPTH = 64
MAX_AHEAD = timedelta(minutes=5)  # a device's clock may run this much ahead of the record's Kafka timestamp
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
SCHEMAS = Path(__file__).parent / "schemas"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEVER = datetime(9999, 1, 1, tzinfo=UTC)  # a Kafka timestamp beyond it is nonsense; Python's times end there

Columns = list[str | None]  # one text per column, as PostgreSQL reads it; None is NULL


class InvalidRecord(Exception):
    """The one road to the dead letters: a reason (a short code, to count by) and a detail (a sentence, to read)."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Field:
    """One field: `parse(value, latest)` gives the column's text or raises InvalidRecord; latest bounds times."""

    name: str
    parse: Callable[[Any, datetime], str]
    schema: dict[str, Any]
    description: str
    required: bool = True


@dataclass(frozen=True)
class Contract:
    topic: str
    table: str
    key: tuple[str, ...]  # the table's primary key; its first column is the record's key on a compacted topic
    fields: tuple[Field, ...]
    description: str
    happened_at: str = "updated_at"  # the column that says when
    compacted: bool = False
    of_file: bool = False  # an entry of the registry may say when it was deleted: a file has no tombstones

    @property
    def columns(self) -> list[str]:
        """The table's columns in the order of `decode`'s result."""
        return [field.name for field in self.fields] + (["deleted_at"] if self.compacted else []) + ["extra"]

    @property
    def field_names(self) -> frozenset[str]:
        """What is no unknown field."""
        names = {field.name for field in self.fields}
        return frozenset(names | {"deleted_at"} if self.of_file and self.compacted else names)

    def decode(
        self, value: bytes | None, key: bytes | None, timestamp_ms: int, oldest: datetime | None = None
    ) -> Columns:
        """The columns' texts of one Kafka record.

        timestamp_ms is the record's Kafka timestamp; a negative one (the producer gave none), or one beyond the
        year 9998, stands for now. oldest: what happened before it is refused; the registry's entries never are.
        Raises InvalidRecord and nothing else.
        """
        at = _from_milliseconds(timestamp_ms)
        if value is None:
            if self.compacted:
                return self._tombstone(key, at)
            raise InvalidRecord("tombstone", f"{self.topic} has no deletions, so an empty value says nothing")
        columns = self.from_object(parse_json(value), at)
        if self.compacted and key != (columns[0] or "").encode():
            raise InvalidRecord("key_mismatch", f"the record's key is not its {self.key[0]}")
        if oldest and not self.compacted:
            happened = columns[self.columns.index(self.happened_at)] or ""
            if happened < _time_text(oldest):  # such texts sort as the times do
                limit = f"{oldest:%Y-%m-%d %H:%M:%S} UTC"
                detail = f"{self.happened_at} lies before {limit}, the limit that RETENTION_DAYS sets"
                raise InvalidRecord("older_than_retention", detail)
        return columns

    def from_object(self, record: Any, at: datetime) -> Columns:
        """The columns' texts of one decoded object; `at` stands in for a missing updated_at and bounds the future."""
        if not isinstance(record, dict):
            raise InvalidRecord("not_an_object", f"expected a JSON object, found {_type_name(record)}")
        latest = at + MAX_AHEAD
        deleted_at = record.get("deleted_at") if self.of_file and self.compacted else None
        columns: Columns = []
        for field in self.fields:
            found = record.get(field.name)
            if found is None and field.name == "updated_at":
                found = at.isoformat()
            if found is not None:
                columns.append(_column(field.name, field.parse, found, latest))
            elif field.required and (deleted_at is None or field.name in self.key):
                raise InvalidRecord("missing_field", f"{field.name} is missing")
            else:
                columns.append(None)
        if self.compacted:
            columns.append(None if deleted_at is None else _column("deleted_at", _time, deleted_at, latest))
        unknown = record.keys() - self.field_names
        columns.append(_extra({name: record[name] for name in record if name in unknown}) if unknown else None)
        return columns

    def _tombstone(self, key: bytes | None, at: datetime) -> Columns:
        try:
            name = (key or b"").decode()
            _identifier(name, at)
        except (UnicodeDecodeError, InvalidRecord):
            raise InvalidRecord("key_mismatch", f"a deletion's key must be a {self.key[0]}") from None
        deleted_at = _time(at.isoformat(), at)
        texts = {self.key[0]: name, "updated_at": deleted_at, "deleted_at": deleted_at}
        return [texts.get(column) for column in self.columns]

    def json_schema(self) -> dict[str, Any]:
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.topic,
            "description": self.description,
            "type": "object",
            "properties": {field.name: {**field.schema, "description": field.description} for field in self.fields},
            "required": [field.name for field in self.fields if field.required],
            "propertyNames": {"pattern": f"^{_STORABLE}*$"},
            "additionalProperties": True,
        }


def _column(name: str, parse: Callable[[Any, datetime], str], value: Any, latest: datetime) -> str:
    try:
        return parse(value, latest)
    except InvalidRecord as error:
        raise InvalidRecord(error.reason, f"{name} {error.detail}") from None


def parse_json(value: bytes) -> Any:
    """The decoded JSON value; of a repeated key the last counts. Raises InvalidRecord."""
    if len(value) > MAX_VALUE_BYTES:
        raise InvalidRecord("too_large", f"{len(value)} bytes; the limit is {MAX_VALUE_BYTES}")
    if value.startswith(b"\xef\xbb\xbf"):
        raise InvalidRecord("bad_json", "starts with a byte-order mark")
    try:
        value.decode()  # msgspec alone says of some bad UTF-8 that the JSON is bad
        return msgspec.json.decode(value)
    except UnicodeDecodeError as error:
        raise InvalidRecord("bad_utf8", f"byte {error.start} is not UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRecord("bad_json", str(error)) from None


def _type_name(value: Any) -> str:
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")


_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # PostgreSQL's text and jsonb hold no NUL, UTF-8 no lone surrogate


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRecord("wrong_type", f"must be a string, found {_type_name(value)}")
    return value


def _text(low: int, high: int) -> Callable[[Any, datetime], str]:
    def parse(value: Any, latest: datetime) -> str:
        if not low <= len(_string(value)) <= high:
            raise InvalidRecord("bad_value", f"must have {low} to {high} characters, has {len(value)}")
        if _UNSTORABLE.search(value):
            raise InvalidRecord("bad_value", "contains a NUL character or a lone surrogate")
        return value

    return parse


_short_text = _text(1, 64)
_long_text = _text(0, 200)


def _text_or_integer(value: Any, latest: datetime) -> str:
    if isinstance(value, float):
        raise InvalidRecord("wrong_type", "must be a string or an integer, found a floating-point number")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return _short_text(value, latest)


def _identifier(value: Any, latest: datetime) -> str:
    text = _text_or_integer(value, latest)
    if text != text.strip():
        raise InvalidRecord("bad_value", "starts or ends with a blank")
    return text


_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")


def _event_id(value: Any, latest: datetime) -> str:
    text = _text_or_integer(value, latest)
    return text.lower() if _UUID.fullmatch(text) else str(uuid.uuid5(uuid.NAMESPACE_OID, text))


_DAY = r"([0-9]{4})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_HOUR, _SIXTY = "([01][0-9]|2[0-3])", "([0-5][0-9])"
_DATE = re.compile(_DAY)
_DATE_TIME = re.compile(rf"{_DAY}[T ]{_HOUR}:{_SIXTY}:{_SIXTY}(?:\.([0-9]+))?(?:Z|([+-]){_HOUR}:{_SIXTY})?")


def _time_text(at: datetime) -> str:
    """Of a time in UTC, as a column has it: 2026-05-04 13:20:00.500000+00."""
    return at.isoformat(" ", "microseconds").removesuffix(":00")


def _time(value: Any, latest: datetime) -> str:
    """An RFC 3339 date-time as UTC text, cut to the microsecond."""
    match = _DATE_TIME.fullmatch(_string(value))
    if not match:
        raise InvalidRecord("bad_time", "is not an RFC 3339 date-time (2026-05-04T13:20:00.5Z)")
    *parts, fraction, sign, hours, minutes = match.groups()
    year, month, day, hour, minute, second = map(int, parts)
    microsecond = int((fraction or "0")[:6].ljust(6, "0"))
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    try:
        zone = timezone(-offset if sign == "-" else offset)
        at = datetime(year, month, day, hour, minute, second, microsecond, zone).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRecord("bad_time", f"is no date-time: {error}") from None
    if at < EARLIEST:
        raise InvalidRecord("time_too_early", f"lies before {EARLIEST:%Y-%m-%d}")
    if at > latest:
        raise InvalidRecord("time_in_future", "lies more than 5 minutes after the record was sent, or its file loaded")
    return _time_text(at)


def _time_or_date(value: Any, latest: datetime) -> str:
    if isinstance(value, str) and _DATE.fullmatch(value):
        value += "T00:00:00Z"
    return _time(value, latest)


def _from_milliseconds(milliseconds: int) -> datetime:
    if 0 <= milliseconds < (NEVER - EPOCH) // timedelta(milliseconds=1):
        return EPOCH + timedelta(milliseconds=milliseconds)
    return datetime.fromtimestamp(time.time(), UTC)


def _number(low: float, high: float) -> Callable[[Any, datetime], str]:
    def parse(value: Any, latest: datetime) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRecord("wrong_type", f"must be a number, found {_type_name(value)}")
        if not low <= value <= high:
            raise InvalidRecord("bad_value", f"must lie between {low:g} and {high:g}")
        # PostgreSQL refuses what would underflow in a column of type real, and -0 is nobody's reading
        return repr(float(value) if abs(value) > 1e-30 else 0.0)

    return parse


def _boolean(value: Any, latest: datetime) -> str:
    if not isinstance(value, bool):
        raise InvalidRecord("wrong_type", f"must be true or false, found {_type_name(value)}")
    return "t" if value else "f"


EVENT_TYPES = {"open": "open", "close": "close", "fail": "fail", "command_failed": "fail"}


def _event_type(value: Any, latest: datetime) -> str:
    if _string(value) not in EVENT_TYPES:
        raise InvalidRecord("bad_value", f"must be one of {', '.join(EVENT_TYPES)}")
    return EVENT_TYPES[value]


@cache
def time_zones() -> frozenset[str]:
    """The IANA list as the package tzdata has it, so that the machine's own list makes no difference."""
    return frozenset(resources.files("tzdata").joinpath("zones").read_text(encoding="utf-8").split())


def _time_zone(value: Any, latest: datetime) -> str:
    if _string(value) not in time_zones():
        raise InvalidRecord("bad_value", "is not a time zone of the IANA list")
    return value


def _extra(fields: dict[str, Any]) -> str:
    """The unknown fields as JSON text that PostgreSQL's jsonb takes; every number is within a double's range.

    A level is an object or an array within another; the object of the unknown fields is the first.
    """

    def check(value: Any, level: int) -> None:
        if isinstance(value, dict | list) and level > MAX_EXTRA_DEPTH:
            raise InvalidRecord("bad_extra", f"unknown fields are nested deeper than {MAX_EXTRA_DEPTH} levels")
        if isinstance(value, str) and _UNSTORABLE.search(value):
            raise InvalidRecord("bad_extra", "an unknown field contains a NUL character or a lone surrogate")
        if isinstance(value, int | float):
            try:
                finite = math.isfinite(float(value))
            except OverflowError:
                finite = False
            if not finite:
                raise InvalidRecord("bad_extra", "an unknown field holds a number beyond a double's range")
        for item in value if isinstance(value, list) else (*value, *value.values()) if isinstance(value, dict) else ():
            check(item, level + 1)

    check(fields, 1)
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > MAX_EXTRA_BYTES:
        raise InvalidRecord("bad_extra", f"unknown fields take {len(text.encode())} bytes; limit {MAX_EXTRA_BYTES}")
    return text


# The schemas say what the decoder does as far as a schema can, and never more: `format` would refuse a time with a
# blank for the T or without an offset, and \s is not the same everywhere, so the patterns spell out what they mean.
_STORABLE = r"[^\u0000]"
_NO_BLANK = r"[^\u0000\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_SHORT = {"minLength": 1, "maxLength": 64, "pattern": f"^{_STORABLE}*$"}
_INTEGER = {"minimum": -1e63, "maximum": 1e64}  # 64 characters as decimal text
_EVENT_ID = {"type": ["string", "integer"], **_SHORT, **_INTEGER}
_ID = {**_EVENT_ID, "pattern": f"^{_NO_BLANK}({_STORABLE}*{_NO_BLANK})?$"}
_TIME = {"type": "string", "pattern": f"^{_DATE_TIME.pattern}$"}
_OPTIONAL_TIME = {**_TIME, "type": ["string", "null"]}
_OPEN = {"type": ["string", "null"], "maxLength": 200, "pattern": f"^{_STORABLE}*$"}

EVENTS = Contract(
    "smart-access.events",
    "raw_access_events",
    ("event_id",),
    (
        Field("event_id", _event_id, _EVENT_ID, "UUID (UUIDv7 from the producer); other text maps to a uuid5 of it"),
        Field("device_id", _identifier, _ID, "device that reports, and the record's key"),
        Field("event_ts", _time, _TIME, "when it happened; without an offset it is UTC"),
        Field("event_type", _event_type, {"enum": list(EVENT_TYPES)}, "what happened; command_failed means fail"),
        Field(
            "trigger_source",
            _short_text,
            {"type": "string", **_SHORT},
            "what set it off: app, keypad, schedule …; an open vocabulary",
        ),
    ),
    "An access device opened, closed, or failed to.",
    happened_at="event_ts",
)
HEALTH = Contract(
    "smart-access.health",
    "raw_device_health",
    ("device_id", "reported_at"),
    (
        Field("device_id", _identifier, _ID, "device that reports, and the record's key"),
        Field("reported_at", _time, _TIME, "when it was measured; without an offset it is UTC"),
        Field(
            "battery_pct",
            _number(0, 100),
            {"type": ["number", "null"], "minimum": 0, "maximum": 100},
            "battery charge in percent",
            required=False,
        ),
        Field(
            "signal_strength_dbm",
            _number(-150, 0),
            {"type": ["number", "null"], "minimum": -150, "maximum": 0},
            "received radio signal strength in dBm",
            required=False,
        ),
        Field("is_online", _boolean, {"type": "boolean"}, "whether the device could be reached"),
    ),
    "A device's report of its own health.",
    happened_at="reported_at",
)
DEVICES = Contract(
    "smart-access.devices",
    "raw_devices",
    ("device_id",),
    (
        Field("device_id", _identifier, _ID, "device, and the record's key"),
        Field("household_id", _identifier, _ID, "household that the device belongs to"),
        Field("device_type", _long_text, _OPEN, "lock, garage_door, gate …; an open vocabulary", required=False),
        Field("model", _long_text, _OPEN, "maker's model name", required=False),
        Field("firmware_version", _long_text, _OPEN, "firmware that the device runs", required=False),
        Field(
            "installed_at",
            _time_or_date,
            {**_OPTIONAL_TIME, "pattern": f"^({_DATE.pattern}|{_DATE_TIME.pattern})$"},
            "date-time or date of installation",
            required=False,
        ),
        Field(
            "updated_at",
            _time,
            _OPTIONAL_TIME,
            "when the entry was made; the newest wins; absent: the record's Kafka timestamp",
            required=False,
        ),
    ),
    "The fleet registry: one device. A tombstone deletes it.",
    compacted=True,
)
HOUSEHOLDS = Contract(
    "smart-access.households",
    "raw_households",
    ("household_id",),
    (
        Field("household_id", _identifier, _ID, "household, and the record's key"),
        Field("region", _long_text, _OPEN, "region; an open vocabulary", required=False),
        Field(
            "timezone",
            _time_zone,
            {"type": ["string", "null"], "pattern": "^[A-Za-z][A-Za-z0-9_+/-]*$"},
            "IANA time zone; absent: UTC",
            required=False,
        ),
        Field(
            "updated_at",
            _time,
            _OPTIONAL_TIME,
            "when the entry was made; the newest wins; absent: the record's Kafka timestamp",
            required=False,
        ),
    ),
    "The fleet registry: one household. A tombstone deletes it.",
    compacted=True,
)
CONTRACTS = {contract.topic: contract for contract in (EVENTS, HEALTH, DEVICES, HOUSEHOLDS)}
OF_FILES = {topic: replace(contract, of_file=True) for topic, contract in CONTRACTS.items()}


def write_schemas() -> None:
    SCHEMAS.mkdir(exist_ok=True)
    for topic, contract in CONTRACTS.items():
        text = json.dumps(contract.json_schema(), indent=2, ensure_ascii=False) + "\n"
        (SCHEMAS / f"{topic}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_schemas()
