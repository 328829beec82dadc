"""Faults under load, then everything must agree; and if anything did not, the count would say so."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from chaos_run import Run
from faults import AIRFLOW_FAULTS, KINDS, Planned, kinds_to_be_had, plan
from independent_count import IndependentCount
from kafka import KafkaProducer
from numbered_events import HEADER, partition, topic, value
from onlooker import DATABASE
from stage import Stage

from local_servers import ROOT

# a server that ends leaves kafka-python with sockets that it forgets to close
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]

RATE = 300
RE_LINES = re.DOTALL | re.MULTILINE
IN_SHORT = (
    "consumer killed",
    "Kafka killed",
    "producer killed",
    "PostgreSQL killed",
    "disk full",
    "consumer-PostgreSQL half-open",
)


def a_run(folder: Path, with_airflow: bool = False) -> tuple[Stage, Run]:
    folder.mkdir()
    stage = Stage(folder, RATE, with_airflow)
    return stage, Run(stage, folder / "results.jsonl", threading.Event(), print)


@pytest.fixture(scope="module")
def after_a_round(servers_folder: Path) -> Iterator[Run]:
    """A run of one short round, at rest."""
    stage, run = a_run(servers_folder / "chaos")
    with closing(stage):
        stage.start()
        kinds = [kind for kind in IN_SHORT if kind in kinds_to_be_had(stage)]
        faults = [[Planned(kind, 0.3, KINDS[kind].shortest_s + 0.2)] for kind in kinds]
        run.go(faults, len(faults), 600, len(faults))
        yield run


def test_a_round_of_faults_loses_nothing_and_doubles_nothing(after_a_round: Run) -> None:
    assert after_a_round.problems == []
    counts = after_a_round.count.total()
    assert counts["stored"] > RATE
    assert counts["duplicates"] > 0
    assert counts["dead"] > 0
    [*_, anew] = after_a_round.lines
    assert anew["what"] == "count from offset 0"
    assert anew["counts"] == dict(counts)


def test_no_kind_of_fault_was_left_out(after_a_round: Run) -> None:
    if after_a_round.stage.lacks:
        pytest.skip("; ".join(after_a_round.stage.lacks))
    assert kinds_to_be_had(after_a_round.stage) == [kind for kind in KINDS if kind not in AIRFLOW_FAULTS]
    assert [line["fault"] for line in after_a_round.lines if "fault" in line] == [[kind] for kind in IN_SHORT]


# What is done to the tables, and what the count says of it
WRONGS = {
    "a row is lost": (
        "DELETE FROM raw_access_events WHERE ctid = (SELECT min(ctid) FROM raw_access_events)",
        "rows (offset, number) missing",
    ),
    "a report is lost": (
        "DELETE FROM raw_device_health WHERE ctid = (SELECT min(ctid) FROM raw_device_health)",
        "rows (offset, number) missing",
    ),
    "a row was never sent": (
        "INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)"
        " VALUES (gen_random_uuid(), 'd', now(), 'open', 'app')",
        "raw_access_events has",
    ),
    "a row says another record": (
        "UPDATE raw_access_events SET kafka_offset = kafka_offset + 1"
        " WHERE ctid = (SELECT min(ctid) FROM raw_access_events)",
        "rows (offset, number) too many",
    ),
    "a record was stored and read again": (
        "UPDATE ingest_offsets SET stored = stored - 1, duplicates = duplicates + 1"
        " WHERE topic = 'smart-access.events' AND partition = 0",
        "ledger",
    ),
    "a minute is lost": (
        "DELETE FROM ingest_minutes WHERE topic = 'smart-access.health' AND partition = 1",
        "ledger",
    ),
    "a dead letter is lost": (
        "DELETE FROM dead_letters WHERE dead_letter_id = (SELECT min(dead_letter_id) FROM dead_letters)",
        "dead letters missing",
    ),
}


def differences(run: Run, statement: str = "SELECT", journal: Path | None = None) -> list[str]:
    """What a count from offset 0 says after a statement, which is taken back."""
    with closing(run.stage.postgres.connect(DATABASE)) as connection, connection.cursor() as cursor:
        connection.autocommit = False
        cursor.execute(statement)

        def rows(statement: str, *values: Any) -> list[Any]:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall())

        count = IndependentCount(run.stage.broker.admin_connection(), rows)
        for known in [*run.stage.folder.glob("journal-*"), *([journal] if journal else [])]:
            count.read(known)
        return count.differences()


@pytest.mark.parametrize("wrong", WRONGS)
def test_the_count_finds_that(after_a_round: Run, wrong: str) -> None:
    statement, said = WRONGS[wrong]
    assert differences(after_a_round) == []
    found = differences(after_a_round, statement)
    assert any(said in difference for difference in found), found


def test_the_count_finds_what_kafka_has_lost(after_a_round: Run, tmp_path: Path) -> None:
    lost = after_a_round.count.last_number + 1
    journal = tmp_path / "journal"
    journal.write_text(f"tried {lost}\nacknowledged {lost}\n")
    assert differences(after_a_round, journal=journal) == [f"acknowledged, and not in Kafka: number {lost} (1)"]


def test_the_count_finds_what_the_producer_has_not_got_through(after_a_round: Run, tmp_path: Path) -> None:
    left = after_a_round.count.last_number + 1
    journal = tmp_path / "journal"
    journal.write_text(f"tried {left}\n")
    assert differences(after_a_round, journal=journal) == [f"never acknowledged: number {left} (1)"]


def test_the_count_finds_what_kafka_has_doubled(after_a_round: Run) -> None:
    number = 5
    with closing(KafkaProducer(**after_a_round.stage.broker.admin_connection())) as kafka:
        doubled = kafka.send(
            topic(number), value(number), partition=partition(number), headers=[(HEADER, str(number).encode())]
        )
        offset = doubled.get(30).offset
    place = (topic(number), partition(number))
    found = "\n".join(differences(after_a_round))
    assert f"{place} at {offset}: number {number} once more than the" in found


def test_every_kind_of_fault_and_two_at_once(servers_folder: Path) -> None:
    stage, run = a_run(servers_folder / "chaos-of-every-kind")
    with closing(stage):
        stage.start()
        kinds = kinds_to_be_had(stage)
        assert run.go(plan(kinds, seed=7), len(kinds), 3600, 12), run.problems
        assert {kind for line in run.lines for kind in line.get("fault", [])} >= set(kinds)


def test_whatever_befalls_airflow_the_marts_become_what_the_tables_are(servers_folder: Path) -> None:
    stage, run = a_run(servers_folder / "chaos-of-airflow", with_airflow=True)
    with closing(stage):
        stage.start()
        kinds = [*AIRFLOW_FAULTS, "PostgreSQL killed"]
        assert run.go(plan(kinds, seed=3), len(kinds), 3600, 3), run.problems
        assert {kind for line in run.lines for kind in line.get("fault", [])} >= set(kinds)
        assert [line["differences"] for line in run.lines if line.get("what") == "marts"] == [[], []]


def test_at_ctrl_c_the_fault_under_way_ends_and_all_is_counted() -> None:
    soak = [sys.executable, str(ROOT / "tests/chaos/soak.py"), "--hours", "1", "--only", "producer paused"]
    with subprocess.Popen(soak, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "lasted" in line:
                break
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 0, said
    assert re.search(r"^ending: .*^\S+ round 1: .*: agrees$.*^\S+ count from offset 0 1: .*: agrees$", said, RE_LINES)
    assert re.search(r"^[12] faults, seed \d+: nothing lost, nothing doubled$", said, RE_LINES)
