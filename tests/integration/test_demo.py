"""The commands as a person runs them: scripts/stack keeps data and scripts/demo balances, on real servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from local_servers import ROOT, ServerError, free_port, kafka_jars, require_free_port
from local_servers.monitoring import PORTS, find_programs


@pytest.fixture
def environment(servers_folder: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings with a state folder and ports of their own; what runs there at the end is ended."""
    state = servers_folder / request.node.name
    state.mkdir()
    (state / "jars").symlink_to(kafka_jars.jars_folder())
    ports = ("PGPORT", "AIRFLOW_PORT", "STREAMLIT_PORT", "KAFKA_UI_PORT")
    settings = {
        **os.environ,
        **{name: str(free_port()) for name in (*ports, *(setting for setting, _ in PORTS.values()))},
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
        "PGHOST": "127.0.0.1",
        "STACK_DIR": str(state),
        "STACK_EXTERNAL": "",
    }
    yield settings
    run_stack(settings, "down")


def run_stack(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "local_servers.stack", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


def commands(said: str) -> list[str]:
    """What `up` tells people to type in their two terminals."""
    return [line.strip() for line in said.splitlines() if line.strip().startswith("source ")]


@contextmanager
def in_a_terminal(command: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A line as typed into a shell; Ctrl+C ends it, with exit code 0, after the block."""
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    line = command.replace("&& ", "&& exec ")  # so that the signal reaches it
    with subprocess.Popen(
        ["bash", "-c", line], cwd=ROOT, env=environment, stdout=pipe, stderr=both, text=True
    ) as process:
        try:
            yield process
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 0, said
        finally:
            process.kill()  # does nothing to one that has ended


@contextmanager
def running_demo(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A demo as a shell's background job, which inherits the signal of Ctrl+C ignored."""
    command = ["bash", "-c", "trap '' INT; exec \"$@\"", "demo", sys.executable, "-m", "local_servers.demo"]
    command += ["--no-airflow", "--no-ui", "--no-dashboard", *arguments]
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=both, text=True) as demo:
        try:
            yield demo
        finally:
            demo.kill()  # does nothing to one that has ended


def psql(environment: dict[str, str], statement: str) -> str:
    """As `up` tells people to: after sourcing the file that it wrote."""
    line = f'source "$STACK_DIR/env" && psql -U postgres -d smart_access -qAt -c "{statement}"'
    answer = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def pids(environment: dict[str, str]) -> list[str]:
    return [(Path(environment["STACK_DIR"]) / f"{name}.pid").read_text() for name in ("kafka", "postgres")]


@pytest.mark.slow
def test_the_stack_keeps_its_data_until_it_is_reset(environment: dict[str, str]) -> None:
    first = run_stack(environment, "up")
    assert first.returncode == 0, first.stderr
    assert "python streaming/kafka_consumer.py" in first.stdout
    psql(environment, "insert into raw_households (household_id, updated_at) values ('kept', now())")
    running = pids(environment)
    assert run_stack(environment, "up").returncode == 0
    assert pids(environment) == running
    assert run_stack(environment, "status").returncode == 0

    assert run_stack(environment, "down").returncode == 0
    assert run_stack(environment, "status").returncode == 1
    assert run_stack(environment, "up").returncode == 0
    assert psql(environment, "select household_id from raw_households") == "kept"

    state = Path(environment["STACK_DIR"])
    (state / "drop").mkdir()  # somebody's files
    assert run_stack(environment, "reset", "--yes").returncode == 0
    assert sorted(path.name for path in state.iterdir()) == ["drop", "jars"]


def test_a_port_in_use_ends_the_start_in_one_line(environment: dict[str, str], kafka: object) -> None:
    taken = environment | {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}  # type: ignore[attr-defined]
    refused = run_stack(taken, "up")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "set KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:<free port>" in refused.stderr


def wait_for_line(demo: subprocess.Popen[str], words: str) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if words in line:
            return
    pytest.fail(f"the demo ended without saying: {words}")


def test_the_demo_ends_in_order_at_ctrl_c_and_balances(environment: dict[str, str]) -> None:
    with running_demo(environment) as demo:
        wait_for_line(demo, "new rows are in the tables after")
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, output
    steps = ["stopping the producer", "the consumer drains", "it balances", "stopping kafka …", "stopping postgres …"]
    assert [output.index(step) for step in steps] == sorted(output.index(step) for step in steps)
    assert run_stack(environment, "status").returncode == 1


@pytest.mark.slow
def test_the_demo_says_which_part_died_and_fails(environment: dict[str, str]) -> None:
    with running_demo(environment) as demo:
        wait_for_line(demo, "new rows are in the tables after")
        pid = int((Path(environment["STACK_DIR"]) / "consumer.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        output, _ = demo.communicate(timeout=120)
    assert demo.returncode == 1
    assert "consumer has ended by itself. The end of" in output
    assert run_stack(environment, "status").returncode == 1
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
def test_the_demo_ends_by_itself_after_its_minutes(environment: dict[str, str]) -> None:
    began = time.monotonic()
    with running_demo(environment, "--minutes", "0.1") as demo:
        output, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, output
    assert time.monotonic() - began >= 6


def can_be_monitored() -> bool:
    try:
        find_programs()
    except ServerError:
        return False
    return True


def first_of_free_ports(count: int) -> int:
    """The first of neighbours that nothing listens on now."""
    while True:
        first = free_port()
        try:
            for port in range(first, first + count):
                require_free_port(port, "")
        except (ServerError, OverflowError):
            continue
        return first


@pytest.mark.slow
def test_a_secured_cluster_works_by_the_lines_that_up_prints(environment: dict[str, str]) -> None:
    watched = environment | {"KAFKA_METRICS_PORT": str(first_of_free_ports(3))}
    monitoring = ["--monitoring"] if can_be_monitored() else []
    made = run_stack(watched, "up", "--brokers", "3", "--secure", *monitoring)
    assert made.returncode == 0, made.stderr
    assert "tells no metrics" not in made.stdout  # as it would of a broker that does not
    consume, produce = commands(made.stdout)
    # a shell that knows nothing of it
    plain = {name: value for name, value in environment.items() if not name.startswith(("KAFKA_", "PG"))}
    with in_a_terminal(consume, plain), in_a_terminal(produce, plain):
        deadline = time.monotonic() + 60
        while psql(environment, "select count(*) from raw_access_events") == "0":
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert psql(environment, "select bool_and(balanced) from ingest_ledger") == "t"
    assert run_stack(environment, "down").returncode == 0
    again = run_stack(environment, "up")
    assert commands(again.stdout) == [consume, produce]
    assert "SASL_SSL" in again.stdout
    other = run_stack(environment, "up", "--brokers", "1")
    assert (other.returncode, other.stdout) == (1, "")
    assert "is of 3 broker(s), not of 1" in other.stderr
