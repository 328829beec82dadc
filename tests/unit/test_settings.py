"""A flag beats the environment, the environment beats .env, .env the default; what is out of range is refused."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline_settings
from pipeline_settings import number, option


def parser(parse: Callable[[str], Any] = str, default: Any = 5) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="script")
    option(made, "--batch", "TEST_BATCH", default, parse, "rows in a batch")
    return made


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], made: argparse.ArgumentParser) -> str:
    with pytest.raises(SystemExit) as caught:
        made.parse_args(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [
        (None, [], 5),
        ("6", [], 6),
        ("", [], 5),
        (None, ["--batch", "7"], 7),
        ("6", ["--batch", "7"], 7),
        ("nonsense", ["--batch", "7"], 7),
        ("6", ["--batch", "5"], 5),
    ],
    ids=[
        "without_either_the_default",
        "the_environment_beats_the_default",
        "an_empty_variable_is_an_unset_one",
        "the_flag_beats_the_default",
        "the_flag_beats_the_environment",
        "the_flag_beats_a_bad_environment",
        "the_flag_beats_the_environment_with_the_defaults_value",
    ],
)
def test_who_wins(
    environment: str | None, arguments: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_BATCH", raising=False)
    if environment is not None:
        monkeypatch.setenv("TEST_BATCH", environment)
    assert parser(number(int, 1, 100)).parse_args(arguments).batch == expected


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (number(int, 1, 100), "0", "0 is out of range: must be from 1 to 100"),
        (number(int, 1, 100), "101", "101 is out of range: must be from 1 to 100"),
        (number(int, 1), "0", "0 is out of range: must be at least 1"),
        (number(int, 1), "1.5", "'1.5' is not a number"),
        (number(int, 1), "ten", "'ten' is not a number"),
        (number(int, 1), "9" * 400, "' is not a number"),
        (number(int, 1), "9" * 5000, "' is not a number"),
        (number(float, 0.1), "0.09", "0.09 is out of range: must be at least 0.1"),
        (number(float, 0), "nan", "nan is out of range: must be at least 0"),
        (number(float, 0), "inf", "inf is out of range: must be at least 0"),
        (number(float, 0, 1), "-inf", "-inf is out of range: must be from 0 to 1"),
    ],
)
def test_a_bad_value_is_refused_wherever_it_comes_from(
    parse: Callable[[str], Any],
    text: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("TEST_BATCH", raising=False)
    line = refused([f"--batch={text}"], capsys, parser(parse))
    assert line.startswith("script: error: argument --batch: ")
    assert line.endswith(said)

    monkeypatch.setenv("TEST_BATCH", text)
    line = refused([], capsys, parser(parse))
    assert line.endswith(f"{said} (TEST_BATCH in the environment or .env)")


def test_a_bad_flag_does_not_blame_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEST_BATCH", "6")
    assert "environment" not in refused(["--batch", "0"], capsys, parser(number(int, 1)))


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("100", 100), (" 7 ", 7)])
def test_the_bounds_belong_to_the_range(text: str, expected: int) -> None:
    assert number(int, 1, 100)(text) == expected


def test_help_names_the_default_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_BATCH", "6")
    text = " ".join(parser().format_help().split())
    assert "--batch TEST_BATCH rows in a batch (default: 5; environment: TEST_BATCH)" in text
    assert "(default: unset; environment: TEST_BATCH)" in " ".join(parser(default="").format_help().split())


def run_beside(folder: Path, dotenv: str, environment: dict[str, str]) -> dict[str, str]:
    """What PostgreSQL's parameters are for a project whose root holds that .env."""
    (folder / "streaming").mkdir()
    shutil.copy(pipeline_settings.__file__, folder / "streaming")
    (folder / ".env").write_text(dotenv)
    code = "import json, pipeline_settings; print(json.dumps(pipeline_settings.postgres_parameters()))"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder / "streaming",
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def test_the_environment_beats_dotenv_and_dotenv_the_default(tmp_path: Path) -> None:
    assert run_beside(tmp_path, "PGPORT=6543\nPGUSER=from_dotenv\n", {"PGUSER": "from_environment"}) == {
        "PGHOST": "127.0.0.1",
        "PGPORT": "6543",
        "PGDATABASE": "smart_access",
        "PGUSER": "from_environment",
        "PGPASSWORD": "postgres",
    }


def test_kafka_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "one:9092, two:9092")
    monkeypatch.setenv("KAFKA_PARTITIONS", "12")
    monkeypatch.delenv("KAFKA_REPLICATION_FACTOR", raising=False)
    made = argparse.ArgumentParser()
    pipeline_settings.add_kafka_options(made)
    args = made.parse_args([])
    assert (args.partitions, args.replication_factor) == (12, 1)
    assert pipeline_settings.kafka_connection(args)["bootstrap_servers"] == ["one:9092", "two:9092"]


def kafka_connection(*arguments: str) -> dict[str, Any]:
    made = argparse.ArgumentParser()
    pipeline_settings.add_kafka_options(made)
    return pipeline_settings.kafka_connection(made.parse_args(arguments))


