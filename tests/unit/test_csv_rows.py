"""What a CSV file is read as, without any server: lines, cells, headers, and what is no row."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from contract_cases import AT, AT_MS
from contract_strategies import contracts, valid_records
from csv_writing import as_csv
from hypothesis import given, reject
from hypothesis import strategies as st

from contracts import DEVICES, EVENTS, HEALTH, HOUSEHOLDS, OF_FILES, Columns, Contract, InvalidRecord
from csv_file import CsvFile, FileError, Row
from csv_records import Header
from row_text import Encoded

EVENT = b"event_id,device_id,event_ts,event_type,trigger_source"
E1 = b"e1,lock-1,2026-05-04 11:59:30,open,app"
HEALTH_HEADER = b"device_id,reported_at,is_online,battery_pct,signal_strength_dbm"


@pytest.fixture
def put(tmp_path: Path) -> Any:
    def write(content: bytes, name: str = "some.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


def rows_of(path: str, delimiter: str = "") -> list[Row]:
    with CsvFile(path) as file:
        return list(file.rows(delimiter))


def encoded(path: str, table: str = "", mapping: dict[str, str | None] | None = None, delimiter: str = "") -> Encoded:
    with CsvFile(path) as file:
        first, *rows = file.rows(delimiter)
        return Header(first, file.delimiter, table, mapping or {}).encode(rows, AT, 0, load=7)


def columns_of(contract: Contract, line: str) -> dict[str, str | None]:
    texts = [None if text == "\\N" else text.replace("\\\\", "\\") for text in line.rstrip("\n").split("\t")]
    origin = [None, None] if contract.compacted else [None, None, "7"]  # no place in Kafka; the file's load
    assert texts[len(contract.columns) :] == origin
    return dict(zip(contract.columns, texts, strict=False))


def reasons(found: Encoded) -> list[tuple[int, str]]:
    return sorted((record.offset, error.reason) for record, error in found.dead)


@pytest.mark.parametrize(
    "content",
    [
        EVENT + b"\n" + E1 + b"\n",
        EVENT + b"\r\n" + E1 + b"\r\n",
        EVENT + b"\r" + E1 + b"\r",
        EVENT + b"\n" + E1,
        b"\xef\xbb\xbf" + EVENT + b"\n" + E1,
        b"\n" + EVENT + b"\n\n\n" + E1 + b"\n\n",
        (EVENT + b"\n" + E1).replace(b",", b";"),
        (EVENT + b"\n" + E1).replace(b",", b"\t"),
        (EVENT + b"\n" + E1).replace(b",", b"|"),
        b'"' + (EVENT + b'"\n"' + E1).replace(b",", b'","') + b'"',
        gzip.compress(EVENT + b"\n" + E1),
        b"Event_ID, Device ID ,event-ts,EVENT_TYPE,trigger source\n" + E1,
        b"event_id,device_id,created_at,event_type,trigger_source\n" + E1,
    ],
    ids=["plain", "crlf", "cr", "no_newline_at_the_end", "byte_order_mark", "blank_lines", "semicolons", "tabs", "bars",
         "all_in_quotes", "gzip", "header_in_capitals_and_blanks", "the_predecessors_header"],
)  # fmt: skip
def test_a_file_is_read_whatever_it_looks_like(put: Any, content: bytes) -> None:
    found = encoded(put(content))
    assert found.dead == []
    [line] = found.lines
    assert line.split("\t")[1:5] == ["lock-1", "2026-05-04 11:59:30.000000+00", "open", "app"]


def test_lines_are_the_files_own_whatever_the_rows_hold(put: Any) -> None:
    long = b'e2,lock-1,2026-05-04 11:59:30,open,"two\nlines\r\nor three"'
    found = encoded(put(b"\n".join([EVENT, long, b"", b"e3,short", E1, b"e4," + E1])))
    assert [record[0] for record in found.records] == [2, 7]
    assert reasons(found) == [(6, "bad_csv"), (8, "bad_csv")]
    assert found.dead[0][0].value == b"e3,short\n"


@pytest.mark.parametrize(
    "broken", [b'e2,"lock', b'e2,"lock"x,2026-05-04 11:59:30,open,app', b'"' + b"x" * 200_000 + b'"']
)
def test_a_quote_that_is_never_closed_costs_its_own_line_alone(put: Any, broken: bytes) -> None:
    found = encoded(put(b"\n".join([EVENT, E1, broken, *[E1] * 3000, b""])))
    assert reasons(found) == [(3, "bad_csv")]
    assert len(found.lines) == 3001
    assert found.dead[0][0].value == broken + b"\n"


def test_bytes_that_are_not_utf8_and_nul_are_dead_and_kept_as_they_are(put: Any) -> None:
    found = encoded(put(b"\n".join([EVENT, E1.replace(b"app", b"\xff"), E1.replace(b"app", b"a\0"), E1])))
    assert reasons(found) == [(2, "bad_utf8"), (3, "bad_value")]
    assert {record.value for record, error in found.dead if error.reason == "bad_utf8"} == {
        E1.replace(b"app", b"\xff\n")
    }
    assert len(found.lines) == 1


@pytest.mark.parametrize(
    ("cells", "battery", "signal", "online"),
    [
        ("true,87.5,-61", "87.5", "-61.0", "t"),
        ("T,0,0", "0.0", "0.0", "t"),
        ("1,1e1,-1.5E+1", "10.0", "-15.0", "t"),
        ("FALSE,,", None, None, "f"),
        ("f,100,-0", "100.0", "0.0", "f"),
        ("0,-0.0,-150", "0.0", "-150.0", "f"),
    ],
)
def test_numbers_and_booleans_are_read_from_text(
    put: Any, cells: str, battery: str | None, signal: str | None, online: str
) -> None:
    found = encoded(put(HEALTH_HEADER + b"\nlock-1,2026-05-04 11:59:30," + cells.encode()))
    [line] = found.lines
    columns = columns_of(HEALTH, line)
    assert (columns["battery_pct"], columns["signal_strength_dbm"], columns["is_online"]) == (battery, signal, online)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [("yes,1,-1", "wrong_type"), (",1,-1", "missing_field"), ("t,nan,", "wrong_type"), ("t,Infinity,", "wrong_type"),
     ("t,1_0,", "wrong_type"), ("t, 1,", "wrong_type"), ("t,\u0661,", "wrong_type"), ("t,0x10,", "wrong_type"),
     ('t,"8,5",', "wrong_type"), ("t,101,", "bad_value"), ("t,1e999,", "bad_json"), ("2,1,", "wrong_type")],
)  # fmt: skip
def test_what_is_no_number_and_no_boolean_is_the_contracts_to_refuse(put: Any, cells: str, reason: str) -> None:
    found = encoded(put(HEALTH_HEADER + b"\nlock-1,2026-05-04 11:59:30," + cells.encode()))
    assert reasons(found) == [(2, reason)]


def test_unknown_columns_go_to_extra_as_text_and_a_column_extra_is_merged(put: Any) -> None:
    header = b"note,,extra," + EVENT + b"\n"
    inner = '{"a": [1, 2.50, 12345678901234567890123], "note2": "x"}'
    quoted = ('"' + inner.replace('"', '""') + '"').encode()
    found = encoded(put(header + b"007,3," + quoted + b"," + E1 + b"\n,,{}," + E1 + b"\n,,no json," + E1))
    extras = [columns_of(EVENTS, line)["extra"] for line in found.lines]
    assert json.loads(extras[0] or "") == {"note": "007", "a": [1, 2.5, 12345678901234567890123], "note2": "x"}
    assert extras[1] is None
    assert json.loads(extras[2] or "") == {"extra": "no json"}


@pytest.mark.parametrize("inner", ['{"event_type": "close"}', '{"note": 1}'])
def test_an_extra_that_repeats_a_column_is_dead(put: Any, inner: str) -> None:
    cell = '"' + inner.replace('"', '""') + '"'
    assert reasons(encoded(put(b"note,extra," + EVENT + b"\nx," + cell.encode() + b"," + E1))) == [(2, "bad_extra")]


def test_an_empty_cell_is_absent_and_a_quoted_one_the_empty_text_unless_all_is_quoted(put: Any) -> None:
    header, row = (
        b"device_id,household_id,model,firmware_version,region,installed_at",
        b'lock-1,home-1,"",,"a,"";""",""',
    )
    [line] = encoded(put(header + b"\n" + row)).lines
    columns = columns_of(DEVICES, line)
    assert (columns["model"], columns["firmware_version"], columns["installed_at"]) == ("", None, None)
    assert json.loads(columns["extra"] or "") == {"region": 'a,";"'}
    quoted = b'"' + header.replace(b",", b'","') + b'"'
    [line] = encoded(put(quoted + b'\n"lock-1","home-1","","","",""')).lines
    assert columns_of(DEVICES, line)["model"] is None


