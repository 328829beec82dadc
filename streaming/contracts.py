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
from dataclasses import dataclass
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
    compacted: bool = False

    @property
    def columns(self) -> list[str]:
        """The table's columns in the order of `decode`'s result."""
        return [field.name for field in self.fields] + (["deleted_at"] if self.compacted else []) + ["extra"]

    @property
    def field_names(self) -> frozenset[str]:
        return frozenset(field.name for field in self.fields)

    def decode(self, value: bytes | None, key: bytes | None, timestamp_ms: int) -> Columns:
        """The columns' texts of one Kafka record.

        timestamp_ms is the record's Kafka timestamp; a negative one (the producer gave none) stands for now.
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
        return columns

    def from_object(self, record: Any, at: datetime) -> Columns:
        """The columns' texts of one decoded object; `at` stands in for a missing updated_at and bounds the future."""
        if not isinstance(record, dict):
            raise InvalidRecord("not_an_object", f"expected a JSON object, found {_type_name(record)}")
        latest = at + MAX_AHEAD
        columns: Columns = []
        for field in self.fields:
            found = record.get(field.name)
            if found is not None:
                try:
                    columns.append(field.parse(found, latest))
                except InvalidRecord as error:
                    raise InvalidRecord(error.reason, f"{field.name} {error.detail}") from None
            elif field.required:
                raise InvalidRecord("missing_field", f"{field.name} is missing")
            else:
                columns.append(_time_text(at) if field.name == "updated_at" else None)
        if self.compacted:
            columns.append(None)
        unknown = record.keys() - self.field_names
        columns.append(_extra({name: record[name] for name in record if name in unknown}) if unknown else None)
        return columns

    def _tombstone(self, key: bytes | None, at: datetime) -> Columns:
        try:
            name = (key or b"").decode()
            _identifier(name, at)
        except (UnicodeDecodeError, InvalidRecord):
            raise InvalidRecord("key_mismatch", f"a deletion's key must be a {self.key[0]}") from None
        texts = {self.key[0]: name, "updated_at": _time_text(at), "deleted_at": _time_text(at)}
        return [texts.get(column) for column in self.columns]

    def json_schema(self) -> dict[str, Any]:
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.topic,
            "description": self.description,
            "type": "object",
            "properties": {field.name: {**field.schema, "description": field.description} for field in self.fields},
            "required": [field.name for field in self.fields if field.required],
            "additionalProperties": True,
        }


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
        raise InvalidRecord("bad_json", _printable(str(error))) from None


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")[:300]


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


def _text(low: int, high: int) -> Callable[[Any, datetime], str]:
    def parse(value: Any, latest: datetime) -> str:
        if not isinstance(value, str):
            raise InvalidRecord("wrong_type", f"must be a string, found {_type_name(value)}")
        if not low <= len(value) <= high:
            raise InvalidRecord("bad_value", f"must have {low} to {high} characters, has {len(value)}")
        if "\0" in value:
            raise InvalidRecord("bad_value", "contains a NUL character")
        return value

    return parse


_short_text = _text(1, 64)
_long_text = _text(0, 200)


def _text_or_integer(value: Any, latest: datetime) -> str:
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


_DATE_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:Z|([+-])(\d\d):(\d\d))?", re.ASCII
)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def _time(value: Any, latest: datetime) -> str:
    """An RFC 3339 date-time as UTC text, cut to the microsecond."""
    if not isinstance(value, str):
        raise InvalidRecord("wrong_type", f"must be a date-time string, found {_type_name(value)}")
    match = _DATE_TIME.fullmatch(value)
    if not match:
        raise InvalidRecord("bad_time", "is not an RFC 3339 date-time (2026-05-04T13:20:00.5Z)")
    *parts, fraction, sign, hours, minutes = match.groups()
    try:
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        if int(minutes or 0) > 59:
            raise ValueError("offset minutes must be in 0..59")
        zone = timezone(-offset if sign == "-" else offset)
        year, month, day, hour, minute, second = map(int, parts)
        microsecond = int((fraction or "0")[:6].ljust(6, "0"))
        at = datetime(year, month, day, hour, minute, second, microsecond, zone).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRecord("bad_time", f"is no date-time: {error}") from None
    if at < EARLIEST:
        raise InvalidRecord("time_too_early", f"lies before {EARLIEST:%Y-%m-%d}")
    if at > latest:
        raise InvalidRecord("time_in_future", "lies more than 5 minutes after the record's Kafka timestamp")
    return _time_text(at)


def _time_or_date(value: Any, latest: datetime) -> str:
    if isinstance(value, str) and _DATE.fullmatch(value):
        value += "T00:00:00Z"
    return _time(value, latest)


