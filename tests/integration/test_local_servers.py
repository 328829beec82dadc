"""The servers keep their promises: stop and start, crash and start, and a clear refusal where they cannot start."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from kafka.admin import KafkaAdminClient

from local_servers import ServerError, kafka_broker, kafka_jars
from local_servers.kafka_broker import KafkaBroker
from local_servers.postgres_server import PostgresServer


def count_households(server: PostgresServer) -> int:
    with closing(server.connect(server.database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM raw_households")
        return int(cursor.fetchone()[0])


def store_household(server: PostgresServer, household_id: str) -> None:
    with closing(server.connect(server.database)) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO raw_households (household_id, updated_at) VALUES (%s, now())", (household_id,))


def cluster_of(broker: KafkaBroker) -> str:
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)) as admin:
        return str(admin.describe_cluster()["cluster_id"])


def topics_of(broker: KafkaBroker) -> list[str]:
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)) as admin:
        return sorted(admin.list_topics())


def test_postgres_keeps_committed_rows_over_a_stop_and_a_kill(make_postgres: Callable[..., PostgresServer]) -> None:
    server = make_postgres()
    store_household(server, "before the stop")
    server.stop()
    assert not server.is_running()
    server.start()
    store_household(server, "before the kill")
    server.kill()
    server.start()
    assert count_households(server) == 2


def test_postgres_takes_no_shortcut_with_durability(postgres: PostgresServer) -> None:
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT setting FROM pg_settings WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes')"
        )
        assert cursor.fetchall() == [("on",)] * 3


def test_postgres_starts_when_its_lock_names_a_living_stranger(
    make_postgres: Callable[..., PostgresServer],
) -> None:
    server = make_postgres()
    lock = server.data_dir / "postmaster.pid"
    text = lock.read_text().splitlines()
    server.kill()
    # As after the restart of a container: the pid of the dead server is another process's now
    lock.write_text("\n".join(["1", *text[1:]]) + "\n")
    server.start()
    assert count_households(server) == 0


def test_postgres_is_found_by_another_program(make_postgres: Callable[..., PostgresServer]) -> None:
    server = make_postgres()
    other = PostgresServer(server.data_dir, server.port)
    assert other.is_running()
    other.stop()
    assert not server.is_running()


def test_postgres_refuses_the_data_of_another_major_version(make_postgres: Callable[..., PostgresServer]) -> None:
    server = make_postgres()
    server.stop()
    (server.data_dir / "PG_VERSION").write_text("15\n")
    with pytest.raises(ServerError, match="belongs to PostgreSQL 15, the binaries are 18"):
        server.start()
    (server.data_dir / "PG_VERSION").write_text("18\n")
    server.start()


def test_postgres_says_that_its_data_has_another_password(
    make_postgres: Callable[..., PostgresServer],
) -> None:
    server = make_postgres()
    server.stop()
    other = PostgresServer(server.data_dir, server.port, password="another")
    with pytest.raises(ServerError, match="refuses PGUSER=postgres with this PGPASSWORD"):
        other.start()
    assert not other.is_running()


@pytest.mark.parametrize(
    ("server", "remedy"),
    [(KafkaBroker, "set KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:<free port>"), (PostgresServer, "set PGPORT=<free port>")],
)
def test_a_port_in_use_is_refused_naming_the_setting(server: type, remedy: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} is in use: {remedy}"):
            server(tmp_path / "data", port).start()
    assert not (tmp_path / "data").exists()


def test_kafka_keeps_its_topics_over_a_stop_and_a_kill(make_broker: Callable[..., KafkaBroker]) -> None:
    broker = make_broker()
    cluster = cluster_of(broker)
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)) as admin:
        admin.create_topics({"kept": {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    broker.stop()
    broker.start()
    broker.kill()
    assert not broker.is_running()
    broker.start()
    assert topics_of(broker) == ["kept"]
    assert cluster_of(broker) == cluster

    broker.stop()
    broker.wipe()
    broker.start()
    assert topics_of(broker) == []
    assert cluster_of(broker) != cluster


def test_kafka_starts_with_a_cluster_id_that_looks_like_an_option(
    make_broker: Callable[..., KafkaBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(kafka_broker.uuid, "uuid4", lambda: UUID(bytes=b"\xf8" * 16))
        broker = make_broker()
    assert cluster_of(broker).startswith("-")


def test_kafka_shows_the_end_of_its_log_when_it_cannot_start(make_broker: Callable[..., KafkaBroker]) -> None:
    broker = make_broker()
    broker.stop()
    broken = KafkaBroker(broker.data_dir, broker.port, settings={"num.io.threads": "none"})
    with pytest.raises(ServerError, match=r"kafka ended while starting(.|\n)*none for configuration num\.io\.threads"):
        broken.start()


@pytest.fixture
def jars(tmp_path: Path) -> Path:
    shutil.copytree(kafka_jars.jars_folder(), tmp_path / "jars", ignore=shutil.ignore_patterns("*.jsa"))
    return tmp_path / "jars"


def test_the_downloaded_jars_are_the_committed_ones(jars: Path) -> None:
    kafka_jars.verify(jars)


def test_a_changed_jar_is_refused(jars: Path) -> None:
    with (jars / "kafka-clients-4.3.1.jar").open("ab") as jar:
        jar.write(b"\0")
    with pytest.raises(ServerError, match=r"changed: kafka-clients-4\.3\.1\.jar"):
        kafka_jars.verify(jars)


def test_a_missing_jar_is_refused(jars: Path) -> None:
    (jars / "kafka-clients-4.3.1.jar").unlink()
    with pytest.raises(ServerError, match=r"missing: kafka-clients-4\.3\.1\.jar"):
        kafka_jars.verify(jars)


def test_an_extra_jar_is_refused(jars: Path) -> None:
    (jars / "more.jar").write_bytes(b"")
    with pytest.raises(ServerError, match=r"not in the list: more\.jar"):
        kafka_jars.verify(jars)
