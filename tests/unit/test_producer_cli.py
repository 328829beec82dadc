"""The producer's command line: what it refuses, what it says of itself, and how it ends when there is no broker."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kafka.errors import KafkaConnectionError
from kafka.partitioner import murmur2

import kafka_log
import kafka_producer
from delivery import Tally
from kafka_producer import parse_arguments, timeline

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "NUM_HOUSEHOLDS": "households",
    "NUM_DEVICES_PER_HOUSEHOLD": "devices_per_household",
    "EVENT_RATE_PER_DEVICE": "rate",
    "HEALTH_CHECK_INTERVAL": "health_interval",
    "PRODUCER_METRICS_PORT": "metrics_port",
}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*SETTINGS, "KAFKA_BOOTSTRAP_SERVERS", "LOG_LEVEL", "LOG_FORMAT"]:
        monkeypatch.delenv(name, raising=False)


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "streaming/kafka_producer.py", *arguments]
    pipe = subprocess.PIPE
    env = {**os.environ, "PRODUCER_METRICS_PORT": "0", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)


def test_defaults_are_the_documented_ones() -> None:
    args = parse_arguments([])
    assert {name: getattr(args, field) for name, field in SETTINGS.items()} == {
        "NUM_HOUSEHOLDS": 100,
        "NUM_DEVICES_PER_HOUSEHOLD": 3,
        "EVENT_RATE_PER_DEVICE": 0.1,
        "HEALTH_CHECK_INTERVAL": 30,
        "PRODUCER_METRICS_PORT": 9102,
    }
    assert (args.profile, args.duration, args.max_events, args.max_speed) == ("load", None, None, False)


@pytest.mark.parametrize(("name", "field"), SETTINGS.items())
def test_a_setting_beats_the_default_and_a_flag_beats_the_setting(
    name: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "7")
    assert getattr(parse_arguments([]), field) == 7
    assert getattr(parse_arguments([f"--{field.replace('_', '-')}", "8"]), field) == 8


def test_help_shows_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--help"])
    assert ended.value.code == 0
    options = re.split(r"\n  (?=--)", capsys.readouterr().out)[1:]
    assert len(options) == 27
    for text in options:
        assert "(default:" in text or text.startswith("--max-speed"), text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--households", "0"], "must be from 1 to 1e+06"),
        (["--rate", "-1"], "must be from 0 to 10000"),
        (["--rate", "nan"], "must be from 0 to 10000"),
        (["--rate", "fast"], "'fast' is not a number"),
        (["--duration", "-5"], "must be from 0 to 1e+07"),
        (["--malformed-share", "1.5"], "must be from 0 to 1"),
        (["--metrics-port", "70000"], "must be from 0 to 65535"),
        (["--profile", "heavy"], "load"),
        (["--max-speed"], "--max-speed needs --duration or --max-events"),
        (["--start", "2026-01-01"], "--start needs --max-speed"),
        (["--max-speed", "--duration", "1", "--start", "2999-01-01"], "must be from 2000-01-01 to now"),
        (["--max-speed", "--duration", "1", "--start", "monday"], "is not a date-time"),
        (["--transactional-id", ""], "needs a name"),
    ],
)
def test_refuses_a_bad_value_and_names_what_is_valid(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_live_stream_starts_now_and_history_ends_now() -> None:
    now = datetime.now(UTC)
    begin, last = timeline(parse_arguments(["--duration", "10"]))
    assert abs(begin - now) < timedelta(seconds=5)
    assert last == 600
    begin, last = timeline(parse_arguments(["--max-speed", "--duration", "1440"]))
    assert abs(begin - now + timedelta(days=1)) < timedelta(seconds=5)
    assert last == 86_400
    begin, last = timeline(parse_arguments(["--max-speed", "--max-events", "3000"]))  # 30 a second
    assert abs(begin - now + timedelta(seconds=100)) < timedelta(seconds=5)
    begin, last = timeline(parse_arguments(["--max-speed", "--duration", "1e7", "--start", "2026-01-01"]))
    assert last == pytest.approx((now - datetime(2026, 1, 1, tzinfo=UTC)).total_seconds(), abs=5)


def test_partitions_are_those_of_every_other_kafka_producer() -> None:
    tally = Tally("smart-access.events", 6)
    for number in range(500):
        key = f"hh-{number:05d}-d1".encode()
        assert tally.partition(key).partition == (murmur2(key) & 0x7FFFFFFF) % 6
        assert tally.partition(key) is tally.partition(key)
    # what the Java client's own test expects of its murmur2
    assert murmur2(b"21") - 2**32 == -973932308


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_looks_for_a_broker_it_ends_cleanly(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        silent.settimeout(20)
        with start("--bootstrap-servers", f"127.0.0.1:{silent.getsockname()[1]}") as producer:
            connection, _ = silent.accept()
            with connection:
                producer.send_signal(number)
                out, err = producer.communicate(timeout=30)
    assert producer.returncode == 0
    assert out == ""
    assert err.splitlines()[-1].endswith("stopped before anything was sent")


def test_a_port_in_use_is_one_line_that_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start(PRODUCER_METRICS_PORT=str(port)) as producer:
            _, err = producer.communicate(timeout=30)
    assert producer.returncode == 1
    assert len(err.splitlines()) == 1
    assert (
        f"cannot use 127.0.0.1:{port} (METRICS_HOST, PRODUCER_METRICS_PORT, 0 for none): Address already in use" in err
    )


def test_a_ground_truth_file_that_cannot_be_written_is_one_line() -> None:
    with start("--ground-truth", "/nowhere/truth.jsonl") as producer:
        _, err = producer.communicate(timeout=30)
    assert producer.returncode == 1
    assert err.splitlines()[0].endswith("cannot use /nowhere/truth.jsonl: No such file or directory")


def test_the_clients_complaints_come_one_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(kafka_log.time, "monotonic", lambda: now)
    sparing = kafka_log.OneInAWhile()

    def passes(name: str) -> bool:
        return bool(sparing.filter(logging.LogRecord(name, logging.ERROR, "", 0, "away", None, None)))

    assert [passes("kafka.net"), passes("kafka.cluster"), passes("producer")] == [True, False, True]
    now += kafka_log.ONE_LINE_EVERY
    assert passes("kafka.cluster")


@pytest.mark.parametrize("kind", ["KafkaTCPTransport", "KafkaSSLTransport"])
def test_a_read_of_a_closed_connection_is_no_news_and_hides_none(kind: str) -> None:
    def passes(message: str) -> bool:
        return sparing.filter(logging.LogRecord("kafka.net", logging.ERROR, "", 0, message, (), None))

    sparing = kafka_log.OneInAWhile()
    assert not passes(f"<{kind} [none] (closed)>: Error receiving network data closing socket")
    assert passes(f"<{kind} [127.0.0.1:9092<-40000]>: socket disconnected")


def test_a_kafka_that_goes_away_before_anything_was_sent_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise KafkaConnectionError("reset")

    monkeypatch.setattr(kafka_producer, "first_contact", lambda _: None)
    monkeypatch.setattr(kafka_producer, "ensure_topics", gone)
    assert kafka_producer.connect(parse_arguments(["--bootstrap-servers", "kafka:9092"])) is None
    (said,) = caplog.messages
    assert said.startswith("Kafka at kafka:9092 went away before anything was sent, start again: ")
