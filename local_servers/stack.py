"""Kafka and PostgreSQL for the guide's two terminals: python -m local_servers.stack up|down|status|reset.

`up` starts what the settings place on this machine, makes topics and tables, and says what to do next; again, it finds
everything running. A server that the settings place elsewhere (another host, several brokers that are not ours, or its
name in STACK_EXTERNAL=kafka,postgres) is only asked whether it answers. Data survives `down`; `reset` removes it.

`up --brokers 3` makes a cluster that survives the loss of any one broker, `up --secure` one with TLS, passwords and
ACLs. The data stays what it was made as: a later `up` needs neither. `up --monitoring` adds Prometheus, Alertmanager
and what they scrape.

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
from typing import Any

import psycopg2
from kafka.errors import KafkaError

import pipeline_settings
from kafka_contact import NoContact, first_contact
from local_servers import LOOPBACK, ROOT, ServerError, is_listening, port_setting, state_dir
from local_servers.daemon import Daemon
from local_servers.kafka_agent import DEFAULT_PORT as KAFKA_METRICS_PORT
from local_servers.kafka_cluster import KafkaCluster, names, stop_together
from local_servers.kafka_security import ADMIN, CONSUMER, PRODUCER, USERS, KafkaSecurity, acls, grant
from local_servers.monitoring import NAMES as MONITORING
from local_servers.monitoring import Monitoring, find_programs
from local_servers.postgres_server import PostgresServer, binaries_folder
from topics import ensure_topics

MOST_BROKERS = 3
# The order in which they end: who watches before who writes, that before who stores, and that before where it is stored
SERVICES = (
    *MONITORING,
    "producer",
    "consumer",
    "airflow-scheduler",
    "airflow-dag-processor",
    "airflow-api-server",
    "airflow-db-migrate",
    "dashboard",
    "kafka-ui",
    *names(1),
    *names(MOST_BROKERS),
    "postgres",
)
KEPT = ("jars", "maven", "drop")  # of a reset: what was downloaded is the same for every start, and files are not ours
COUNT_EVENTS = "select count(*) from raw_access_events"


def daemon(name: str) -> Daemon:
    """The process of that name in this state folder, running or not."""
    return Daemon(name, state_dir(), state_dir() / "logs" / f"{name}.log")


def is_external(name: str, host: str) -> bool:
    """Whether the settings place the server elsewhere, or say that it is not ours to start."""
    return name in (os.environ.get("STACK_EXTERNAL") or "").split(",") or host not in (LOOPBACK, "localhost", "::1")


def bootstrap_servers() -> str:
    return os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or f"{LOOPBACK}:9092"


def kafka_security() -> KafkaSecurity:
    return KafkaSecurity(state_dir() / "kafka-security")


def brokers_with_data() -> int | None:
    """Of how many brokers the data in this state folder is; None: there is none yet."""
    for count in range(MOST_BROKERS, 0, -1):
        if (state_dir() / names(count)[-1] / "log" / "meta.properties").exists():
            return count
    return None


def local_kafka(
    brokers: int | None = None, secure: bool = False, metrics_port: int | None = None
) -> KafkaCluster | None:
    """The Kafka that the settings place on this machine, running or not; None: another one is used.

    brokers, secure: what new data is to be; what is there stays as it was made. Raises ServerError where they differ.
    metrics_port: of the first broker; the brokers that are started tell their metrics there and on the next ports.
    """
    servers = bootstrap_servers().split(",")
    found = brokers_with_data()
    if brokers and found and brokers != found:
        raise ServerError(
            f"the data in {state_dir()} is of {found} broker(s), not of {brokers}: set STACK_DIR to another folder, or"
            " remove the data with scripts/stack reset"
        )
    count = brokers or found or 1
    if any(is_external("kafka", server.rpartition(":")[0]) for server in servers) or len(servers) not in (1, count):
        return None
    ports = [server.rpartition(":")[2] for server in servers]
    if not all(port.isdigit() for port in ports):
        raise ServerError(f"KAFKA_BOOTSTRAP_SERVERS={bootstrap_servers()} is not host:port")
    first = int(ports[0])
    return KafkaCluster(
        state_dir(),
        [int(port) for port in ports] if len(ports) == count else list(range(first, first + count)),
        log_folder=daemon("kafka").log_file.parent,
        security=kafka_security() if secure or kafka_security().exists() else None,
        metrics_port=metrics_port,
    )


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


def start_servers(
    brokers: int | None = None, secure: bool = False, metrics_port: int | None = None
) -> KafkaCluster | None:
    """Starts what is ours and does not run, then makes the missing topics and tables. Raises ServerError."""
    kafka = local_kafka(brokers, secure, metrics_port)
    if kafka is None and (brokers or secure):
        raise ServerError("--brokers and --secure are for a Kafka that is started here: unset KAFKA_BOOTSTRAP_SERVERS")
    state_dir().mkdir(mode=0o755, parents=True, exist_ok=True)
    for server in (local_postgres(), kafka):
        if server is not None:
            server.start()
    try:
        with closing(pipeline_settings.connect_postgres("smart-access-stack")) as connection:
            pipeline_settings.apply_schema(connection)
    except psycopg2.OperationalError as error:
        raise ServerError(f"PostgreSQL does not let us in (PGHOST, PGPORT, PGUSER …): {str(error).strip()}") from None
    options = _kafka_options()
    copies = max(options.replication_factor, len(kafka.brokers) if kafka else 1)
    connection = admin_connection(kafka)
    try:
        first_contact(connection)
        ensure_topics(connection, options.partitions, copies)
        if kafka and kafka.security:
            grant(connection, acls(consumer_group()))
    except (NoContact, KafkaError) as error:
        raise ServerError(str(error)) from None
    return kafka


def _kafka_options() -> argparse.Namespace:
    """The scripts' own Kafka settings, from the environment."""
    parser = argparse.ArgumentParser()
    pipeline_settings.add_kafka_options(parser)
    return parser.parse_args([])