def test_a_login_goes_to_the_client_as_it_was_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority, password = tmp_path / "ca.pem", tmp_path / "password"
    authority.write_text("PEM")
    password.write_text("from the file\n")
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "sasl_ssl")
    monkeypatch.setenv("KAFKA_USERNAME", "producer")
    monkeypatch.setenv("KAFKA_PASSWORD_FILE", str(password))
    monkeypatch.setenv("KAFKA_CA_FILE", str(authority))
    assert kafka_connection("--sasl-mechanism", "scram-sha-256") == {
        "bootstrap_servers": ["127.0.0.1:9092"],
        "bootstrap_timeout_ms": 20_000,
        "socket_options": pipeline_settings.KAFKA_SOCKETS,
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "producer",
        "sasl_plain_password": "from the file",
        "ssl_cafile": str(authority),
    }


def test_without_a_protocol_no_login_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_USERNAME", "producer")
    monkeypatch.setenv("KAFKA_PASSWORD", "secret")
    names = {"bootstrap_servers", "bootstrap_timeout_ms", "socket_options", "security_protocol"}
    assert set(kafka_connection()) == names


def test_a_secret_is_the_variable_or_the_file_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    monkeypatch.setenv("SAMPLE", "")
    monkeypatch.setenv("SAMPLE_FILE", "")
    assert pipeline_settings.secret("SAMPLE", "the default") == "the default"
    monkeypatch.setenv("SAMPLE", "from the variable")
    assert pipeline_settings.secret("SAMPLE", "the default") == "from the variable"
    monkeypatch.setenv("SAMPLE_FILE", str(file))
    with pytest.raises(SystemExit, match=r"SAMPLE_FILE=.*secret cannot be read"):
        pipeline_settings.secret("SAMPLE")
    file.write_text("\n")
    with pytest.raises(SystemExit, match=r"SAMPLE_FILE=.*secret is empty"):
        pipeline_settings.secret("SAMPLE")
    file.write_text(" of the file \r\n")
    with pytest.raises(SystemExit, match=r"SAMPLE and SAMPLE_FILE say different things"):
        pipeline_settings.secret("SAMPLE")
    monkeypatch.setenv("SAMPLE", "")
    assert pipeline_settings.secret("SAMPLE") == " of the file "
    monkeypatch.setenv("SAMPLE", " of the file ")  # as a child gets it from its parent
    assert pipeline_settings.secret("SAMPLE") == " of the file "


def test_postgres_takes_its_password_from_a_file_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("kept apart\n")
    monkeypatch.setenv("PGPASSWORD", "")
    monkeypatch.setenv("PGPASSWORD_FILE", str(tmp_path / "password"))
    assert pipeline_settings.postgres_parameters()["PGPASSWORD"] == "kept apart"


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root, kafka = logging.getLogger(), logging.getLogger("kafka")
    before = (root.level, list(root.handlers), kafka.level)
    # basicConfig(force=True) closes the handlers that it takes out, and pytest's own must live on
    root.handlers.clear()
    yield
    root.handlers[:] = before[1]
    root.setLevel(before[0])
    kafka.setLevel(before[2])


def set_up_logging(*arguments: str) -> None:
    made = argparse.ArgumentParser()
    pipeline_settings.add_logging_options(made)
    pipeline_settings.set_up_logging(made.parse_args(arguments))


@pytest.mark.usefixtures("restored_logging")
def test_a_json_log_line_is_one_object_whatever_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("--log-format", "json")
    log = logging.getLogger("sink")
    log.info('stored=%d "ü"\nsecond line', 3)
    try:
        raise ValueError("no\nway")
    except ValueError:
        log.exception("it broke")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("ts").endswith("Z")
    assert first == {"level": "INFO", "logger": "sink", "message": 'stored=3 "ü"\nsecond line'}
    assert second["level"] == "ERROR"
    assert second["exception"].endswith("ValueError: no\nway")


@pytest.mark.usefixtures("restored_logging")
def test_a_text_log_line_names_level_and_logger(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("--log-level", "warning", "--log-format", "text")
    logging.getLogger("sink").info("unseen")
    logging.getLogger("sink").warning("seen")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" WARNING sink: seen")


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize(("level", "kafka"), [("DEBUG", "WARNING"), ("INFO", "WARNING"), ("ERROR", "ERROR")])
def test_kafkas_own_chatter_is_held_back(level: str, kafka: str) -> None:
    set_up_logging("--log-level", level)
    assert logging.getLevelName(logging.getLogger().level) == level
    assert logging.getLevelName(logging.getLogger("kafka").level) == kafka


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        (
            "LOG_LEVEL",
            "loud",
            "'loud' is not one of DEBUG, INFO, WARNING, ERROR (LOG_LEVEL in the environment or .env)",
        ),
        ("LOG_FORMAT", "xml", "'xml' is not one of text, json (LOG_FORMAT in the environment or .env)"),
    ],
)
def test_a_bad_log_setting_names_what_there_is(
    variable: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, text)
    made = argparse.ArgumentParser()
    pipeline_settings.add_logging_options(made)
    assert refused([], capsys, made).endswith(said)
