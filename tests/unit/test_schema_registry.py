"""The schemas that a registry gets are what our producer writes; addresses and logins that cannot be right are refused.

Web servers of the test's own stand in for what no registry does on demand: being no registry, redirecting, coming late.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from contracts import CONTRACTS, HEALTH, Contract
from delivery import Tally
from kafka_producer import parse_arguments
from pipeline_settings import SettingError
from schema_registry import Registry, RegistryError, producer_schema, registry_url, schema_headers
from simulator import Simulator

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("URL", "USERNAME", "PASSWORD", "PASSWORD_FILE")
by_topic = pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(f"SCHEMA_REGISTRY_{name}", raising=False)


class Answers(BaseHTTPRequestHandler):
    """Gives the server's answers in turn, the last one again and again, and notes what was asked."""

    def answer(self) -> None:
        server: Any = self.server
        server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        status, headers, body = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def web_server(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        server.answers, server.asked = list(answers), []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield server
        finally:
            server.shutdown()


def said(status: int, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(fields).encode()


def register(server: Any, login: tuple[str, str] | None = None, patience_s: float = 5) -> int:
    with closing(Registry(f"http://127.0.0.1:{server.server_address[1]}", login, patience_s)) as registry:
        return registry.register(HEALTH.topic, producer_schema(HEALTH))


@by_topic
def test_the_schema_uses_only_what_its_dialect_knows(contract: Contract) -> None:
    schema = producer_schema(contract)
    known = Draft7Validator.META_SCHEMA["properties"].keys()
    fields = schema["properties"].values()
    assert {keyword for part in (schema, schema["propertyNames"], *fields) for keyword in part} - known == set()
    Draft7Validator.check_schema(schema)
    assert schema["$schema"] == Draft7Validator.META_SCHEMA["$schema"]


def test_all_that_the_simulator_writes_fits_the_registered_schemas() -> None:
    validators = {topic: Draft7Validator(producer_schema(contract)) for topic, contract in CONTRACTS.items()}
    fleet = Simulator(
        10, 3, 0.1, 30, "realistic", 7, start=datetime(2026, 5, 4, tzinfo=UTC), duplicate_share=0, malformed_share=0
    )
    seen = set()
    for _, (_, topic, _, value, _) in zip(range(5000), fleet, strict=False):
        validators[topic].validate(json.loads(value))
        seen.add(topic)
    assert seen == set(CONTRACTS)


@by_topic
def test_a_field_nobody_has_declared_does_not_fit(contract: Contract) -> None:
    errors = Draft7Validator(producer_schema(contract)).iter_errors({"nobody_knows_it": 20})
    assert "additionalProperties" in {error.validator for error in errors}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("", ""),
        ("http://registry:8081", "http://registry:8081"),
        ("https://registry.example/apis/ccompat/v7/", "https://registry.example/apis/ccompat/v7"),
    ],
)
def test_an_address_is_taken(given: str, taken: str) -> None:
    assert registry_url(given) == taken


@pytest.mark.parametrize(
    "given",
    ["registry:8081", "registry", "ftp://registry", "http://", "http://registry:port", "http://[::1", "http://r:0"],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not an address such as http://registry:8081"):
        registry_url(given)


def test_a_login_in_the_address_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", "http://alice:sesame@registry:8081")
    with pytest.raises(SystemExit):
        parse_arguments([])
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert "set SCHEMA_REGISTRY_USERNAME and SCHEMA_REGISTRY_PASSWORD (SCHEMA_REGISTRY_URL in the env" in complaint
    assert "sesame" not in complaint


def test_without_the_setting_there_is_no_header_and_nobody_is_asked() -> None:
    assert schema_headers(parse_arguments([])) == {}
    assert Tally(HEALTH.topic, 6, None).headers == []


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"USERNAME": "alice"}, "set SCHEMA_REGISTRY_PASSWORD or SCHEMA_REGISTRY_PASSWORD_FILE"),
        ({"PASSWORD": "sesame"}, "set SCHEMA_REGISTRY_USERNAME"),
    ],
)
def test_half_a_login_is_refused(settings: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"URL": "http://127.0.0.1:9", **settings}.items():
        monkeypatch.setenv(f"SCHEMA_REGISTRY_{name}", value)
    with pytest.raises(SettingError, match=missing):
        schema_headers(parse_arguments([]))


