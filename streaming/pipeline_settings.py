"""The settings that the scripts share: a flag beats the environment, the environment beats `.env`, `.env` the default.

PostgreSQL is named by libpq's own variables (PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD, PGSSLMODE …), so that
psql, dbt and the scripts agree without a second vocabulary.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
from dotenv import load_dotenv

ROOT = Path(__file__).resolve().parent.parent
POSTGRES_DEFAULTS = {
    "PGHOST": "127.0.0.1",
    "PGPORT": "5432",
    "PGDATABASE": "smart_access",
    "PGUSER": "postgres",
    "PGPASSWORD": "postgres",
}

SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SASL_MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")

# Either end notices within half a minute that the other one is gone without a word. What a session has locked whose
# client's host is gone would else keep its successor waiting for PostgreSQL's own keepalives: for two hours by default.
POSTGRES_SILENCE_MS = 30_000
KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
AT_THE_SERVER = f" -c tcp_user_timeout={POSTGRES_SILENCE_MS}" + "".join(
    f" -c tcp_{name}={value}" for name, value in KEEPALIVES.items()
)

# A broker whose host is gone without a word does not answer, and kafka-python waits for it for half a minute; it spends
# its whole patience at the start on that one, though others would answer. Where the system can, it gives up earlier.
KAFKA_SILENCE_S = 5
KAFKA_SOCKETS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in {
            "TCP_NODELAY": 1,
            "TCP_KEEPIDLE": KAFKA_SILENCE_S,
            "TCP_KEEPINTVL": 1,
            "TCP_USER_TIMEOUT": KAFKA_SILENCE_S * 1000,
        }.items()
        if hasattr(socket, name)
    ),
]

# Whoever owns the tables, or makes them
MAY_MAKE_TABLES = """
SELECT coalesce((SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('raw_access_events')),
                has_schema_privilege('public', 'CREATE'))"""

load_dotenv(ROOT / ".env")


class SettingError(SystemExit):
    """A setting that cannot be used. Its text names it; uncaught it ends the script with this one line, exit code 1."""


def secret(name: str, default: str = "") -> str:
    """A password: the variable's value, or what the file holds that NAME_FILE names. Never a flag: others see those.

    Raises SettingError when both are set and differ, or the file cannot be read or is empty.
    """
    value, file = os.environ.get(name), os.environ.get(f"{name}_FILE")
    if not file:
        return value or default
    try:
        text = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{name}_FILE={file} cannot be read: {error}") from None
    if not text:
        raise SettingError(f"{name}_FILE={file} is empty: it should hold the password")
    if value and value != text:
        raise SettingError(f"{name} and {name}_FILE say different things: unset one of them")
    return text


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], Any]:
    """A parser of numbers for `option`: refuses what lies outside low..high and names the range."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            finite = math.isfinite(value)
        except (ValueError, OverflowError):  # OverflowError: an integer beyond a double's range
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high or not finite:
            limit = f"from {low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: must be {limit}")
        return value

    return parse


def or_unset(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser for `option` that takes the empty text, too: None."""
    return lambda text: parse(text) if text else None


def moment(text: str) -> datetime:
    """A parser of times and dates; without an offset they are UTC."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-05-04T13:20:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def one_of(*words: str) -> Callable[[str], str]:
    """A parser of a closed vocabulary for `option`; upper or lower case makes no difference."""
    known = {word.upper(): word for word in words}

    def parse(text: str) -> str:
        if text.upper() not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(words)}")
        return known[text.upper()]

    return parse


def option(
    parser: argparse._ActionsContainer, flag: str, env: str, default: Any, parse: Callable[[str], Any], text: str
) -> None:
    """Adds a flag whose default is the environment's value, parsed and refused exactly as the flag's own would be."""
    given = os.environ.get(env)

    def parse_or_name_setting(value: str) -> Any:
        try:
            return parse(value)
        except argparse.ArgumentTypeError as error:
            source = f" ({env} in the environment or .env)" if value == given else ""
            raise argparse.ArgumentTypeError(f"{error}{source}") from None

    # argparse runs `type` on a default only if it is a string
    parser.add_argument(
        flag,
        type=parse_or_name_setting,
        metavar=env,
        default=str(default) if given in (None, "") else given,
        help=f"{text} (default: {default if default != '' else 'unset'}; environment: {env})",
    )


def add_kafka_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Kafka")
    option(group, "--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092", str, "brokers, host:port,…")
    option(group, "--partitions", "KAFKA_PARTITIONS", 6, number(int, 1, 10_000), "partitions of a topic made here")
    option(
        group, "--replication-factor", "KAFKA_REPLICATION_FACTOR", 1, number(int, 1, 100), "copies of a topic made here"
    )
    protocol = one_of(*SECURITY_PROTOCOLS)
    option(
        group, "--security-protocol", "KAFKA_SECURITY_PROTOCOL", "PLAINTEXT", protocol, ", ".join(SECURITY_PROTOCOLS)
    )
    mechanism = one_of(*SASL_MECHANISMS)
    option(group, "--sasl-mechanism", "KAFKA_SASL_MECHANISM", "SCRAM-SHA-512", mechanism, ", ".join(SASL_MECHANISMS))
    text = "user for SASL; its password is KAFKA_PASSWORD, or in the file KAFKA_PASSWORD_FILE"
    option(group, "--username", "KAFKA_USERNAME", "", str, text)
    text = "PEM file of the authorities that vouch for the brokers; unset: the system's"
    option(group, "--ca-file", "KAFKA_CA_FILE", "", str, text)


