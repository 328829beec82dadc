"""What a running script tells of itself: metrics that agree with the ledger, health, one clear line when it cannot go
on, and neither a payload nor a password in any log."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_consumer import ROOT, Pipeline, get, wait_for

import pipeline_metrics
from contracts import CONTRACTS, DEVICES, EVENTS
from local_servers import free_port

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker
    from local_servers.postgres_server import PostgresServer

SECRET_VALUE, SECRET_PASSWORD = "attic-window-left-open", "not-the-password"


@pytest.fixture
def pipeline(kafka: KafkaBroker, database: dict[str, str], tmp_path: Path) -> Iterator[Pipeline]:
    with closing(Pipeline(kafka, database, tmp_path)) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def without_kafka(postgres: PostgresServer) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A consumer that finds no Kafka: started before the other tests, as it looks for one for twenty seconds."""
    with socket.socket() as unused:  # bound, not listening: refused
        unused.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{unused.getsockname()[1]}"
        env = {**os.environ, **postgres.environment(), "KAFKA_BOOTSTRAP_SERVERS": where, "CONSUMER_METRICS_PORT": "0"}
        command = [sys.executable, "streaming/kafka_consumer.py"]
        with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield where, process
            finally:
                process.kill()


def event(**changes: Any) -> bytes:
    record = {
        "event_id": str(uuid.uuid4()),
        "device_id": "lock-1",
        "event_ts": "2024-05-04T12:00:00Z",
        "event_type": "open",
        "trigger_source": "app",
    }
    return json.dumps(record | changes).encode()


def declared(prefix: str) -> set[str]:
    """The families of pipeline_metrics whose names begin so."""
    kinds = (prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram)
    metrics = [value for value in vars(pipeline_metrics).values() if isinstance(value, kinds)]
    return {name for metric in metrics for name in [metric.describe()[0].name] if name.startswith(prefix)}


