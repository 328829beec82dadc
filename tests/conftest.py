"""Real servers for the tests that ask for them: one Kafka and one PostgreSQL a session, on free ports.

Their data lies in a temporary folder outside the project, so a running demo is not touched. Nothing is started, or
even imported, for a test that does not ask.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker
    from local_servers.kafka_cluster import KafkaCluster
    from local_servers.postgres_server import PostgresServer


def pytest_configure() -> None:
    # A terminated run ends its servers, as an interrupted one does
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes one gets a whole file, or all of the dashboard's, whose fleet is dear to make."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "tests/dashboard" if file.startswith("tests/dashboard/") else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's account can reach when root runs the tests; pytest's own temporary folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="smart-access-tests-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def kafka(servers_folder: Path) -> Iterator[KafkaBroker]:
    """The session's broker. A test that stops or wipes one makes its own with `make_broker`."""
    with ExitStack() as ended_later:
        yield _broker_maker(servers_folder, ended_later)()


@pytest.fixture(scope="session")
def postgres(servers_folder: Path) -> Iterator[PostgresServer]:
    """The session's server. A test that stops it makes its own with `make_postgres`.

    A login costs 15 ms of hashing by default, and the tests log in thousands of times.
    """
    with ExitStack() as ended_later:
        server = _postgres_maker(servers_folder, ended_later)(settings={"scram_iterations": "1"})
        with closing(server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"ALTER ROLE {server.user} PASSWORD '{server.password}'")
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """A new database with the project's tables and no rows; yields libpq's variables that name it."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.create_database(name)
    apply_project_schema(postgres, name)
    yield postgres.environment(name)
    postgres.drop_database(name)


@pytest.fixture
def make_broker(servers_folder: Path) -> Iterator[Callable[..., KafkaBroker]]:
    """Starts a broker of the test's own: make_broker(settings={…}, port=…)."""
    with ExitStack() as ended_later:
        yield _broker_maker(servers_folder, ended_later)


@pytest.fixture(scope="module")
def make_cluster(servers_folder: Path) -> Iterator[Callable[..., KafkaCluster]]:
    """Starts brokers of the module's own: make_cluster(3), make_cluster(1, secure=True)."""
    from local_servers import free_port
    from local_servers.kafka_cluster import KafkaCluster
    from local_servers.kafka_security import KafkaSecurity

    with ExitStack() as ended_later:

        def make(brokers: int, secure: bool = False) -> KafkaCluster:
            folder = servers_folder / f"cluster-{uuid.uuid4().hex[:8]}"
            security = KafkaSecurity(folder / "security") if secure else None
            ports = [free_port() for _ in range(brokers)]
            cluster = KafkaCluster(folder, ports, security=security, heap="256m", fast_start=True)
            ended_later.callback(cluster.stop)
            cluster.start()
            return cluster

        yield make


@pytest.fixture
def make_postgres(servers_folder: Path) -> Iterator[Callable[..., PostgresServer]]:
    """Starts a PostgreSQL of the test's own, its database with the project's tables: make_postgres(settings={…})."""
    with ExitStack() as ended_later:
        make = _postgres_maker(servers_folder, ended_later)

        def make_with_tables(**options: Any) -> PostgresServer:
            server = make(**options)
            apply_project_schema(server, server.database)
            return server

        yield make_with_tables


def apply_project_schema(server: PostgresServer, database: str) -> None:
    import pipeline_settings

    with closing(server.connect(database)) as connection:
        connection.autocommit = False
        pipeline_settings.apply_schema(connection)


def _broker_maker(folder: Path, ended_later: ExitStack) -> Callable[..., KafkaBroker]:
    from local_servers import free_port
    from local_servers.kafka_broker import KafkaBroker

    def make(**options: Any) -> KafkaBroker:
        place = folder / f"kafka-{uuid.uuid4().hex[:8]}" / "data"
        broker = KafkaBroker(place, **{"port": free_port(), "heap": "256m", "fast_start": True, **options})
        ended_later.callback(broker.stop)
        broker.start()
        return broker

    return make


def _postgres_maker(folder: Path, ended_later: ExitStack) -> Callable[..., PostgresServer]:
    from local_servers import free_port
    from local_servers.postgres_server import PostgresServer

    def make(**options: Any) -> PostgresServer:
        place = folder / f"postgres-{uuid.uuid4().hex[:8]}" / "data"
        server = PostgresServer(place, **{"port": free_port(), **options})
        ended_later.callback(server.stop)
        server.start()
        return server

    return make