def test_an_entry_without_updated_at_is_of_the_moment_of_loading_and_later_than_the_row_before(put: Any) -> None:
    lines = encoded(put(b"household_id,region\nhome-1,north\nhome-1,south")).lines
    times = [columns_of(HOUSEHOLDS, line)["updated_at"] for line in lines]
    assert times == ["2026-05-04 12:00:00.000000+00", "2026-05-04 12:00:00.000001+00"]


def test_an_entry_that_says_when_it_was_deleted_is_a_deletion(put: Any) -> None:
    content = (
        b"device_id,household_id,updated_at,deleted_at\nd,,2026-05-04 11:00:00,2026-05-04 10:00:00\nd,,,\nd,h,,soon"
    )
    found = encoded(put(content))
    [line] = found.lines
    columns = columns_of(DEVICES, line)
    assert (columns["household_id"], columns["deleted_at"]) == (None, "2026-05-04 10:00:00.000000+00")
    assert columns["extra"] is None
    assert reasons(found) == [(3, "missing_field"), (4, "bad_time")]


def test_for_a_file_the_future_begins_five_minutes_after_it_is_loaded(put: Any) -> None:
    row = b"%s,lock-1,2026-05-04T12:05:0%d,open,app\n"
    found = encoded(put(EVENT + b"\n" + row % (b"a", 0) + row % (b"b", 1)))
    assert reasons(found) == [(3, "time_in_future")]


