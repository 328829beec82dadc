"""Two runs of dbt at once: the later one waits, and the lock ends with whoever held it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline_settings
from pipeline_settings import POSTGRES_DEFAULTS, ROOT

SCRIPT = ROOT / "dbt/one_at_a_time.py"
PLAIN = [sys.executable, "-c", "from dbt.cli.main import cli; cli()"]
BUILD = ["build", "--selector", "models"]


MORE_ROWS = """
    INSERT INTO raw_households (household_id, region, timezone, updated_at)
    SELECT 'h' || n, 'r' || trunc(random() * 5), 'Europe/Berlin', now() FROM generate_series(0, 9) AS n
    ON CONFLICT (household_id)
    DO UPDATE SET region = excluded.region, updated_at = now(), ingested_at = now();

    INSERT INTO raw_devices (device_id, household_id, firmware_version, updated_at)
    SELECT 'd' || n, 'h' || n / 3, random(), now() FROM generate_series(0, 29) AS n
    ON CONFLICT (device_id)
    DO UPDATE SET firmware_version = excluded.firmware_version, updated_at = now(), ingested_at = now();

    INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)
    SELECT gen_random_uuid(), 'd' || trunc(random() * 30), now() - random() * interval '3 days',
           (array['open', 'close', 'fail'])[1 + trunc(random() * 3)], 'app'
    FROM generate_series(1, 500);

    INSERT INTO raw_device_health (device_id, reported_at, battery_pct, signal_strength_dbm, is_online)
    SELECT 'd' || trunc(random() * 30), now() - random() * interval '3 days', random() * 100, -60, random() > 0.1
    FROM generate_series(1, 500)
"""


def execute(warehouse: Any, statement: str) -> list[tuple[Any, ...]]:
    with warehouse.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(command: list[str], target: str) -> subprocess.Popen[str]:
    """A dbt in a process of its own; the fixture `dbt` has put its settings into the environment."""
    environment = {**os.environ, "DBT_TARGET_PATH": os.environ["DBT_TARGET_PATH"] + target}
    both = subprocess.STDOUT
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=both, text=True, cwd="/")


def all_rows(warehouse: Any) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of what the models make, as text, in an order of its own."""
    tables = execute(
        warehouse,
        """SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables
           WHERE table_schema IN ('marts', 'intermediate', 'staging')
             AND table_name NOT IN ('model_watermarks', 'dbt_runs')""",
    )
    return {name: execute(warehouse, f"SELECT t::text FROM {name} AS t ORDER BY 1") for (name,) in tables}  # noqa: S608


def test_the_defaults_are_those_of_the_scripts() -> None:
    assert runpy.run_path(str(SCRIPT))["DEFAULTS"] == POSTGRES_DEFAULTS


@pytest.mark.slow
def test_of_two_runs_at_once_one_waits_for_the_other(dbt: Any, warehouse: Any) -> None:
    lock = runpy.run_path(str(SCRIPT))["LOCK"]
    waiting = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = {lock[0]} AND NOT granted"  # noqa: S608
    holder = pipeline_settings.connect_postgres("tests")
    with holder.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", lock)
    runs = [start([sys.executable, str(SCRIPT), "--no-use-colors", *BUILD], name) for name in "ab"]
    wait_until(lambda: execute(warehouse, waiting) == [(2,)])
    assert execute(warehouse, "SELECT to_regclass('marts.fct_access_events')") == [(None,)]
    holder.close()  # as a killed run's connection does
    for run in runs:
        said, _ = run.communicate(timeout=120)
        assert run.returncode == 0, said
        assert "another dbt run is at work on this database: waiting" in said
        assert "ERROR=0" in said
    assert execute(warehouse, "SELECT count(*) FROM marts.fct_access_events") == [(0,)]


def test_a_run_that_has_waited_too_long_says_so_and_does_nothing(
    dbt: Any, warehouse: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(script["main"].__globals__, "WAIT_S", 0.1)
    execute(warehouse, "SELECT pg_advisory_lock({}, {})".format(*script["LOCK"]))
    with pytest.raises(SystemExit, match="another dbt run has been at work on this database for more than"):
        script["main"]()
    assert "waiting for its end" in capsys.readouterr().out


def test_a_server_that_does_not_answer_is_told(dbt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATABASE", "nowhere")
    with pytest.raises(SystemExit, match=r'no lock, so no dbt: .*"nowhere" does not exist'):
        runpy.run_path(str(SCRIPT))["main"]()


def test_the_password_may_be_in_a_file(
    dbt: Any, warehouse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text(os.environ["PGPASSWORD"] + "\n")
    monkeypatch.setenv("PGPASSWORD_FILE", str(file))
    monkeypatch.setenv("PGPASSWORD", "")
    run = start([sys.executable, str(SCRIPT), "debug", "--connection"], "file")
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    monkeypatch.setenv("PGPASSWORD_FILE", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match=r"PGPASSWORD_FILE=.*none cannot be read"):
        runpy.run_path(str(SCRIPT))["main"]()


def test_a_key_for_pseudonyms_that_can_be_guessed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    monkeypatch.setenv("PSEUDONYM_KEY", "secret")
    with pytest.raises(SystemExit, match="PSEUDONYM_KEY is too short: 32 characters at least"):
        main()
    monkeypatch.setenv("PSEUDONYM_KEY", "")
    monkeypatch.setenv("PSEUDONYM_KEY_FILE", str(tmp_path / "key"))
    (tmp_path / "key").write_text("\n")
    with pytest.raises(SystemExit, match=r"PSEUDONYM_KEY_FILE=.*key is empty"):
        main()


@pytest.mark.slow
def test_plain_runs_at_once_may_fail_and_the_next_run_equals_a_full_refresh(dbt: Any, warehouse: Any) -> None:
    execute(warehouse, MORE_ROWS)
    assert dbt(*BUILD).success
    for _ in range(2):
        execute(warehouse, MORE_ROWS)
        runs = [start([*PLAIN, *BUILD], name) for name in "ab"]
        execute(warehouse, MORE_ROWS)
        for run in runs:
            run.communicate(timeout=120)
    assert dbt(*BUILD).success
    found = all_rows(warehouse)
    assert len(found["marts.fct_access_events"]) == 2500
    assert dbt(*BUILD, "--full-refresh").success
    assert all_rows(warehouse) == found
