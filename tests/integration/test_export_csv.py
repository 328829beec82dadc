"""Tables out to files, and back to the same rows."""

from __future__ import annotations

import json
import uuid

from csv_loads import Loads, row

TABLES = ("raw_access_events", "raw_device_health", "raw_devices", "raw_households")
NASTY = {
    "": None,
    " a ": ["\u2028", 'quo"te', "line\nbreak\r\n", "\\N", "\\.", ",;\t", 1.5, 12345678901234567890123],
    "é": {},
}


def fill_with_every_kind_of_value(loads: Loads) -> None:
    extra = json.dumps(NASTY)
    texts = ["\\.", '"', "a,b", "x\ny", "x\r\ny", "\\N", "é\U0001f6aa", " ", "\t", "NULL", "'"]
    for number, text in enumerate(texts):
        at, more = f"2025-06-01 12:00:00.{number:06d}+02", extra if number % 2 else None
        event = "INSERT INTO raw_access_events VALUES (%s, %s, %s, 'open', %s, %s, 0, 7)"
        loads.execute(event, str(uuid.uuid4()), f"d-{number}", at, text, more)
        model, deleted_at = "" if number % 2 else None, "2025-05-31 10:00:00.5Z" if number % 3 else None
        device = "INSERT INTO raw_devices VALUES (%s, 'home', %s, %s, '1.0', '2020-01-01', '2025-06-01', %s, %s)"
        loads.execute(device, f"d-{number}", text, model, deleted_at, extra)
    loads.execute("INSERT INTO raw_devices (device_id, updated_at, deleted_at) VALUES ('gone', now(), now())")
    loads.execute("INSERT INTO raw_households VALUES ('home', '', 'Europe/Berlin', now())")
    report = "INSERT INTO raw_device_health VALUES ('d', now() - %s * interval '1 hour', %s, %s, %s, %s)"
    for hours, (battery, dbm) in enumerate([(87.1, -61), (None, None), (1e-20, -0.1), (100, -150)]):
        loads.execute(report, hours, battery, dbm, hours > 1, extra if hours > 2 else None)


def test_what_is_exported_loads_back_to_the_same_rows(loads: Loads) -> None:
    fill_with_every_kind_of_value(loads)
    before = {table: loads.contents(table) for table in TABLES}
    files = [str(loads.folder / f"{table}.csv{'.gz' if at % 2 else ''}") for at, table in enumerate(TABLES)]
    for table, file in zip(TABLES, files, strict=True):
        loads.run("--table", table, "--output", file, name="export_csv")
    out, _ = loads.run(*files)
    assert all("stored=0" in line and "dead=0" in line for line in out.splitlines())
    assert {table: loads.contents(table) for table in TABLES} == before
    loads.execute("TRUNCATE raw_access_events, raw_device_health, raw_devices, raw_households, file_loads")
    loads.run(*files)
    assert {table: loads.contents(table) for table in TABLES} == before


def test_an_export_of_a_range_has_its_rows_and_a_refused_one_leaves_no_file(loads: Loads) -> None:
    loads.run(loads.put("e.csv", row(1, event_ts="2025-06-01T00:00:00Z"), row(2, event_ts="2025-06-02T00:00:00Z")))
    arguments = "--table", "raw_access_events", "--since", "2025-06-01", "--until", "2025-06-02"
    out, _ = loads.run(*arguments, name="export_csv")
    assert [line.split(",")[2] for line in out.splitlines()] == ["event_ts", "2025-06-01T00:00:00.000000Z"]
    target = loads.folder / "x.csv"
    _, err = loads.run("--table", "raw_devices", "--output", str(target), code=1, name="export_csv", PGPORT="1")
    assert "PostgreSQL: " in err
    assert not target.exists()
