"""Rows of a CSV file to the records that a producer would have sent: from there they take the stream's own path.

A header's names are matched to a contract; a cell is text, and this is the one reading of it:

- an empty cell is an absent field. `""` is the empty text where a field may be one (device_type, model …), unless the
  file puts everything in quotes;
- a number is what JSON calls one; true, t, 1, false, f and 0, in any case, are the booleans; all else stays text, and
  the contract says what it makes of it;
- a column that the contract does not know goes to `extra`, as text; one that is called `extra` holds a JSON object, as
  export_csv.py writes it, whose fields are unknown fields again; one without a name is left out;
- an entry of the registry with a `deleted_at` is a deletion, one without an `updated_at` is of the moment of loading, a
  microsecond later than the row before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from contracts import EVENTS, NEVER, OF_FILES, Contract, Field, InvalidRecord, parse_json
from csv_file import FileError, Row
from record import PlainRecord, Record
from row_text import Encoded, encode, of_file

Mapping = dict[str, str | None]

KEPT_CHARACTERS = 1 << 20  # of a line that is no row
ALIASES = {EVENTS.topic: {"created_at": "event_ts"}}  # the predecessor's
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_to_json = msgspec.json.Encoder().encode


class Header:
    """What a file's columns are. names: by column a field, another name for `extra`, or None for what is left out.

    Raises FileError when the header fits no contract, or not the table's.
    """

    def __init__(self, row: Row, delimiter: str, table: str, mapping: Mapping):
        if re.search("[\0\ud800-\udfff]", row.raw):
            raise FileError("its header is not UTF-8: save it as CSV in UTF-8")
        self.contract, self.names = _match([cell.strip() for cell in row.cells], table, mapping)
        fields = {field.name: field for field in self.contract.fields}
        known = [fields[name] for name in self.names if name in fields]
        self._numbers = [field.name for field in known if _type(field) == "number"]
        self._booleans = [field.name for field in known if _type(field) == "boolean"]
        self._quotes_tell = not row.raw.startswith('"')
        by = re.escape(delimiter)
        self._cell = re.compile(rf'(?:^|{by})("(?:[^"]|"")*"|[^{by}]*)')
        self._may_be_empty = {field.name for field in known if _takes_empty_text(field)}

    def encode(self, rows: Sequence[Row], at: datetime, first: int, load: int | None = None) -> Encoded:
        """The rows' lines of COPY, and the rows that are dead; a record's offset is its line in the file.

        at: when the load began; the first row is the file's first-th, counted from 0. load: its number.
        """
        timestamp = int(at.timestamp() * 1000)
        records: list[PlainRecord] = []
        dead: list[tuple[Record, InvalidRecord]] = []
        for number, row in enumerate(rows, first):
            try:
                key, value = self._record(row, at + timedelta(microseconds=number))
                records.append((row.line, timestamp, key, value, ()))
            except InvalidRecord as error:
                raw = row.raw[:KEPT_CHARACTERS].encode("utf-8", "surrogateescape")
                dead.append((Record(row.line, timestamp, None, raw, ()), error))
        encoded = encode(self.contract, 0, records) if records else Encoded([], [], [], set())
        return Encoded(encoded.records, of_file(self.contract, encoded.lines, load), encoded.dead + dead, set())

    def _record(self, row: Row, at: datetime) -> tuple[bytes | None, bytes]:
        """A record's key and value. Raises InvalidRecord where the row cannot be made into one."""
        if row.error:
            raise InvalidRecord("bad_csv", row.error)
        if len(row.cells) != len(self.names):
            raise InvalidRecord("bad_csv", f"{len(row.cells)} cells, the header has {len(self.names)}")
        cells = zip(self.names, row.cells, strict=True)
        record: dict[str | None, Any] = {name: cell for name, cell in cells if cell}
        record.pop(None, None)
        for name in self._numbers:
            if name in record and _NUMBER.fullmatch(record[name]):
                record[name] = msgspec.Raw(record[name])
        for name in self._booleans:
            if name in record:
                record[name] = BOOLEANS.get(record[name].lower(), record[name])
        if self.contract.compacted:
            record.setdefault("updated_at", at.isoformat())
            if self._quotes_tell and '""' in row.raw:
                record.update(dict.fromkeys(self._empty_texts(row), ""))
        extra = record.pop("extra", "")
        try:
            key = record.get(self.contract.key[0] if self.contract.compacted else "device_id")
            return key and key.encode(), _with_extra(record, extra, self.contract) if extra else _to_json(record)
        except UnicodeEncodeError:
            raise InvalidRecord("bad_utf8", "the line is not UTF-8") from None

    def _empty_texts(self, row: Row) -> list[str]:
        """The fields whose empty cell stands in quotes."""
        cells = zip(self.names, self._cell.findall(row.raw.rstrip("\r\n")), strict=False)
        return [name for name, cell in cells if cell == '""' and name in self._may_be_empty]


def _with_extra(record: dict[Any, Any], extra: str, contract: Contract) -> bytes:
    """The record's JSON with the fields of an object put in as they stand; what is no object is an unknown field."""
    try:
        found = parse_json(extra.encode())
    except InvalidRecord:
        found = None
    if not isinstance(found, dict):
        return _to_json(record | {"extra": extra})
    if repeated := found.keys() & (record.keys() | contract.field_names):
        raise InvalidRecord("bad_extra", f"extra repeats {', '.join(sorted(repeated))}")
    inner = extra.strip()[1:-1].strip().encode()
    return _to_json(record)[:-1] + b"," + inner + b"}" if inner else _to_json(record)


def _type(field: Field) -> str:
    types = field.schema.get("type", "string")
    return types if isinstance(types, str) else types[0]


def _takes_empty_text(field: Field) -> bool:
    try:
        field.parse("", NEVER)
    except InvalidRecord:
        return False
    return True


def _match(header: list[str], table: str, mapping: Mapping) -> tuple[Contract, list[str | None]]:
    """The contract that knows most of the header; it must have all that the contract requires."""

    def fits(reading: tuple[Contract, list[str | None]]) -> tuple[int, bool]:
        contract, names = reading
        return len(contract.field_names.intersection(names)), not _missing(contract, names)

    candidates = [contract for contract in OF_FILES.values() if table in ("", contract.table)]
    best, names = max(((contract, _names(header, contract, mapping)) for contract in candidates), key=fits)
    known, is_complete = fits((best, names))
    found = ", ".join(header)[:200]
    if not known:
        raise FileError(f"no column of its header is known ({found}): name them by --mapping")
    if not is_complete:
        raise FileError(
            f"for {best.table} its header lacks {', '.join(_missing(best, names))} (it has {found}):"
            " say by --mapping which column that is, or by --table what else it is for"
        )
    for at, name in enumerate(names):
        if name is not None and name in names[:at]:
            raise FileError(f"its columns {names.index(name) + 1} and {at + 1} are both {name}")
    return best, names


def _missing(contract: Contract, names: list[str | None]) -> list[str]:
    return [field.name for field in contract.fields if field.required and field.name not in names]


def _names(header: list[str], contract: Contract, mapping: Mapping) -> list[str | None]:
    """By column: what the mapping says, else the field of that name, whatever its case and blanks, else the name."""
    known = contract.field_names | {"extra"}
    plain = {name: re.sub(r"[\s-]+", "_", name).lower() for name in header}
    aliases = {alias: field for alias, field in ALIASES.get(contract.topic, {}).items() if field not in plain.values()}
    names: list[str | None] = []
    for name in header:
        field = aliases.get(plain[name], plain[name])
        names.append(mapping.get(name, field if field in known else name or None))
    return names