def scraped(port: int) -> dict[str, dict[tuple[str, ...], float]]:
    """By sample name: the values by the labels' values, in the order of the labels' names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(get(port, "/metrics")):
        found.setdefault(family.name, {})
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(text for _, text in sorted(sample.labels.items()))] = sample.value
    return found


@pytest.mark.alone
def test_a_consumers_metrics_agree_with_the_ledger(pipeline: Pipeline) -> None:
    port, twin = free_port(), event()
    for value in (event(), twin, twin, event(event_type="ajar"), b"{"):
        pipeline.send(EVENTS.topic, value, b"lock-1")
    pipeline.send(EVENTS.topic, event(), b"another")
    pipeline.send(DEVICES.topic, b'{"device_id": "lock-1", "household_id": "h"}', b"lock-1")
    pipeline.flush()
    with pipeline.consumer(CONSUMER_METRICS_PORT=str(port)) as running:
        pipeline.wait_until_consumed(running)
        # the ledger is written a moment before the counters are; the lag is reported every five seconds
        wait_for(lambda: scraped(port)["consumer_records_consumed_total"].get((EVENTS.topic,)) == 6, running)
        wait_for(lambda: scraped(port).get("consumer_lag_seconds", {}).get((EVENTS.topic,)) is not None, running)
        found = scraped(port)
        report = json.loads(get(port, "/readyz"))
        assert json.loads(get(port, "/healthz"))["state"] == "running"
    assert declared("consumer_") <= found.keys()
    ledger = pipeline.ledger()
    assert ledger[EVENTS.topic] == {"consumed": 6, "stored": 3, "duplicates": 1, "dead": 2, "gaps": 0}
    for topic in (EVENTS.topic, DEVICES.topic):
        names = {"consumed": "consumed", "stored": "stored", "duplicates": "duplicate"}
        for column, name in names.items():
            assert found[f"consumer_records_{name}_total"][topic,] == ledger[topic][column]
    assert found["consumer_records_dead_total"] == {("bad_value", EVENTS.topic): 1, ("bad_json", EVENTS.topic): 1}
    assert found["consumer_key_mismatches_total"][EVENTS.topic,] == 1
    batches = found["consumer_batch_records_count"][()]
    assert batches >= 1
    assert found["consumer_batch_records_sum"][()] == 7
    assert found["consumer_commit_seconds_count"][()] == batches
    assert found["consumer_event_to_row_seconds_count"][()] > 0
    assert sum(found["consumer_lag_records"].values()) == 0
    assert {topic for _, topic in found["consumer_lag_records"]} == set(CONTRACTS)
    assert set(found["consumer_lag_seconds"].values()) == {0}
    assert found["consumer_state"] == {("starting",): 0, ("running",): 1, ("backing_off",): 0, ("stopping",): 0}
    assert "consumer_retries_total" not in found  # it has no sample yet
    assert found["consumer_fenced_total"] == {(): 0}
    assert "consumer_gap_records_total" not in found
    assert report["state"] == "running"
    assert report["detail"] == ""
    assert report["stuck"] is False
    assert report["seconds"] >= 0


def test_an_unready_consumer_is_healthy_and_says_why_it_is_not_ready(kafka: KafkaBroker, tmp_path: Path) -> None:
    port, nothing = free_port(), free_port()
    env = {
        **os.environ, "PGPORT": str(nothing), "PGHOST": "127.0.0.1", "CONSUMER_METRICS_PORT": str(port),
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
    }  # fmt: skip
    command, pipe = [sys.executable, "streaming/kafka_consumer.py"], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=pipe, text=True) as process:
        assert process.stderr
        line = process.stderr.readline()
        with pytest.raises(urllib.error.HTTPError) as refusal:
            get(port, "/readyz")
        with refusal.value as answer:
            report = json.load(answer)
        assert get(port, "/healthz")
        process.terminate()
        rest = process.stderr.read()
        assert process.wait(15) == 0
    assert "waiting for PostgreSQL (PGHOST, PGPORT): " in line
    assert answer.code == 503
    assert report["state"] in ("starting", "backing_off")
    assert report["stuck"] is False
    assert "stopped before PostgreSQL answered" in rest
    assert "Traceback" not in rest


def consumer_says(*arguments: str, **environment: str) -> tuple[int, list[str]]:
    """The exit code and the lines of a consumer that ends by itself."""
    command = [sys.executable, "streaming/kafka_consumer.py", *arguments]
    env = {**os.environ, "CONSUMER_METRICS_PORT": "0", **environment}
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout == ""
    return found.returncode, found.stderr.splitlines()


def test_a_taken_port_is_one_line_that_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = consumer_says(CONSUMER_METRICS_PORT=str(port))
    assert code == 1
    assert len(lines) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in lines[0]
    assert "CONSUMER_METRICS_PORT" in lines[0]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PGPASSWORD", SECRET_PASSWORD, "password authentication failed"),
        ("PGUSER", "nobody-at-all", "password authentication failed"),
        ("PGDATABASE", "nowhere", "does not exist"),
        ("PGSSLMODE", "require", "server does not support SSL"),
        ("PGSSLMODE", "verify-full", "server does not support SSL"),
    ],
)
def test_what_postgresql_refuses_is_not_waited_for(database: dict[str, str], name: str, value: str, words: str) -> None:
    code, lines = consumer_says(**{**database, name: value})
    assert code == 1
    assert len(lines) == 1, lines
    assert "PostgreSQL refuses: " in lines[0]
    assert words in lines[0]
    assert name in lines[0]
    assert SECRET_PASSWORD not in lines[0]


@pytest.mark.parametrize(
    "arguments",
    [["--doors"], ["--batch-size", "0"], ["--batch-size", "many"], ["--metrics-port", "65536"], ["now"]],
    ids=" ".join,
)
def test_what_it_does_not_understand_is_refused(arguments: list[str]) -> None:
    code, lines = consumer_says(*arguments)
    assert code == 2
    assert lines[0].startswith("usage: ")


def test_no_log_tells_a_payload_or_a_password(pipeline: Pipeline) -> None:
    for value in (
        event(trigger_source=SECRET_VALUE),
        event(event_type=SECRET_VALUE),
        event(event_ts=SECRET_VALUE),
        event(x=SECRET_VALUE + "\0"),
        SECRET_VALUE.encode(),
        f'{{"{SECRET_VALUE}'.encode(),
    ):
        pipeline.send(EVENTS.topic, value, SECRET_VALUE.encode(), [(SECRET_VALUE, SECRET_VALUE.encode())])
    pipeline.send(DEVICES.topic, b'{"device_id": "lock-1", "household_id": "h"}', SECRET_VALUE.encode())
    pipeline.flush()
    pipeline.execute("ALTER TABLE raw_access_events ADD CHECK (device_id <> 'refused-one')")
    pipeline.send(EVENTS.topic, event(device_id="refused-one", trigger_source=SECRET_VALUE), b"refused-one")
    pipeline.flush()
    role = f"reader_{uuid.uuid4().hex[:8]}"
    pipeline.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{SECRET_PASSWORD}'")
    try:
        with pipeline.consumer(LOG_LEVEL="DEBUG", PGUSER=role, PGPASSWORD=SECRET_PASSWORD) as running:
            pipeline.wait_until_consumed(running)
    finally:
        pipeline.execute(f"DROP ROLE {role}")
    assert pipeline.ledger()[EVENTS.topic]["dead"] == 6
    # kafka-python at DEBUG prints the assignments and its requests; what it fetched is bytes that it does not print
    assert "DEBUG" in running.log
    own = [line for line in running.log.splitlines() if not re.search(r"DEBUG +kafka", line)]
    assert not [line for line in own if SECRET_VALUE in line or "refused-one" in line or SECRET_PASSWORD in line]
    assert SECRET_PASSWORD not in running.log
    assert SECRET_VALUE not in running.log
    reasons = pipeline.one("SELECT string_agg(reason, ' ' ORDER BY reason) FROM dead_letters")
    assert reasons == "bad_extra bad_json bad_json bad_time bad_value key_mismatch refused_by_database"


def test_a_producers_metrics_are_all_there(kafka: KafkaBroker) -> None:
    port = free_port()
    command = [sys.executable, "streaming/kafka_producer.py", "--bootstrap-servers", kafka.bootstrap_servers]
    env = {**os.environ, "PRODUCER_METRICS_PORT": str(port)}
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--rate", "1"], cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr
        try:
            process.stderr.readline()  # it says what it is about to send
            found = scraped(port)
        finally:
            process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert declared("producer_") <= found.keys()


def test_a_missing_kafka_is_one_line_that_names_the_setting(without_kafka: tuple[str, subprocess.Popen[str]]) -> None:
    where, process = without_kafka
    lines = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 1
    assert len(lines) == 1, lines
    assert f"no Kafka at {where} (KAFKA_BOOTSTRAP_SERVERS): " in lines[0]
