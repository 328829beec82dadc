"""What the faults befall: a Kafka, a PostgreSQL, two consumers and a producer of the run's own, and the links between.

    producer ── link ──► Kafka ◄── link ── two consumers ── link ──► PostgreSQL, its tables on a small disk

If asked for, an Airflow runs the models beside it. The links are there with toxiproxy, the small disk where a tmpfs can
be mounted, clocks that step with libfaketime; what is not to be had is left out, and said.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

from fault_proxy import MISSING, FaultProxy, proxy_program
from models_run import ModelsRun
from numbered_events import PARTITIONS
from onlooker import DATABASE, GROUP, Onlooker
from script import Script, faketime_library
from small_disk import UNAVAILABLE, SmallDisk, can_mount

import pipeline_settings
from local_servers import LOOPBACK, is_listening
from local_servers.kafka_broker import KafkaBroker
from local_servers.postgres_server import PostgresServer
from topics import ensure_topics

CONSUMERS = ("consumer-1", "consumer-2")
PRODUCER = "producer"
SESSION_TIMEOUT_S = 6  # the least that a broker takes
# Checkpoints now and then, so that a crash finds something to recover from
POSTGRES_SETTINGS = {"max_wal_size": "256MB", "min_wal_size": "64MB", "checkpoint_timeout": "60s"}
CLOCKLESS = "clock steps need Linux on x86-64, and the package libfaketime"


def steady_ports() -> Iterator[int]:
    """Outside the range that the system takes for outgoing connections: one of those would now and then have the port
    of a server that is down just then."""
    for port in random.sample(range(15_000, 30_000), 1000):
        if not is_listening(port):
            yield port


class Stage(Onlooker):
    """Everything that runs. `start`, then faults, then `close`.

    folder: where the servers' data and all logs go; PostgreSQL's account must reach it.
    rate: records a second.
    with_airflow: whether the models run, too.
    lacks: what is not to be had here, in words.
    keep: whether `close` leaves PostgreSQL's tables in the folder.
    """

    def __init__(self, folder: Path, rate: int, with_airflow: bool = False) -> None:
        self.folder = folder
        self.keep = False
        self.journal = folder / "journal-1"
        self._first_number = 1
        self._ports = steady_ports()
        self._rate = rate
        self._ended_later = ExitStack()
        program, library = proxy_program(), faketime_library()
        self.lacks = [MISSING] * (program is None) + [UNAVAILABLE] * (not can_mount()) + [CLOCKLESS] * (library is None)
        self.has_clocks = library is not None
        self.proxy = FaultProxy(program, folder, next(self._ports)) if program else None
        self.disk = None if UNAVAILABLE in self.lacks else SmallDisk(folder / "tables")
        postgres = PostgresServer(folder / "postgres" / "data", next(self._ports), settings=POSTGRES_SETTINGS)
        self.models = ModelsRun(folder, postgres, DATABASE, next(self._ports)) if with_airflow else None
        # By link, where our script knocks; of one to Kafka, which listener of the broker's is behind it
        self._doors = {f"{name}-kafka": next(self._ports) for name in (PRODUCER, *CONSUMERS)}
        self._listeners = {link: next(self._ports) for link in self._doors}
        self._doors |= {f"{name}-postgres": next(self._ports) for name in CONSUMERS}
        self.broker = self._make_broker()
        super().__init__(postgres, self.broker)
        self.producer = Script(PRODUCER, folder, self._producer_command, {})
        self.consumers = [
            Script(name, folder, lambda: ["streaming/kafka_consumer.py"], self._consumer_environment(name))
            for name in CONSUMERS
        ]
        if library:
            for script in self.scripts:
                script.give_clock(library)

    @property
    def scripts(self) -> list[Script]:
        return [self.producer, *self.consumers]

    def _make_broker(self) -> KafkaBroker:
        """Kafka tells its clients where to go on: with a listener for each link, back through that link."""
        port, controller, internal = islice(self._ports, 3)
        names = {link: link.replace("-", "_").upper() for link in self._listeners}
        listen = {"CLIENT": port, "INTERNAL": internal} | {names[link]: at for link, at in self._listeners.items()}
        told = listen | ({names[link]: self._doors[link] for link in names} if self.proxy else {})
        settings = {
            "listeners": _addresses(listen | {"CONTROLLER": controller}),
            "advertised.listeners": _addresses(told),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in (*listen, "CONTROLLER")),
        }
        return KafkaBroker(
            self.folder / "kafka" / "data", port, controller, heap="256m", fast_start=True, settings=settings
        )

    def _kafka_door(self, name: str) -> str:
        link = f"{name}-kafka"
        return f"{LOOPBACK}:{(self._doors if self.proxy else self._listeners)[link]}"

    def _producer_command(self) -> list[str]:
        command = ["tests/chaos/numbered_producer.py", self._kafka_door(PRODUCER), str(self.journal)]
        return [*command, str(self._rate), str(self._first_number)]

    def _consumer_environment(self, name: str) -> dict[str, str]:
        return {
            **self.postgres.environment(DATABASE),
            **({"PGPORT": str(self._doors[f"{name}-postgres"])} if self.proxy else {}),
            "KAFKA_BOOTSTRAP_SERVERS": self._kafka_door(name),
            "CONSUMER_GROUP": GROUP,
            # The first one's successor need not wait for the session's end, the second one's does
            "CONSUMER_INSTANCE_ID": name if name == CONSUMERS[0] else "",
            "CONSUMER_METRICS_PORT": "0",
            "SESSION_TIMEOUT": str(SESSION_TIMEOUT_S),
        }

    def start(self) -> None:
        self._ended_later.callback(self.broker.stop)
        self.broker.start()
        ensure_topics(self.broker.admin_connection(), PARTITIONS, 1)
        self._ended_later.callback(self._end_postgres)
        self.postgres.start()
        self._make_database()
        if self.proxy:
            self._ended_later.callback(self.proxy.stop)
            self.proxy.start()
            for link, door in self._doors.items():
                self.proxy.add(link, door, self._listeners.get(link, self.postgres.port))
        if self.models:
            self._ended_later.callback(self.models.close)
            self.models.start()
        for script in self.scripts:
            self._ended_later.callback(script.kill)
            script.start()

    def _make_database(self) -> None:
        with closing(self.postgres.connect()) as connection, connection.cursor() as cursor:
            place = ""
            if self.disk:
                self.disk.mount(self.postgres.data_dir.resolve().stat().st_uid)
                cursor.execute("CREATE TABLESPACE small LOCATION %s", (str(self.disk.folder),))
                place = "TABLESPACE small"
            cursor.execute(f"CREATE DATABASE {DATABASE} {place}")
        with closing(self.postgres.connect(DATABASE)) as connection:
            connection.autocommit = False
            pipeline_settings.apply_schema(connection)

    def _end_postgres(self) -> None:
        self.postgres.stop()
        if self.disk:
            self.disk.unmount(keep=self.keep)

    def close(self) -> None:
        self.forget_connection()
        self._ended_later.close()

    def memory(self) -> dict[str, tuple[int, float]]:
        """By process, its pid and the memory that it holds, in MB."""
        found = {}
        daemons = {script.name: script.daemon for script in self.scripts} | {"kafka": self.broker.daemon}
        if self.models:
            daemons |= {daemon.name: daemon for daemon in self.models.services.daemons}
        for name, daemon in daemons.items():
            process = daemon.process()
            if process is not None:
                found[name] = (process.pid, round(process.memory_info().rss / 2**20, 1))
        return found

    def send_on(self, first_number: int, round_number: int) -> None:
        """The producer again, with a journal of the round's own."""
        self._first_number = first_number
        self.journal = self.folder / f"journal-{round_number}"
        self.producer.start()


def _addresses(ports: dict[str, int]) -> str:
    return ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in ports.items())
