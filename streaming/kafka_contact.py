"""The first contact with Kafka: waits a while for a broker, and if none lets us in says why, naming the setting.

kafka-python's exception tells only of a timeout, whatever is wrong: the reason is in its log alone. Nor does that
always tell: a broker that refuses a login answers and closes the connection, and mostly the closing is noticed first.
So the most telling line of several attempts is kept.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tenacity
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, RetriableError

PATIENCE_S = 20.0  # a broker that is just starting
ATTEMPT_MS = 2_500

# What is in the log, the setting that mends it, and whether waiting is of no use. The most telling first
DURING_LOGIN = "broker_version=("  # they had spoken before it ended
REASONS = (
    ("CERTIFICATE_VERIFY_FAILED", "KAFKA_CA_FILE", True),
    ("SaslAuthenticationFailed", "KAFKA_USERNAME, and KAFKA_PASSWORD or KAFKA_PASSWORD_FILE", True),
    ("UnsupportedSaslMechanism", "KAFKA_SASL_MECHANISM", True),
    ("WRONG_VERSION_NUMBER", "KAFKA_SECURITY_PROTOCOL, no TLS is spoken there", True),
    ("Invalid frame length", "KAFKA_SECURITY_PROTOCOL, TLS is spoken there", True),
    (DURING_LOGIN, "KAFKA_USERNAME, KAFKA_PASSWORD or KAFKA_SASL_MECHANISM, it ends the login", True),
    ("socket disconnected", "KAFKA_SECURITY_PROTOCOL, it closes our connections", False),
)
NO_BROKER = "KAFKA_BOOTSTRAP_SERVERS"


class NoContact(Exception):
    """No broker lets us in; the text is one line that names the setting to change."""


class LastWords(logging.Handler):
    """Keeps the most telling error in place of showing it."""

    def __init__(self, logs_in: bool) -> None:
        super().__init__()
        self.line, self.setting, self.final = "", NO_BROKER, False
        self._logs_in = logs_in
        self._rank = len(REASONS)

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        is_during_login = self._logs_in and DURING_LOGIN in line
        # "Bootstrap failed" and "node_id=bootstrap-0" lines otherwise repeat the reason that came before them
        if record.levelno != logging.ERROR or ("boot" in line.lower() and not is_during_login):
            return
        for rank, (words, setting, final) in enumerate(REASONS):
            if words in line and rank <= self._rank:
                self.line, self.setting, self.final, self._rank = _plain(line), setting, final, rank
                return
        if self._rank == len(REASONS):
            self.line = _plain(line)


def _plain(line: str) -> str:
    """Without the connection's name, and what kafka-python says twice."""
    line = re.sub(r"^<\S+ [^>]*>: |^Connection failed: ", "", line)
    line = line.removeprefix("Connection lost: ")
    line = re.sub(r"^Abort \((.*)\)$", r"\1", line)
    line = re.sub(r"^\[Error \d+\] (\w+): \1: ", r"\1: ", line)
    return re.sub(r"^KafkaConnectionError: ", "", line)


@contextmanager
def last_words(logs_in: bool) -> Iterator[LastWords]:
    """Holds the log of connecting back."""
    log, kept = logging.getLogger("kafka.net"), LastWords(logs_in)
    log.addHandler(kept)
    log.propagate = logging.getLogger().level <= logging.DEBUG
    try:
        yield kept
    finally:
        log.propagate = True
        log.removeHandler(kept)


def first_contact(connection: dict[str, Any]) -> None:
    """Returns as soon as a broker has let us in. Raises NoContact, at once where waiting is of no use."""
    with last_words(logs_in="sasl_mechanism" in connection) as words:
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, RetriableError) and not words.final),
            stop=tenacity.stop_after_delay(PATIENCE_S),
            reraise=True,
        )
        try:
            attempts(_connect, connection | {"bootstrap_timeout_ms": ATTEMPT_MS})
        except KafkaError as error:
            servers = ",".join(connection["bootstrap_servers"])
            what = "no Kafka at" if words.setting == NO_BROKER else "not let in by Kafka at"
            raise NoContact(f"{what} {servers} ({words.setting}): {words.line or error}") from None


def _connect(connection: dict[str, Any]) -> None:
    KafkaAdminClient(**connection).close()
