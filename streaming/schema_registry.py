"""The producer's schemas in a schema registry: one that would break the readers stops the producer, not the readers.

Speaks Confluent's REST API, version 7, which Apicurio, Karapace and others have too; the subject of a topic is
<topic>-value. Nothing here runs without SCHEMA_REGISTRY_URL. The consumer never asks the registry: what it takes is the
contract (contracts.py), and a registry that is down must not stop it.

Records carry the id in the header `schema-id`, as decimal text, and their values stay plain JSON: every console and UI
shows both, and a reader that knows no registry reads on as before. Confluent's own header, __value_schema_id, holds a
binary GUID in place of the id, which other registries do not give.

docs/schema_evolution.md walks through a change.
"""

from __future__ import annotations

import argparse
import json
import logging
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import requests
import tenacity

from contracts import CONTRACTS, Contract
from pipeline_settings import SettingError, option, secret

log = logging.getLogger("producer")

HEADER = "schema-id"
PATIENCE_S = 20.0  # a registry that is just starting
TIMEOUT_S = 10.0
UNAVAILABLE = (502, 503, 504)  # what stands before the registry says that it is not there
CHECK_BACKWARD = ("BACKWARD", "BACKWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE")
REASON_CHARACTERS = 500  # Confluent's registry explains at length, with both schemas


class RegistryError(Exception):
    """The producer must not start; the text is one line that names the setting, and the registry's own reason."""


class _Unreachable(RegistryError):
    """May pass by itself."""


def producer_schema(contract: Contract) -> dict[str, Any]:
    """What a producer of this version writes: the contract's schema without the room for fields it does not know.

    The published schema is open, as the consumer is. A registry takes a new optional field in an open schema for a
    breaking change, because old records might have held anything under its name; in a closed one it is none. And the
    dialect is one whose keywords mean the same and that every registry can compare: Apicurio 3.3 stores a schema of
    2020-12, and then fails with 500 at the next version.
    """
    return {
        **contract.json_schema(),
        "$schema": "http://json-schema.org/draft-07/schema#",
        "additionalProperties": False,
    }


def registry_url(text: str) -> str:
    """A parser for `option`: an address without a login in it, because addresses are shown in errors."""
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise argparse.ArgumentTypeError("not an address such as http://registry:8081") from None
    if text and "@" in parts.netloc:
        raise argparse.ArgumentTypeError(
            "must hold no login: set SCHEMA_REGISTRY_USERNAME and SCHEMA_REGISTRY_PASSWORD"
        )
    if text and not is_address:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as http://registry:8081")
    return text.rstrip("/")


def add_registry_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schema registry")
    text = "where the schemas are registered before anything is sent"
    option(group, "--schema-registry-url", "SCHEMA_REGISTRY_URL", "", registry_url, text)
    text = "its user; the password is SCHEMA_REGISTRY_PASSWORD, or in the file SCHEMA_REGISTRY_PASSWORD_FILE"
    option(group, "--schema-registry-username", "SCHEMA_REGISTRY_USERNAME", "", str, text)


def schema_headers(args: argparse.Namespace) -> dict[str, list[tuple[str, bytes]]]:
    """Registers all schemas and gives the headers by topic; none without SCHEMA_REGISTRY_URL.

    Raises RegistryError, and SettingError when the login is not complete.
    """
    if not args.schema_registry_url:
        return {}
    user, password = args.schema_registry_username, secret("SCHEMA_REGISTRY_PASSWORD")
    if bool(user) != bool(password):
        missing = "SCHEMA_REGISTRY_PASSWORD or SCHEMA_REGISTRY_PASSWORD_FILE" if user else "SCHEMA_REGISTRY_USERNAME"
        raise SettingError(f"the schema registry's login is not complete: set {missing}")
    with closing(Registry(args.schema_registry_url, (user, password) if user else None)) as registry:
        ids = {topic: registry.register(topic, producer_schema(contract)) for topic, contract in CONTRACTS.items()}
    log.info("schemas registered: %s", ", ".join(f"{topic} id {number}" for topic, number in ids.items()))
    return {topic: [(HEADER, str(number).encode())] for topic, number in ids.items()}


