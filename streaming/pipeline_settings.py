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
import time
from collections.abc import Callable
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

load_dotenv(ROOT / ".env")


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


def kafka_connection(args: argparse.Namespace) -> dict[str, Any]:
    """What every kafka-python client needs to connect."""
    return {
        "bootstrap_servers": [server.strip() for server in args.bootstrap_servers.split(",")],
        "bootstrap_timeout_ms": 20_000,
    }


def add_logging_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("logging")
    option(group, "--log-level", "LOG_LEVEL", "INFO", _log_level, "DEBUG, INFO, WARNING or ERROR")
    option(group, "--log-format", "LOG_FORMAT", "text", _log_format, "text, or json for one object a line")


def _log_level(text: str) -> str:
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of DEBUG, INFO, WARNING, ERROR")
    return text.upper()


def _log_format(text: str) -> str:
    if text not in ("text", "json"):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of text, json")
    return text


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
    """libpq's variables with this project's defaults, as an environment for a child process (dbt, psql)."""
    return {name: os.environ.get(name) or default for name, default in POSTGRES_DEFAULTS.items()}


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
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "application_name": application_name,
    }
    return psycopg2.connect(**(settings | parameters))


def apply_schema(connection: Any) -> None:
    """Creates the tables and views that are missing. Two scripts that start at once take turns."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('smart-access schema'))")
        for name in ("schema.sql", "live_views.sql"):
            cursor.execute((ROOT / "streaming/sql" / name).read_text(encoding="utf-8"))
