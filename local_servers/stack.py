"""Kafka and PostgreSQL for the guide's two terminals: python -m local_servers.stack up|down|status|reset.

`up` starts what the settings place on this machine, makes topics and tables, and says what to do next; again, it finds
everything running. A server that the settings place elsewhere (another host, several brokers, or its name in
STACK_EXTERNAL=kafka,postgres) is only asked whether it answers. Data survives `down`; `reset` removes it.

Exit codes: 0 done, 1 failed (one line says why), 2 usage.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import sys
from contextlib import closing
from pathlib import Path

import psycopg2
from kafka.errors import KafkaTimeoutError

import pipeline_settings
from local_servers import LOOPBACK, ROOT, ServerError, port_setting, state_dir
from local_servers.daemon import Daemon
from local_servers.kafka_broker import KafkaBroker
from local_servers.postgres_server import PostgresServer, binaries_folder
from topics import ensure_topics

# The order in which they end: who writes before who stores, who stores before where it is stored
SERVICES = (
    "producer",
    "consumer",
    "airflow-scheduler",
    "airflow-dag-processor",
    "airflow-api-server",
    "airflow-db-migrate",
    "dashboard",
    "kafka-ui",
    "kafka",
    "postgres",
)
COUNT_EVENTS = "select count(*) from raw_access_events"


def daemon(name: str) -> Daemon:
    """The process of that name in this state folder, running or not."""
    return Daemon(name, state_dir(), state_dir() / "logs" / f"{name}.log")


def is_external(name: str, host: str) -> bool:
    """Whether the settings place the server elsewhere, or say that it is not ours to start."""
    return name in (os.environ.get("STACK_EXTERNAL") or "").split(",") or host not in (LOOPBACK, "localhost", "::1")


def bootstrap_servers() -> str:
    return os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or f"{LOOPBACK}:9092"


def local_kafka() -> KafkaBroker | None:
    """The broker that the settings place on this machine, running or not; None: another one is used."""
    host, _, port = bootstrap_servers().rpartition(":")
    if "," in host or is_external("kafka", host):
        return None
    if not port.isdigit():
        raise ServerError(f"KAFKA_BOOTSTRAP_SERVERS={bootstrap_servers()} is not host:port")
    return KafkaBroker(state_dir() / "kafka", int(port), log_file=daemon("kafka").log_file)


def local_postgres() -> PostgresServer | None:
    """The PostgreSQL that the settings place on this machine, running or not; None: another one is used."""
    settings = pipeline_settings.postgres_parameters()
    if is_external("postgres", settings["PGHOST"]):
        return None
    return PostgresServer(
        state_dir() / "postgres",
        port_setting("PGPORT", 5432),
        settings["PGPASSWORD"],
        user=settings["PGUSER"],
        database=settings["PGDATABASE"],
        log_file=daemon("postgres").log_file,
    )


def start_servers() -> None:
    """Starts what is ours and does not run, then makes the missing topics and tables. Raises ServerError."""
    state_dir().mkdir(mode=0o755, parents=True, exist_ok=True)
    for server in (local_postgres(), local_kafka()):
        if server is not None:
            server.start()
    try:
        with closing(pipeline_settings.connect_postgres("smart-access-stack")) as connection:
            pipeline_settings.apply_schema(connection)
    except psycopg2.OperationalError as error:
        raise ServerError(f"PostgreSQL does not let us in (PGHOST, PGPORT, PGUSER …): {str(error).strip()}") from None
    arguments = argparse.ArgumentParser()
    pipeline_settings.add_kafka_options(arguments)
    options = arguments.parse_args([])
    try:
        ensure_topics(pipeline_settings.kafka_connection(options), options.partitions, options.replication_factor)
    except KafkaTimeoutError:
        raise ServerError(f"no broker answers at {bootstrap_servers()}: set KAFKA_BOOTSTRAP_SERVERS") from None


def stop_all() -> None:
    """Ends, in order, whatever runs of this state folder."""
    for name in SERVICES:
        service: Daemon | KafkaBroker | PostgresServer | None = daemon(name)
        if name == "kafka":
            service = local_kafka() or service
        elif name == "postgres":
            service = local_postgres() or service
        if service is not None and daemon(name).is_running():
            say(f"stopping {name} …")
            service.stop()


def up() -> int:
    start_servers()
    environment_file = write_environment_file()
    say(f"Kafka       {bootstrap_servers()}{_origin(local_kafka())}")
    settings = pipeline_settings.postgres_parameters()
    say(f"PostgreSQL  {settings['PGHOST']}:{settings['PGPORT']}{_origin(local_postgres())}")
    psql = f"psql -U {settings['PGUSER']} -d {settings['PGDATABASE']}"
    say(f"\nNext, in two terminals, each after\n    source {environment_file}\nrun")
    say("    python streaming/kafka_consumer.py\n    python streaming/kafka_producer.py --duration 10")
    say(f"and look at the rows:\n    {psql} -c '{COUNT_EVENTS}'")
    return 0


def _origin(server: object | None) -> str:
    return "" if server is not None else "  (not started here)"


def write_environment_file() -> Path:
    """For `source`: the environment's python and, after what is installed already, a psql; libpq's settings."""
    settings = {**pipeline_settings.postgres_parameters(), "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers()}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    python, psql = Path(sys.executable).parent, binaries_folder()
    lines.append(f'export PATH={shlex.quote(str(python))}:"$PATH":{shlex.quote(str(psql))}')
    file = state_dir() / "env"
    file.touch(mode=0o600)
    file.write_text("\n".join(lines) + "\n")
    return file.relative_to(ROOT) if file.is_relative_to(ROOT) else file


def down() -> int:
    stop_all()
    say("everything is stopped; the data stays")
    return 0


def status() -> int:
    """0 when Kafka and PostgreSQL run, as far as they are ours."""
    for name in SERVICES:
        pid = daemon(name).pid
        say(f"{name:<22} {f'running, pid {pid}' if pid else '-'}")
    say(f"{'state':<22} {state_dir()}")
    ours = [server for server in (local_kafka(), local_postgres()) if server is not None]
    return 0 if all(server.is_running() for server in ours) else 1


def reset(confirmed: bool) -> int:
    question = f"Stop everything and remove all topics, tables and logs in {state_dir()}? [y/N] "
    if not confirmed and input(question).strip().lower() not in ("y", "yes"):
        say("nothing was removed")
        return 1
    stop_all()
    postgres = local_postgres()
    if postgres is not None:
        postgres.wipe()
    for path in state_dir().iterdir() if state_dir().exists() else ():
        if path.name == "jars":  # the same for every start: not worth another download
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    say("removed")
    return 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/stack", description="Kafka and PostgreSQL on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="up|down|status|reset")
    commands.add_parser("up", help="start the servers, make topics and tables, say what to do next")
    commands.add_parser("down", help="stop everything; the data stays")
    commands.add_parser("status", help="what runs; exit code 1 unless Kafka and PostgreSQL do")
    confirm = commands.add_parser("reset", help="stop everything and remove the data")
    confirm.add_argument("--yes", action="store_true", help="do not ask")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    commands = {"up": up, "down": down, "status": status, "reset": lambda: reset(args.yes)}
    try:
        return commands[args.command]()
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