def test_a_mapping_names_foreign_columns_and_leaves_out_what_is_null(put: Any) -> None:
    path = put(b"ID,Door,When,What,By,Secret\n" + E1 + b",x")
    mapping = {"ID": "event_id", "Door": "device_id", "When": "event_ts", "What": "event_type", "By": "trigger_source",
               "Secret": None, "elsewhere": "y"}  # fmt: skip
    [line] = encoded(path, mapping=mapping).lines
    assert columns_of(EVENTS, line)["extra"] is None
    assert columns_of(EVENTS, line)["trigger_source"] == "app"


@pytest.mark.parametrize(
    ("header", "table"),
    [
        (EVENT + b",household_id,model", "raw_access_events"),
        (HEALTH_HEADER, "raw_device_health"),
        (b"device_id,household_id,region", "raw_devices"),
        (b"household_id", "raw_households"),
        (b"timezone,region,household_id,device_id", "raw_households"),
    ],
)
def test_the_header_tells_the_table(put: Any, header: bytes, table: str) -> None:
    with CsvFile(put(header)) as file:
        assert Header(next(file.rows()), file.delimiter, "", {}).contract.table == table


@pytest.mark.parametrize(
    ("content", "table", "said"),
    [
        (b"a,b\n1,2", "", "no column of its header is known (a, b): name them by --mapping"),
        (EVENT.replace(b"event_ts", b"time") + b",household_id", "", "for raw_access_events its header lacks event_ts"),
        (EVENT, "raw_device_health", "for raw_device_health its header lacks reported_at, is_online"),
        (EVENT + b",Event ID", "", "its columns 1 and 6 are both event_id"),
        (EVENT + b",x,x", "", "its columns 6 and 7 are both x"),
        ("Gerät,device_id,household_id".encode("latin-1"), "", "its header is not UTF-8"),
        ("device_id,household_id\nd,h".encode("utf-16"), "", "its header is not UTF-8"),
    ],
)  # fmt: skip
def test_a_header_that_fits_nothing_is_an_error_of_the_file(put: Any, content: bytes, table: str, said: str) -> None:
    with pytest.raises(FileError) as error:
        encoded(put(content), table)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(EVENT * 1000)[:-9], "it is cut off or damaged"),
        (gzip.compress(EVENT * 1000)[:-4] + b"abcd", "it cannot be read"),
        (gzip.compress(EVENT)[:20] + b"x" * 40, "it is cut off or damaged"),
    ],
    ids=["cut off", "wrong length", "damaged"],  # the bytes hold the time
)
def test_a_damaged_gzip_is_noticed_before_anything_is_read_from_it(put: Any, content: bytes, said: str) -> None:
    with pytest.raises(FileError, match=said), CsvFile(put(content)):
        pass


def test_what_is_no_file_is_an_error_of_the_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileError, match="it cannot be read"), CsvFile(str(path)):
            pass


def test_the_same_content_has_the_same_sha256_compressed_or_not(put: Any) -> None:
    with CsvFile(put(EVENT)) as plain, CsvFile(put(gzip.compress(EVENT), "b")) as packed:
        assert plain.sha256 == packed.sha256
        assert plain.size == packed.size == len(EVENT)


def test_a_file_that_grows_is_read_as_it_was_and_one_that_changes_is_an_error(put: Any) -> None:
    content = EVENT + b"\n" + (E1 + b"\n") * 20_000
    with CsvFile(put(content)) as file, Path(file.name).open("r+b") as other:
        other.seek(0, 2)
        other.write(E1 + b"\n")
        other.flush()
        assert len(list(file.rows())) == 20_001
        other.seek(-len(E1) - 3, 2)
        other.write(b"X")
        other.flush()
    for change in (lambda path: path.write_bytes(content[:-1]), lambda path: path.write_bytes(content[:-2] + b"q\n")):
        with CsvFile(put(content)) as file:
            change(Path(file.name))
            with pytest.raises(FileError, match="changed while"):
                list(file.rows())


@given(st.data())
def test_a_valid_record_is_the_same_from_a_file_as_from_kafka(data: st.DataObject) -> None:
    contract = data.draw(contracts)
    record = data.draw(valid_records(contract))
    value, key = json.dumps(record).encode(), str(record.get(contract.key[0])).encode()
    try:
        columns = contract.decode(value, key, AT_MS)
    except InvalidRecord:
        reject()  # its unknown fields are too large
    with tempfile.NamedTemporaryFile() as file:
        file.write(as_csv(contract, [record]))
        file.flush()
        found = encoded(file.name, contract.table)
    assert found.dead == []
    [(_, timestamp, key, value, _)] = found.records
    assert parsed(OF_FILES[contract.topic].decode(value, key, timestamp)) == parsed(columns)


def parsed(columns: Columns) -> list[Any]:
    """The unknown fields as the value that they are; a test of row_text.py holds its lines equal to the columns."""
    return [*columns[:-1], json.loads(columns[-1] or "null")]