def test_the_password_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("sesame\n")
    with web_server(said(200, compatibilityLevel="BACKWARD", id=7)) as server:
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("SCHEMA_REGISTRY_USERNAME", "alice")
        monkeypatch.setenv("SCHEMA_REGISTRY_PASSWORD_FILE", str(tmp_path / "password"))
        assert schema_headers(parse_arguments([])) == {topic: [("schema-id", b"7")] for topic in CONTRACTS}
    assert {login for _, _, login in server.asked} == {"Basic YWxpY2U6c2VzYW1l"}


@pytest.mark.parametrize("level", ["BACKWARD", "BACKWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"])
def test_a_check_as_strict_or_stricter_is_left_alone(level: str) -> None:
    with web_server(said(200, compatibilityLevel=level, id=7)) as server:
        assert register(server) == 7
    assert [method for method, _, _ in server.asked] == ["GET", "POST"]


@pytest.mark.parametrize("level", ["NONE", "FORWARD", "FORWARD_TRANSITIVE", None])
def test_a_weaker_check_is_made_backward_before_the_schema_is_shown(level: str | None) -> None:
    with web_server(said(200, compatibilityLevel=level, id=7)) as server:
        register(server)
    assert [method for method, _, _ in server.asked] == ["GET", "PUT", "POST"]


def test_a_registry_that_is_just_starting_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with web_server(said(503), said(502), said(200, compatibilityLevel="FULL", id=7)) as server:
        assert register(server) == 7
    waiting = [line for line in caplog.messages if "waiting" in line]
    assert len(waiting) == 1
    assert "503 Service Unavailable" in waiting[0]


def refusal(server: Any, login: tuple[str, str] | None = None) -> str:
    with pytest.raises(RegistryError) as refused:
        register(server, login, patience_s=0.3)
    text = str(refused.value)
    assert "\n" not in text
    assert "SCHEMA_REGISTRY_" in text
    return text


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"Content-Type": "text/html"}, b"<h1>Not found</h1>"),
        (200, {"Content-Type": "text/html"}, b"<h1>Welcome</h1>"),
        (200, {}, b"[]"),
        (500, {}, b""),
        said(404, detail="no such path"),
        said(200, compatibilityLevel="FULL", id="seven"),
    ],
    ids=["not_found", "a_page", "a_list", "broken", "another_api", "no_number"],
)
def test_what_is_no_registry_is_told(answer: tuple[int, dict[str, str], bytes]) -> None:
    with web_server(answer) as server:
        assert "(SCHEMA_REGISTRY_URL) is no schema registry" in refusal(server)


def test_a_redirect_gets_no_login() -> None:
    with web_server(said(200, compatibilityLevel="FULL", id=7)) as other:
        where = {"Location": f"http://127.0.0.1:{other.server_address[1]}/config"}
        with web_server((302, where, b"")) as server:
            assert "302 Found" in refusal(server, ("alice", "sesame"))
    assert other.asked == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (said(401), "wants a login (SCHEMA_REGISTRY_USERNAME, and SCHEMA_REGISTRY_PASSWORD or"),
        (said(403, error_code=403), "does not allow GET /config/smart-access.health-value to our login"),
        (said(422, error_code=42201, message="Invalid\n  schema"), "refuses smart-access.health-value: 422"),
        (said(409, error_code=409, message="x" * 9999), "its readers would break: " + "x" * 500),
        (said(503), "no schema registry at http"),
    ],
    ids=["no_login", "no_right", "invalid", "a_long_reason", "not_there"],
)
def test_a_refusal_is_one_line_that_names_the_setting(answer: tuple[int, dict[str, str], bytes], told: str) -> None:
    with web_server(answer) as server:
        text = refusal(server)
    assert told in text
    assert len(text) < 700


def test_the_producer_ends_with_one_line_before_it_looks_for_kafka() -> None:
    with web_server((404, {}, b"")) as server:
        env = {
            **os.environ,
            "SCHEMA_REGISTRY_URL": f"http://127.0.0.1:{server.server_address[1]}",
            "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
            "PRODUCER_METRICS_PORT": "0",
        }
        command = [sys.executable, "streaming/kafka_producer.py"]
        found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    assert len(found.stderr.splitlines()) == 1
    assert "is no schema registry" in found.stderr