def admin_connection(kafka: KafkaCluster | None) -> dict[str, Any]:
    """What a kafka-python client needs to connect: to ours as its admin, to another as the settings say."""
    return kafka.admin_connection() if kafka else pipeline_settings.kafka_connection(_kafka_options())


def consumer_group() -> str:
    return os.environ.get("CONSUMER_GROUP") or "smart-access-sink"


def stop_all() -> None:
    """Ends, in order, whatever runs of this state folder."""
    for name in SERVICES:
        if daemon(name).is_running():
            say(f"stopping {name} …")
            if name in names(MOST_BROKERS):
                stop_together([daemon(broker) for broker in names(MOST_BROKERS)])
            elif name == "postgres":
                (local_postgres() or daemon(name)).stop()
            else:
                daemon(name).stop(timeout_s=60 if name == "kafka" else 30)


def start_monitoring(kafka: KafkaCluster | None) -> None:
    brokers = kafka.brokers if kafka else []
    ports = [broker.metrics_port for broker in brokers if broker.metrics_port is not None]
    monitoring = Monitoring(state_dir(), daemon("prometheus").log_file.parent, ports)
    monitoring.start()
    say(f"Prometheus  {monitoring.url('prometheus')}  Alertmanager {monitoring.url('alertmanager')}")
    if not all(is_listening(port) for port in ports):
        say("Kafka ran already, and tells no metrics: scripts/stack down, then scripts/stack up --monitoring")


