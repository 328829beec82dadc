"""The drop folder: what is whole is loaded and moved with a report, all else stays."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psycopg2
from csv_loads import HEADER, Loads, row

import drop_folder
from file_load import Outcome


def test_a_file_in_the_drop_folder_is_loaded_and_moved_with_its_report(loads: Loads) -> None:
    drop = loads.folder / "drop"
    out, _ = loads.run(name="drop_folder", BATCH_DROP_DIR=str(drop))
    assert out == "files loaded=0 known=0 failed=0 rows=0 stored=0 duplicates=0 dead=0\n"
    contents = {
        "a.csv": f"{HEADER}\n{row(1)}\n{row(2, event_type='ajar')}\n",
        "same.csv": f"{HEADER}\n{row(1)}\n{row(2, event_type='ajar')}\n",
        "theirs.csv": f"who,{HEADER}\nme,{row(3)}\n",
        "bad.csv": "a,b\n1,2\n",
        "mapping.json": '{"who": null}',
        "half.csv.part": HEADER,
        ".hidden.csv": HEADER,
    }
    for name, text in contents.items():
        (drop / name).write_text(text)
        os.utime(drop / name, (time.time() - 61,) * 2)
    (drop / "growing.csv").write_text(HEADER)
    (drop / "keep/a.csv").write_text(f"{HEADER}\n{row(4)}\n")
    os.utime(drop / "keep/a.csv", (0, 0))
    out, err = loads.run(name="drop_folder", BATCH_DROP_DIR=str(drop))
    assert out == "files loaded=3 known=1 failed=1 rows=4 stored=3 duplicates=0 dead=1\n"
    assert "growing.csv is left: it was written less than 60 s ago" in err
    left = {path.name for path in drop.iterdir()}
    assert left == {"done", "failed", "keep", "mapping.json", "half.csv.part", ".hidden.csv", "growing.csv"}
    assert list((drop / "keep").iterdir()) == []
    assert loads.rows("SELECT file_name FROM file_loads WHERE pinned") == [(str(drop / "keep/a.csv"),)]
    done = sorted(path.name.partition("Z-")[2] for path in (drop / "done").iterdir())
    assert done == sorted(
        f"{name}{end}" for name in ("a.csv", "keep-a.csv", "same.csv", "theirs.csv") for end in ("", ".report.json")
    )
    [report] = (drop / "done").glob("*Z-a.csv.report.json")
    told = json.loads(report.read_text())
    assert (told["rows"], told["stored"], told["dead"], told["reasons"]) == (2, 1, 1, {"bad_value": 1})
    [report] = (drop / "failed").glob("*.report.json")
    assert json.loads(report.read_text())["error"].startswith("no column of its header is known")
    assert loads.one("SELECT extra FROM raw_access_events WHERE device_id = 'lock-3'") is None


def test_an_outage_leaves_the_files_in_the_drop_folder(loads: Loads) -> None:
    path = Path(loads.put_events("events.csv", 3))
    os.utime(path, (0, 0))
    loads.run(name="drop_folder", BATCH_DROP_DIR=str(loads.folder), code=1, PGPORT="1")
    assert path.exists()


def test_an_outage_during_a_load_leaves_its_file_and_those_after_it(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.csv", "b.csv")]
    for file in files:
        file.touch()

    def cut(path: str, tell: object, keep: bool) -> Outcome:
        raise psycopg2.OperationalError("server closed the connection")

    assert drop_folder.load_all(tmp_path, files, cut) == 1
    assert sorted(tmp_path.iterdir()) == files