def _time_text(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S.%f+00")


def _from_milliseconds(milliseconds: int) -> datetime:
    if milliseconds >= 0:
        try:
            return EPOCH + timedelta(milliseconds=milliseconds)
        except OverflowError:
            pass  # a producer's nonsense, beyond the year 9999: no bound to hold a device to
    return datetime.fromtimestamp(time.time(), UTC)


def _number(low: float, high: float) -> Callable[[Any, datetime], str]:
    def parse(value: Any, latest: datetime) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRecord("wrong_type", f"must be a number, found {_type_name(value)}")
        if not low <= value <= high:
            raise InvalidRecord("bad_value", f"must lie between {low:g} and {high:g}")
        return repr(float(value))

    return parse


def _boolean(value: Any, latest: datetime) -> str:
    if not isinstance(value, bool):
        raise InvalidRecord("wrong_type", f"must be true or false, found {_type_name(value)}")
    return "t" if value else "f"


EVENT_TYPES = {"open": "open", "close": "close", "fail": "fail", "command_failed": "fail"}


def _event_type(value: Any, latest: datetime) -> str:
    if not isinstance(value, str):
        raise InvalidRecord("wrong_type", f"must be a string, found {_type_name(value)}")
    if value not in EVENT_TYPES:
        raise InvalidRecord("bad_value", f"must be one of {', '.join(EVENT_TYPES)}")
    return EVENT_TYPES[value]


@cache
def time_zones() -> frozenset[str]:
    """The IANA list as the package tzdata has it, so that the machine's own list makes no difference."""
    return frozenset(resources.files("tzdata").joinpath("zones").read_text().split())


def _time_zone(value: Any, latest: datetime) -> str:
    if not isinstance(value, str):
        raise InvalidRecord("wrong_type", f"must be a string, found {_type_name(value)}")
    if value not in time_zones():
        raise InvalidRecord("bad_value", "is not a time zone of the IANA list")
    return value


def _extra(fields: dict[str, Any]) -> str:
    """The unknown fields as JSON text that PostgreSQL's jsonb takes: no NUL, and every number within a double."""

    def check(value: Any, depth: int) -> None:
        if depth > MAX_EXTRA_DEPTH:
            raise InvalidRecord("bad_extra", f"unknown fields are nested deeper than {MAX_EXTRA_DEPTH} levels")
        if isinstance(value, str) and "\0" in value:
            raise InvalidRecord("bad_extra", "an unknown field contains a NUL character")
        if isinstance(value, int | float):
            try:
                finite = math.isfinite(float(value))
            except OverflowError:
                finite = False
            if not finite:
                raise InvalidRecord("bad_extra", "an unknown field holds a number beyond a double's range")
        if isinstance(value, dict):
            for name, item in value.items():
                check(name, depth)
                check(item, depth + 1)
        if isinstance(value, list):
            for item in value:
                check(item, depth + 1)

    check(fields, 0)
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > MAX_EXTRA_BYTES:
        raise InvalidRecord("bad_extra", f"unknown fields take {len(text.encode())} bytes; limit {MAX_EXTRA_BYTES}")
    return text


_ID = {"type": ["string", "integer"], "minLength": 1, "maxLength": 64}
_TIME = {"type": "string", "format": "date-time"}
_OPEN = {"type": ["string", "null"], "maxLength": 200}

EVENTS = Contract(
    "smart-access.events",
    "raw_access_events",
    ("event_id",),
    (
        Field("event_id", _event_id, _ID, "UUID (UUIDv7 from the producer); other text maps to a uuid5 of it"),
        Field("device_id", _identifier, _ID, "device that reports, and the record's key"),
        Field("event_ts", _time, _TIME, "when it happened; without an offset it is UTC"),
        Field("event_type", _event_type, {"enum": list(EVENT_TYPES)}, "what happened; command_failed means fail"),
        Field(
            "trigger_source",
            _short_text,
            {"type": "string", "minLength": 1, "maxLength": 64},
            "what set it off: app, keypad, schedule …; an open vocabulary",
        ),
    ),
    "An access device opened, closed, or failed to.",
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
        Field("installed_at", _time_or_date, {"type": ["string", "null"]}, "date-time or date of installation", False),
        Field(
            "updated_at",
            _time,
            {"type": ["string", "null"], "format": "date-time"},
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
        Field("timezone", _time_zone, {"type": ["string", "null"]}, "IANA time zone; absent: UTC", required=False),
        Field(
            "updated_at",
            _time,
            {"type": ["string", "null"], "format": "date-time"},
            "when the entry was made; the newest wins; absent: the record's Kafka timestamp",
            required=False,
        ),
    ),
    "The fleet registry: one household. A tombstone deletes it.",
    compacted=True,
)
CONTRACTS = {contract.topic: contract for contract in (EVENTS, HEALTH, DEVICES, HOUSEHOLDS)}


def write_schemas() -> None:
    SCHEMAS.mkdir(exist_ok=True)
    for topic, contract in CONTRACTS.items():
        text = json.dumps(contract.json_schema(), indent=2, ensure_ascii=False) + "\n"
        (SCHEMAS / f"{topic}.json").write_text(text)


if __name__ == "__main__":
    write_schemas()