def up(brokers: int | None, secure: bool, monitoring: bool) -> int:
    if monitoring:
        find_programs()  # before anything is started
    metrics_port = port_setting("KAFKA_METRICS_PORT", KAFKA_METRICS_PORT) if monitoring else None
    kafka = start_servers(brokers, secure, metrics_port)
    servers = kafka.bootstrap_servers if kafka else bootstrap_servers()
    settings = {**pipeline_settings.postgres_parameters(), "KAFKA_BOOTSTRAP_SERVERS": servers}
    if kafka and len(kafka.brokers) > 1:
        settings["KAFKA_REPLICATION_FACTOR"] = str(len(kafka.brokers))
    secured = kafka is not None and kafka.security is not None
    say(f"Kafka       {servers}{'' if kafka else '  (not started here)'}{'  SASL_SSL' if secured else ''}")
    ours = "" if local_postgres() else "  (not started here)"
    say(f"PostgreSQL  {settings['PGHOST']}:{settings['PGPORT']}{ours}")
    if monitoring:
        start_monitoring(kafka)
    consumer = producer = write_environment_file("env", settings)
    if kafka and kafka.security:
        by_user = {user: settings | kafka.security.client_environment(user) for user in USERS}
        files = {user: write_environment_file(f"env-{user}", by_user[user]) for user in USERS}
        consumer, producer = files[CONSUMER], files[PRODUCER]
        say(f"\nEach user has its own rights; {files[ADMIN]} is for tools that may do everything.")
    say("\nNext, in two terminals:")
    say(f"    source {consumer} && python streaming/kafka_consumer.py")
    say(f"    source {producer} && python streaming/kafka_producer.py --duration 10")
    psql = f"psql -U {settings['PGUSER']} -d {settings['PGDATABASE']}"
    say(f"and look at the rows:\n    {psql} -c '{COUNT_EVENTS}'")
    return 0


def write_environment_file(name: str, settings: dict[str, str]) -> Path:
    """For `source`: the settings; the environment's python and, after what is installed already, a psql."""
    lines = [f"export {setting}={shlex.quote(value)}" for setting, value in settings.items()]
    python, psql = Path(sys.executable).parent, binaries_folder()
    lines.append(f'export PATH={shlex.quote(str(python))}:"$PATH":{shlex.quote(str(psql))}')
    file = state_dir() / name
    file.touch(mode=0o600)
    file.write_text("\n".join(lines) + "\n")
    return file.relative_to(ROOT) if file.is_relative_to(ROOT) else file


def down() -> int:
    stop_all()
    say("everything is stopped; the data stays")
    return 0


def status() -> int:
    """0 when Kafka and PostgreSQL run, as far as they are ours."""
    other_sizes = {*names(1), *names(MOST_BROKERS)} - set(names(brokers_with_data() or 1))
    for name in SERVICES:
        pid = daemon(name).pid
        if pid or name not in other_sizes:
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
        if path.name in KEPT:
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
    start = commands.add_parser("up", help="start the servers, make topics and tables, say what to do next")
    start.add_argument(
        "--brokers",
        type=int,
        choices=(1, 3),
        help="a cluster of so many brokers; with 3 each record has three copies, two before it counts (default: what"
        " the data was made with, 1 for new data)",
    )
    start.add_argument(
        "--secure",
        action="store_true",
        help="TLS, SCRAM-SHA-512 passwords and ACLs, with an authority of its own (default: what the data was made"
        " with, off for new data)",
    )
    start.add_argument(
        "--monitoring",
        action="store_true",
        help="also Prometheus, Alertmanager and exporters, and Kafka's own metrics; needs these programs installed",
    )
    commands.add_parser("down", help="stop everything; the data stays")
    commands.add_parser("status", help="what runs; exit code 1 unless Kafka and PostgreSQL do")
    confirm = commands.add_parser("reset", help="stop everything and remove the data")
    confirm.add_argument("--yes", action="store_true", help="do not ask")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    commands = {
        "up": lambda: up(args.brokers, args.secure, args.monitoring),
        "down": down,
        "status": status,
        "reset": lambda: reset(args.yes),
    }
    try:
        return commands[args.command]()
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 1
    except BrokenPipeError:  # who reads has seen enough: `scripts/stack status | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