class Registry:
    """One registry. All methods raise RegistryError."""

    def __init__(self, url: str, login: tuple[str, str] | None = None, patience_s: float = PATIENCE_S) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.auth = login
        self._attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unreachable),
            stop=tenacity.stop_after_delay(patience_s),
            wait=tenacity.wait_exponential(multiplier=0.2, max=2),
            before_sleep=self._say_that_we_wait,
            reraise=True,
        )

    def close(self) -> None:
        self._session.close()

    def register(self, topic: str, schema: dict[str, Any]) -> int:
        """The id of the topic's schema, which may be known already. Refused if it breaks the newest one before it.

        A subject whose check includes BACKWARD keeps it, also a stricter one: its owner has set it on purpose.
        """
        subject = f"{topic}-value"
        config = self._call("GET", f"/config/{subject}")
        if config.get("compatibilityLevel") not in CHECK_BACKWARD:
            self._call("PUT", f"/config/{subject}", {"compatibility": "BACKWARD"})
        body = {"schemaType": "JSON", "schema": json.dumps(schema)}
        answer = self._call("POST", f"/subjects/{subject}/versions", body)
        if not isinstance(answer.get("id"), int):
            raise RegistryError(f"{self._named()} is no schema registry: it gives no id for {subject}")
        return int(answer["id"])

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._attempts(self._call_once, method, path, body)

    def _call_once(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """The answer's JSON object; an empty one for a subject that is not there yet."""
        try:
            # a redirect could take the login to another host, and makes a GET of a POST
            answer = self._session.request(
                method, self._url + path, json=body, timeout=TIMEOUT_S, allow_redirects=False
            )
        except requests.exceptions.SSLError as error:
            raise RegistryError(f"no TLS with {self._named()}: {_innermost(error)}") from None
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Unreachable(f"no schema registry at {self._named()}: {_innermost(error)}") from None
        except requests.RequestException as error:
            raise RegistryError(f"{self._named()} cannot be asked: {error}") from None
        status = f"{answer.status_code} {answer.reason}"
        if answer.status_code in UNAVAILABLE:
            raise _Unreachable(f"no schema registry at {self._named()}: {status}")
        if answer.status_code in (401, 403):
            raise RegistryError(self._refusal(method, path, status))
        found = _json_object(answer)
        code = found.get("error_code")
        if answer.ok and found:
            return found
        if method == "GET" and code in (40401, 40408):
            return {}
        reason = " ".join(str(found.get("message", "")).split())[:REASON_CHARACTERS]
        subject = path.split("/")[2]
        if answer.status_code == 409 and method == "PUT":  # another producer sets it at this moment
            raise _Unreachable(f"{self._named()} refuses {subject}: {status}: {reason}")
        if answer.status_code == 409:
            raise RegistryError(f"{self._named()} refuses {subject}, its readers would break: {reason}")
        if code is not None:
            raise RegistryError(f"{self._named()} refuses {subject}: {status}: {reason}")
        hint = "Apicurio's address ends in /apis/ccompat/v7"
        raise RegistryError(f"{self._named()} is no schema registry: {method} {path} gives {status}; {hint}")

    def _refusal(self, method: str, path: str, status: str) -> str:
        names = "SCHEMA_REGISTRY_USERNAME, and SCHEMA_REGISTRY_PASSWORD or SCHEMA_REGISTRY_PASSWORD_FILE"
        if status.startswith("403"):
            return f"{self._named()} does not allow {method} {path} to our login ({names}): {status}"
        what = "refuses our login" if self._session.auth else "wants a login"
        return f"{self._named()} {what} ({names}): {status}"

    def _named(self) -> str:
        return f"{self._url} (SCHEMA_REGISTRY_URL)"

    @staticmethod
    def _say_that_we_wait(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome:
            log.warning("waiting: %s", state.outcome.exception())


def _json_object(answer: requests.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except requests.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _innermost(error: BaseException) -> BaseException:
    """What went wrong at the bottom: the exceptions round it repeat it with addresses of objects."""
    while error.__context__ is not None:
        error = error.__context__
    return error
