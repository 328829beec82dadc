"""What the servers say before anything starts: settings, ports, processes, and whether the books balance."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from local_servers import ServerError, free_port, port_setting, require_free_port, stack
from local_servers.daemon import Daemon
from local_servers.demo import account_table
from local_servers.kafka_cluster import names
from local_servers.postgres_server import PostgresServer
from local_servers.reconciliation import TopicAccount, total

FOREVER = "import time; print('at work', flush=True); time.sleep(600)"


@pytest.fixture
def process(tmp_path: Path) -> Daemon:
    return Daemon("sample", tmp_path, tmp_path / "sample.log")


@pytest.mark.parametrize("text", ["none", "0", "65536", "-1", "80.5"])
def test_a_port_that_is_none_is_refused_naming_the_setting(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_PORT", text)
    with pytest.raises(ServerError, match=f"AIRFLOW_PORT={text} is not a port"):
        port_setting("AIRFLOW_PORT", 8080)


def test_an_empty_port_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_PORT", "")
    assert port_setting("AIRFLOW_PORT", 8080) == 8080


def test_a_port_is_free_as_soon_as_its_server_has_closed() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} is in use: set X"):
            require_free_port(port, "set X")
    require_free_port(port, "set X")


def test_a_port_that_was_chosen_is_kept_from_others_until_its_server_takes_it() -> None:
    port = free_port()
    with socket.socket() as somebody, pytest.raises(OSError, match="in use"):
        somebody.bind(("127.0.0.1", port))
    require_free_port(port, "set X")
    # If they were only looked for, some thirty would come twice
    ports = [free_port() for _ in range(1000)]
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize(
    ("settings", "kafka_is_ours", "postgres_is_ours"),
    [
        ({}, True, True),
        ({"PGHOST": "localhost", "KAFKA_BOOTSTRAP_SERVERS": "localhost:19092"}, True, True),
        ({"PGHOST": "db.example", "KAFKA_BOOTSTRAP_SERVERS": "kafka.example:9092"}, False, False),
        ({"PGHOST": "/var/run/postgresql"}, True, False),
        ({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9092,127.0.0.1:9094"}, False, True),
        ({"STACK_EXTERNAL": "kafka"}, False, True),
        ({"STACK_EXTERNAL": "kafka,postgres"}, False, False),
    ],
)
def test_only_servers_that_the_settings_place_here_are_ours(
    settings: dict[str, str], kafka_is_ours: bool, postgres_is_ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "KAFKA_BOOTSTRAP_SERVERS", "STACK_EXTERNAL"):
        monkeypatch.setenv(name, settings.get(name, ""))
    assert (stack.local_kafka() is not None) == kafka_is_ours
    assert (stack.local_postgres() is not None) == postgres_is_ours


def data_of(folder: Path, brokers: int) -> None:
    for name in names(brokers):
        (folder / name / "log").mkdir(parents=True)
        (folder / name / "log" / "meta.properties").touch()


@pytest.mark.parametrize(
    ("found", "asked", "servers", "ports"),
    [
        (0, None, "127.0.0.1:9092", [9092]),
        (0, 3, "127.0.0.1:9092", [9092, 9093, 9094]),
        (3, None, "127.0.0.1:19092", [19092, 19093, 19094]),
        (3, 3, "127.0.0.1:1,127.0.0.1:5,localhost:9", [1, 5, 9]),
        (3, None, "127.0.0.1:1,127.0.0.1:5", None),
        (3, None, "127.0.0.1:1,127.0.0.1:5,kafka.example:9", None),
        (1, None, "127.0.0.1:1,127.0.0.1:5,127.0.0.1:9", None),
    ],
)
def test_a_cluster_listens_where_the_settings_say_or_on_the_ports_that_follow(
    found: int, asked: int | None, servers: str, ports: list[int] | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("STACK_DIR", str(tmp_path))
    monkeypatch.setenv("STACK_EXTERNAL", "")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", servers)
    data_of(tmp_path, found) if found else None
    kafka = stack.local_kafka(asked)
    assert (None if kafka is None else [broker.port for broker in kafka.brokers]) == ports


@pytest.mark.parametrize(("found", "asked"), [(1, 3), (3, 1)])
def test_data_of_another_number_of_brokers_is_refused(
    found: int, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACK_DIR", str(tmp_path))
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "")
    data_of(tmp_path, found)
    with pytest.raises(ServerError, match=rf"is of {found} broker\(s\), not of {asked}: set STACK_DIR .* reset"):
        stack.local_kafka(asked)


def test_a_folder_without_the_programs_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POSTGRES_BIN_DIR", str(tmp_path))
    with pytest.raises(ServerError, match=f"POSTGRES_BIN_DIR={tmp_path} has no initdb"):
        PostgresServer(tmp_path / "data", 1).start()


def test_a_process_is_found_and_ended_by_another_program(process: Daemon, tmp_path: Path) -> None:
    process.start([sys.executable, "-c", FOREVER])
    other = Daemon("sample", tmp_path, tmp_path / "sample.log")
    assert other.pid == process.pid
    with pytest.raises(ServerError, match="runs already"):
        other.start([sys.executable, "-c", FOREVER])
    assert other.stop()
    assert not process.is_running()
    assert not other.is_running()


def test_a_pid_that_another_process_got_is_not_ours(process: Daemon, tmp_path: Path) -> None:
    (tmp_path / "sample.pid").write_text("1 0.0\n")
    assert not process.is_running()
    process.kill()


def test_a_process_that_does_not_end_is_killed_with_its_children(process: Daemon) -> None:
    stubborn = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"child = subprocess.Popen([sys.executable, '-c', {FOREVER!r}]); print(child.pid, flush=True); time.sleep(600)"
    )
    process.start([sys.executable, "-c", stubborn])
    process.wait_until(lambda: "at work" in process.log_file.read_text(), timeout_s=20)
    running = process.process()
    assert running is not None
    children = running.children()
    assert process.stop(timeout_s=0.1) is False
    assert not process.is_running()
    assert children
    assert all(not child.is_running() or child.status() == psutil.STATUS_ZOMBIE for child in children)


def test_a_start_that_fails_shows_the_end_of_this_starts_log(process: Daemon) -> None:
    process.log_file.write_text("an old line\n")
    process.start([sys.executable, "-c", "raise SystemExit('no such planet')"])
    with pytest.raises(ServerError, match="sample ended while starting") as caught:
        process.wait_until(lambda: False, timeout_s=20)
    assert "no such planet" in str(caught.value)
    assert "an old line" not in str(caught.value)


def test_a_start_that_fails_shows_the_first_error_though_the_log_goes_on_after_it(process: Daemon) -> None:
    lines = ["an old ERROR", "INFO begins", "INFO at port 1", "ERROR no port", "Caused by: one who has it"]
    process.log_file.write_text(lines[0] + "\n")
    said = [*lines[1:], "ERROR ends", *(f"INFO ends {number}" for number in range(100))]
    process.start([sys.executable, "-c", f"print({chr(10).join(said)!r})"])
    with pytest.raises(ServerError) as caught:
        process.wait_until(lambda: False, timeout_s=20)
    _, *shown = str(caught.value).splitlines()
    assert [line.strip() for line in shown] == [*lines[3:], *said[-15:]]


def test_a_start_that_takes_too_long_is_stopped(process: Daemon) -> None:
    process.start([sys.executable, "-c", FOREVER])
    with pytest.raises(ServerError, match="sample is not ready after 0 s"):
        process.wait_until(lambda: False, timeout_s=0.1)
    assert not process.is_running()


def test_a_process_keeps_out_of_the_terminals_reach(process: Daemon) -> None:
    process.start([sys.executable, "-c", FOREVER])
    assert process.pid is not None
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    process.stop(signal.SIGKILL)


@pytest.mark.parametrize(
    ("account", "balanced"),
    [
        (TopicAccount("t", produced=10, stored=7, duplicates=2, dead=1), True),
        (TopicAccount("t", produced=10, stored=7, duplicates=1, dead=1, gaps=1), True),
        (TopicAccount("t", produced=10, stored=7, duplicates=1, dead=1, suppressed=1), True),
        (TopicAccount("t", produced=10, stored=7, duplicates=2), False),
        (TopicAccount("t", produced=9, stored=7, duplicates=2, dead=1), False),
        (TopicAccount("t", produced=10, stored=7, duplicates=2, dead=1, partitions_balanced=False), False),
    ],
)
def test_the_books_balance_only_if_each_record_has_one_fate(account: TopicAccount, balanced: bool) -> None:
    assert account.balanced == balanced


def test_two_wrongs_in_two_topics_do_not_make_a_right() -> None:
    missing, surplus = TopicAccount("a", produced=5, stored=4), TopicAccount("b", produced=5, stored=6)
    both = total([missing, surplus])
    assert both.produced == both.stored
    assert not both.balanced


def test_the_table_says_which_topic_does_not_balance() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(account_table([TopicAccount("a", produced=5, stored=5), TopicAccount("b", produced=1)], "balanced"))
    verdicts = {
        cells[0].strip(): cells[-1].strip()
        for cells in (line.strip("│").split("│") for line in console.export_text().splitlines() if "│" in line)
    }
    assert verdicts == {"a": "yes", "b": "NO", "all": "NO"}