def kafka_connection(args: argparse.Namespace) -> dict[str, Any]:
    """What every kafka-python client needs to connect. Raises SettingError when a setting is missing for that."""
    connection: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in args.bootstrap_servers.split(",")],
        "bootstrap_timeout_ms": 20_000,
        "socket_options": KAFKA_SOCKETS,
        "security_protocol": args.security_protocol,
    }
    if args.security_protocol.startswith("SASL_"):
        password = secret("KAFKA_PASSWORD")
        if not args.username or not password:
            missing = "KAFKA_PASSWORD or KAFKA_PASSWORD_FILE" if args.username else "KAFKA_USERNAME"
            raise SettingError(f"KAFKA_SECURITY_PROTOCOL={args.security_protocol} needs a login: set {missing}")
        connection["sasl_mechanism"] = args.sasl_mechanism
        connection["sasl_plain_username"] = args.username
        connection["sasl_plain_password"] = password
    if args.security_protocol.endswith("SSL") and args.ca_file:
        if not os.access(args.ca_file, os.R_OK):
            raise SettingError(f"KAFKA_CA_FILE={args.ca_file} cannot be read")
        connection["ssl_cafile"] = args.ca_file
    return connection


def add_retention_option(parser: argparse._ActionsContainer, text: str) -> None:
    option(parser, "--retention-days", "RETENTION_DAYS", "", or_unset(number(int, 1, 36_500)), text)


def add_metrics_options(parser: argparse._ActionsContainer, port_env: str, port: int, serves: str) -> None:
    option(parser, "--metrics-port", port_env, port, number(int, 0, 65_535), f"{serves}; 0 for none")
    text = "address they listen on; anything but this machine's own opens them to the network"
    option(parser, "--metrics-host", "METRICS_HOST", "127.0.0.1", str, text)


def add_logging_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("logging")
    levels = one_of("DEBUG", "INFO", "WARNING", "ERROR")
    option(group, "--log-level", "LOG_LEVEL", "INFO", levels, "DEBUG, INFO, WARNING or ERROR")
    option(group, "--log-format", "LOG_FORMAT", "text", one_of("text", "json"), "text, or json for one object a line")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(args: argparse.Namespace) -> None:
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(_JsonFormatter() if args.log_format == "json" else text)
    logging.basicConfig(level=args.log_level, handlers=[handler], force=True)
    # kafka-python tells of every connection at INFO; its warnings matter
    logging.getLogger("kafka").setLevel(max(logging.WARNING, logging.getLevelName(args.log_level)))


def postgres_parameters() -> dict[str, str]:
    """libpq's variables with this project's defaults, as an environment for a child process (dbt, psql).

    Raises SettingError when PGPASSWORD_FILE is set and cannot be used.
    """
    known = {name: os.environ.get(name) or default for name, default in POSTGRES_DEFAULTS.items()}
    return known | {"PGPASSWORD": secret("PGPASSWORD", POSTGRES_DEFAULTS["PGPASSWORD"])}


def connect_postgres(application_name: str, **parameters: Any) -> Any:
    """A psycopg2 connection; what POSTGRES_DEFAULTS does not name (PGSSLMODE, PGSERVICE …) libpq reads itself.

    Raises psycopg2.OperationalError when the server cannot be reached.
    """
    known = postgres_parameters()
    settings: dict[str, Any] = {
        "host": known["PGHOST"],
        "port": known["PGPORT"],
        "dbname": known["PGDATABASE"],
        "user": known["PGUSER"],
        "password": known["PGPASSWORD"],
        "connect_timeout": 10,
        **KEEPALIVES,
        "tcp_user_timeout": POSTGRES_SILENCE_MS,
        "application_name": application_name,
    }
    options = parameters.pop("options", os.environ.get("PGOPTIONS", "")) + AT_THE_SERVER
    return psycopg2.connect(**(settings | parameters | {"options": options}))


def lacks_a_right(error: psycopg2.Error) -> str:
    """One line about a statement that PostgreSQL has refused to this user (SQLSTATE 42501)."""
    user = postgres_parameters()["PGUSER"]
    return f"PostgreSQL refuses PGUSER={user}: {error.diag.message_primary}. The right role: docs/security.md, Roles"


def apply_schema(connection: Any) -> None:
    """Creates the tables, views and roles that are missing. Two scripts that start at once take turns.

    Who does not own the tables changes nothing, and needs no right to. Raises SettingError when some are missing then,
    or when the owner lacks a right.
    """
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('smart-access schema'))")
            cursor.execute(MAY_MAKE_TABLES)
            if not cursor.fetchone()[0]:
                _require_tables(cursor)
                return
            for name in ("schema.sql", "live_views.sql", "roles.sql"):
                cursor.execute((ROOT / "streaming/sql" / name).read_text(encoding="utf-8"))
    except psycopg2.errors.InsufficientPrivilege as error:
        raise SettingError(lacks_a_right(error)) from None


def _require_tables(cursor: Any) -> None:
    schema = (ROOT / "streaming/sql/schema.sql").read_text(encoding="utf-8")
    names = re.findall(r"CREATE (?:TABLE IF NOT EXISTS|VIEW) (\w+)", schema)
    cursor.execute("SELECT name FROM unnest(%s) AS name WHERE to_regclass(name) IS NULL", (names,))
    missing = ", ".join(name for (name,) in cursor.fetchall())
    if missing:
        known = postgres_parameters()
        raise SettingError(
            f"the database {known['PGDATABASE']} lacks {missing}, and PGUSER={known['PGUSER']} may not make that: start"
            " once as the tables' owner, or see docs/security.md, Roles"
        )
