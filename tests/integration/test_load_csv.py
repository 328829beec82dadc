"""CSV files into the real tables: each row once, whatever interrupts it, and a history that says what became of it."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from csv_loads import CUT, HEADER, HISTORY, Loads, row
from event_stream import Stream, event_id
from running_consumer import ROOT

import pipeline_settings
from contracts import EVENTS


def test_files_of_all_tables_are_known_by_their_headers_and_a_second_load_changes_nothing(loads: Loads) -> None:
    rows = row(1), row(1), row(2, event_type="ajar"), row(3), row(4, event_type="command_failed")
    events = loads.put("events.csv", *rows)
    header = "device_id,reported_at,battery_pct,signal_strength_dbm,is_online"
    health = loads.put("h.csv", "lock-1,2025-06-01 12:00:00,87.5,,true", header=header)
    versions = "lock-1,home-1,2025-01-01T00:00:00Z,Bolt", "lock-1,home-1,2024-01-01T00:00:00Z,older"
    devices = loads.put("d.csv", *versions, header="device_id,household_id,updated_at,model")
    homes = loads.folder / "homes.csv.gz"
    homes.write_bytes(gzip.compress(b"household_id,region\nhome-1,north\n"))
    out, err = loads.run(events, health, devices, str(homes))
    assert [line.split(" seconds")[0] for line in out.splitlines()] == [
        f"{events}: raw_access_events rows=5 stored=3 duplicates=1 dead=1",
        f"{health}: raw_device_health rows=1 stored=1 duplicates=0 dead=0",
        f"{devices}: raw_devices rows=2 stored=1 duplicates=1 dead=0",
        f"{homes}: raw_households rows=1 stored=1 duplicates=0 dead=0",
    ]
    assert "dead: bad_value 1; python streaming/replay_dead_letters.py show" in err
    assert loads.rows(HISTORY) == [
        (5, 3, 1, 1, True, True), (1, 1, 0, 0, True, True), (2, 1, 1, 0, True, True), (1, 1, 0, 0, True, True),
    ]  # fmt: skip
    assert loads.rows("SELECT event_type, kafka_partition, kafka_offset FROM raw_access_events ORDER BY event_id") == [
        ("open", None, None), ("open", None, None), ("fail", None, None),
    ]  # fmt: skip
    assert loads.rows("SELECT battery_pct, signal_strength_dbm FROM raw_device_health") == [(87.5, None)]
    assert loads.rows("SELECT model FROM raw_devices") == [("Bolt",)]
    letter = "SELECT topic, source_file, source_line, partition, reason FROM dead_letters"
    assert loads.rows(letter) == [(EVENTS.topic, events, 4, None, "bad_value")]
    before = loads.everything()
    again = Path(events).rename(loads.folder / "under another name.csv")
    out, _ = loads.run(str(again), health, devices, str(homes))
    assert out.count("loaded before") == 4
    assert loads.everything() == before


def test_the_same_file_compressed_or_from_standard_input_is_the_same_file(loads: Loads) -> None:
    path = Path(loads.put_events("events.csv", 10))
    loads.run(str(path))
    before = loads.everything()
    packed = loads.folder / "packed"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for source in (path, packed):
        out, _ = loads.run("-", stdin=source.read_bytes())
        assert out.startswith("stdin: raw_access_events loaded before")
    assert "loaded before" in loads.run(str(packed))[0]
    assert loads.everything() == before


def test_the_same_content_read_in_another_way_is_another_load(loads: Loads) -> None:
    path = loads.put("theirs.csv", row(1) + ",7", header=HEADER + ",note")
    mapping = loads.folder / "mapping.json"
    mapping.write_text('{"note": "remark"}')
    for arguments in ((), ("--mapping", str(mapping))):
        assert "rows=1" in loads.run(path, *arguments)[0]
    assert [row[1:3] for row in loads.rows(HISTORY)] == [(1, 0), (0, 1)]


def test_a_load_that_is_killed_midway_goes_on_where_it_stood(loads: Loads) -> None:
    path = loads.put("events.csv", *(row(number) for number in range(500)), row(2), row(501, event_type="ajar"))
    with loads.held_up(350), loads.script(path, "--batch-size", "100") as process:
        loads.wait_until_held_up(process)
        assert loads.rows(HISTORY) == [(300, 300, 0, 0, True, False)]
        process.kill()
        process.wait(30)
        loads.execute(CUT)  # its server process may not know yet
    _, err = loads.run(path, "--batch-size", "70")
    assert "goes on after row 300" in err
    assert loads.rows(HISTORY) == [(502, 500, 1, 1, True, True)]
    assert loads.one("SELECT count(*) FROM raw_access_events") == 500
    assert loads.rows("SELECT source_line FROM dead_letters") == [(503,)]


def test_ctrl_c_finishes_the_batch_and_says_how_to_go_on(loads: Loads) -> None:
    path = loads.put_events("events.csv", 500)
    with loads.script(path, "--batch-size", "100") as process:
        with loads.held_up(350):
            loads.wait_until_held_up(process)
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "stopped after row 400; start the same command again to go on there" in err
    assert loads.rows(HISTORY) == [(400, 400, 0, 0, True, False)]
    assert loads.run(path)[0].split(" seconds")[0].endswith("rows=500 stored=500 duplicates=0 dead=0")


def test_of_two_loads_of_one_file_at_once_the_later_one_is_told_and_writes_nothing(loads: Loads) -> None:
    path = loads.put_events("events.csv", 300)
    with loads.script(path, "--batch-size", "100") as one, loads.script(path, "--batch-size", "100") as other:
        # In the first batch: whoever came to the second would have ended the other already
        with loads.held_up(50):
            loads.wait_until_held_up(one, 2)
        outputs = [process.communicate(timeout=60) for process in (one, other)]
    assert sorted(process.returncode for process in (one, other)) == [0, 1]
    assert sum("another load of this file is at work" in err for _, err in outputs) == 1
    assert loads.rows(HISTORY) == [(300, 300, 0, 0, True, True)]


def test_a_load_goes_on_over_a_connection_that_was_cut(loads: Loads) -> None:
    path = loads.put_events("events.csv", 300)
    with loads.script(path, "--batch-size", "100") as process:
        with loads.held_up(150):
            loads.wait_until_held_up(process)
            loads.execute(CUT)
            loads.wait_until_held_up(process)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "waiting for PostgreSQL: " in err
    assert loads.rows(HISTORY) == [(300, 300, 0, 0, True, True)]


def test_a_row_that_postgres_refuses_is_isolated_and_can_be_replayed_once_it_does_not(loads: Loads) -> None:
    loads.execute("ALTER TABLE raw_access_events ADD CONSTRAINT no_voice CHECK (trigger_source <> 'voice')")
    path = loads.put("events.csv", *(row(n, trigger_source="voice" if n == 41 else "app") for n in range(100)))
    loads.run(path)
    assert loads.rows(HISTORY) == [(100, 99, 0, 1, True, True)]
    assert loads.rows("SELECT reason, source_line FROM dead_letters") == [("refused_by_database", 43)]
    loads.execute("ALTER TABLE raw_access_events DROP CONSTRAINT no_voice")
    out, _ = loads.run("replay", name="replay_dead_letters")
    assert out == "replayed 1, duplicate 0, still invalid 0\n"
    voice = "SELECT device_id, kafka_offset FROM raw_access_events WHERE trigger_source = 'voice'"
    assert loads.rows(voice) == [("lock-41", None)]
    assert loads.one("SELECT count(*) FROM raw_access_events") == 100
    assert f"{path}:43" in loads.run("show", name="replay_dead_letters")[0]


def test_a_deletion_that_is_replayed_is_still_a_deletion_and_what_is_no_row_stays_dead(loads: Loads) -> None:
    loads.execute("ALTER TABLE raw_devices ADD CONSTRAINT nothing CHECK (device_id <> 'lock-1')")
    header = "device_id,household_id,updated_at,deleted_at"
    loads.run(loads.put("d.csv", "lock-1,,2025-01-01T00:00:00Z,2025-01-01T00:00:00Z", "lock-2", header=header))
    loads.execute("ALTER TABLE raw_devices DROP CONSTRAINT nothing")
    assert loads.run("replay", name="replay_dead_letters")[0] == "replayed 1, duplicate 0, still invalid 1\n"
    assert loads.rows("SELECT device_id, deleted_at IS NOT NULL, extra FROM raw_devices") == [("lock-1", True, None)]


def test_a_file_that_cannot_be_loaded_does_not_stop_the_others(loads: Loads) -> None:
    good = loads.put_events("good.csv", 3)
    (loads.folder / "empty.csv").touch()
    foreign = loads.put("foreign.csv", "1,2", header="a,b")
    cut = loads.folder / "cut.csv.gz"
    cut.write_bytes(gzip.compress(Path(good).read_bytes() * 100)[:-20])
    only_header = loads.put("header.csv")
    files = [str(loads.folder / "empty.csv"), foreign, str(cut), str(loads.folder), "/nowhere.csv", only_header, good]
    out, err = loads.run(*files, code=1)
    assert [line.split(":")[0] for line in out.splitlines()] == [only_header, good]
    for said in (
        "empty.csv: it is empty: not even a header",
        "foreign.csv: no column of its header is known (a, b): name them by --mapping",
        "cut.csv.gz: it is cut off or damaged",
        "/nowhere.csv: it cannot be read: No such file or directory",
        "5 of 7 files were not loaded",
    ):
        assert said in err
    assert loads.one("SELECT count(*) FROM raw_access_events") == 3


def test_a_dry_run_needs_no_postgres_and_says_what_is_wrong(loads: Loads) -> None:
    path = loads.put("events.csv", row(1), row(2, event_type="ajar"), "short")
    out, err = loads.run(path, "--dry-run", PGPORT="1")
    assert "rows=3 stored=1 duplicates=0 dead=2" in out
    assert f"{path}:3 bad_value: event_type must be one of" in err
    assert f"{path}:4 bad_csv: 1 cells, the header has 5" in err
    assert loads.rows(HISTORY) == []


def test_on_a_terminal_there_is_a_bar_and_the_output_stays_clean(loads: Loads) -> None:
    path = loads.put("[bold]events.csv", row(1), row(2, event_type="ajar"))
    terminal, side = os.openpty()
    command = [sys.executable, "streaming/load_csv.py", "--dry-run", path]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=side, check=True, timeout=60)
    os.close(side)
    shown = os.read(terminal, 1 << 20).decode()
    os.close(terminal)
    assert done.stdout.decode().startswith(f"{path}: raw_access_events rows=2 stored=1 duplicates=0 dead=1 ")
    assert f"{path} 2 rows" in shown
    assert "100%" in shown


def test_without_postgres_it_is_one_line_that_names_the_settings(loads: Loads) -> None:
    out, err = loads.run(loads.put_events("events.csv", 1), code=1, PGPORT="1")
    assert out == ""
    assert "no PostgreSQL: " in err
    assert "Set PGHOST, PGPORT" in err


@pytest.mark.parametrize(
    "arguments",
    [(), ("--table", "doors", "x"), ("--delimiter", "ab", "x"), ("--mapping", "/nowhere", "x"),
     ("--batch-size", "0", "x")],
    ids=" ".join,
)  # fmt: skip
def test_what_it_does_not_understand_is_refused(loads: Loads, arguments: tuple[str, ...]) -> None:
    _, err = loads.run(*arguments, code=2)
    assert "usage: " in err


def test_a_file_and_the_stream_at_once_store_each_event_once(stream: Stream, tmp_path: Path) -> None:
    loads = Loads(stream.environment, tmp_path)
    path = loads.put_events("events.csv", 20_000)
    with stream.consumer() as running, loads.script(path, "--batch-size", "500") as process:
        stream.send_events(20_000)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        stream.wait_until_consumed(running)
    assert stream.stored() == sorted(event_id(number) for number in range(20_000))
    ledger = stream.ledger()[EVENTS.topic]
    [(rows, stored, duplicates, dead, balanced, ended)] = loads.rows(HISTORY)
    assert (rows, dead, balanced, ended) == (20_000, 0, True, True)
    assert stored + ledger["stored"] == duplicates + ledger["duplicates"] == 20_000


def test_starting_waits_for_no_load(loads: Loads) -> None:
    with closing(loads.connect()) as writer, writer.cursor() as cursor:
        cursor.execute(
            "INSERT INTO file_loads (sha256, table_name, columns, file_name, size_bytes) VALUES ('','','','',0)"
        )
        with closing(loads.connect()) as starter:
            with starter.cursor() as at_once:
                at_once.execute("SET lock_timeout = '2s'")
            pipeline_settings.apply_schema(starter)
