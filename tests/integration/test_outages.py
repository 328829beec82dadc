"""Outages of either server under load: no dead letter, no loss, and nobody has to do anything."""

from __future__ import annotations

import json
import re
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from event_stream import Launcher, Stream, metric, stop, wait_until
from running_consumer import get

import pipeline_settings
from local_servers import free_port

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker
    from local_servers.postgres_server import PostgresServer


# a broker that ends leaves kafka-python with sockets that it forgets to close
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]


@pytest.fixture(scope="module")
def own_postgres(servers_folder: Path) -> Iterator[PostgresServer]:
    """A server that these tests may stop."""
    from local_servers.postgres_server import PostgresServer

    server = PostgresServer(servers_folder / "outages-postgres" / "data", free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def fragile(kafka: KafkaBroker, own_postgres: PostgresServer, tmp_path: Path) -> Iterator[Stream]:
    """A stream whose PostgreSQL may be stopped."""
    name = f"test_{uuid.uuid4().hex}"
    own_postgres.start()
    own_postgres.create_database(name)
    with closing(own_postgres.connect(name)) as connection:
        connection.autocommit = False
        pipeline_settings.apply_schema(connection)
    with closing(Stream(kafka, own_postgres.environment(name), tmp_path)) as events:
        yield events


def ready(port: int) -> tuple[int, dict[str, Any]]:
    """What /readyz answers."""
    try:
        return 200, json.loads(get(port, "/readyz"))
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.loads(refusal.read())
    except urllib.error.URLError:
        return 0, {}  # not listening yet


def is_backing_off(port: int) -> bool:
    code, report = ready(port)
    return code == 503 and report["state"] == "backing_off"


@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_postgresql_away_under_load_costs_nothing(
    fragile: Stream, own_postgres: PostgresServer, launch: Launcher, fault: str
) -> None:
    port = free_port()
    # small batches: they pile up while PostgreSQL is away, until there is no room for more
    running = launch(fragile, BATCH_SIZE="200", CONSUMER_METRICS_PORT=str(port))
    with fragile.load(rate=1500):
        fragile.wait_for_progress(running, 1000)
        wait_until(lambda: ready(port)[0] == 200, running)
        getattr(own_postgres, fault)()
        wait_until(lambda: is_backing_off(port), running)
        assert "backing off" in ready(port)[1]["detail"]
        assert get(port, "/healthz")
        seen = fragile.sent
        wait_until(lambda: fragile.sent >= seen + 4000, running)  # until there has been no room for a while
        own_postgres.start()
        fragile.wait_for_progress(running, 2000)
        wait_until(lambda: ready(port)[0] == 200, running)
    fragile.wait_until_consumed(running)
    assert metric(get(port, "/metrics"), "consumer_retries_total") > 0
    assert metric(get(port, "/metrics"), "consumer_fenced_total") == 0
    assert running.log.count("assigned ") == 1
    stop(running)
    fragile.assert_each_once()


def test_a_consumer_that_starts_before_postgresql_waits_for_it(
    fragile: Stream, own_postgres: PostgresServer, launch: Launcher
) -> None:
    fragile.send_events(300)
    own_postgres.stop()
    port = free_port()
    running = launch(fragile, CONSUMER_METRICS_PORT=str(port))
    wait_until(lambda: is_backing_off(port), running)
    assert "waiting for PostgreSQL" in running.log
    own_postgres.start()
    fragile.wait_until_consumed(running)
    wait_until(lambda: ready(port)[0] == 200, running)
    stop(running)
    fragile.assert_each_once()


def test_a_consumer_that_waits_for_postgresql_can_be_stopped(
    fragile: Stream, own_postgres: PostgresServer, launch: Launcher
) -> None:
    own_postgres.stop()
    running = launch(fragile)
    wait_until(lambda: "waiting for PostgreSQL" in running.log, running)
    stop(running, timeout=8)


def test_stopped_while_postgresql_is_away_it_ends_soon_and_loses_nothing(
    fragile: Stream, own_postgres: PostgresServer, launch: Launcher
) -> None:
    port = free_port()
    running = launch(fragile, BATCH_SIZE="200", CONSUMER_METRICS_PORT=str(port))
    with fragile.load(rate=1000):
        fragile.wait_for_progress(running, 500)
        own_postgres.kill()
        wait_until(lambda: is_backing_off(port), running)
    stop(running, timeout=15)
    assert "rows not yet written: they will be read again" in running.log
    own_postgres.start()
    successor = launch(fragile)
    fragile.wait_until_consumed(successor)
    stop(successor)
    fragile.assert_each_once()


def test_a_broker_restarted_and_killed_under_load_costs_nothing(
    own_broker: KafkaBroker, own_stream: Stream, launch: Launcher
) -> None:
    running = launch(own_stream)
    with own_stream.load(rate=1000):
        for fault in (own_broker.stop, own_broker.kill):
            own_stream.wait_for_progress(running, 1000)
            fault()
            own_broker.start()
        own_stream.wait_for_progress(running, 2000)
    own_stream.wait_until_consumed(running)
    stop(running)
    own_stream.assert_each_once()
    # one that ended its membership would be waited for until its session had ended
    assert "joining anew" not in running.log
    assert running.log.count(" assigned ") == 1


def test_a_consumer_that_must_join_anew_while_the_broker_is_away_waits_for_it(
    own_broker: KafkaBroker, own_stream: Stream, launch: Launcher
) -> None:
    running = launch(own_stream)
    own_stream.send_events(600)
    own_stream.wait_until_consumed(running)
    with closing(own_stream.connect()) as connection, connection.cursor() as cursor:
        # what another consumer would do that owned the partitions
        cursor.execute("UPDATE ingest_offsets SET next_offset = next_offset + 1")
        own_stream.send_events(600)
        wait_until(lambda: own_stream.waiting("smart-access-writer"), running)
        own_broker.kill()
        connection.commit()
    wait_until(lambda: "joining anew" in running.log, running)
    own_stream.execute("UPDATE ingest_offsets SET next_offset = next_offset - 1")
    own_broker.start()
    own_stream.wait_until_consumed(running)
    stop(running)
    own_stream.assert_each_once()


@pytest.mark.slow
def test_a_broker_that_is_back_at_another_address_is_found_by_both_scripts(
    make_broker: Callable[..., KafkaBroker], database: dict[str, str], tmp_path: Path, launch: Launcher
) -> None:
    """Where to begin is still the same; where to go on, by what the broker tells, is not."""
    begin, controller, internal, before, after = (free_port() for _ in range(5))
    names = ("CLIENT", "ON", "INTERNAL", "CONTROLLER")
    settings = {"listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in names)}

    def move(port: int) -> None:
        others = f"ON://127.0.0.1:{port},INTERNAL://127.0.0.1:{internal}"
        settings["advertised.listeners"] = f"CLIENT://127.0.0.1:{port},{others}"
        settings["listeners"] = f"CLIENT://127.0.0.1:{begin},{others},CONTROLLER://127.0.0.1:{controller}"

    move(before)
    broker = make_broker(settings=settings, port=begin, controller_port=controller)
    with closing(Stream(broker, database, tmp_path)) as stream:
        consumer = launch(stream)
        producer = launch(stream, script="streaming/kafka_producer.py", PRODUCER_METRICS_PORT="0")
        stream.wait_for_progress(consumer, 500)
    broker.stop()
    move(after)
    broker.start()
    stream.wait_for_progress(consumer, 500, timeout=120)
    stop(producer)
    [(sent, acknowledged)] = re.findall(r"^sent=(\d+) acknowledged=(\d+) failed=0 ", producer.log, re.MULTILINE)
    assert sent == acknowledged
    stream.wait_until_consumed(consumer)
    stop(consumer)
    assert 1 <= consumer.log.count("Kafka is away") <= 2  # once, and again if it answered in between
    assert sum(topic["consumed"] for topic in stream.ledger().values()) == int(acknowledged)
