"""Kafka's log against the ledger: wiped, overtaken by retention, made anew, and full of offsets without a record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from event_stream import Launcher, Stream, event, stop, wait_until
from kafka import KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from running_consumer import PARTITIONS, Consumer

from contracts import EVENTS
from membership import SILENCE_S
from topics import ensure_topics

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker

# a broker that ends leaves kafka-python with sockets that it forgets to close
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

BY_CLUSTER = """
    SELECT cluster_id, sum(stored)::int, sum(duplicates)::int, sum(dead)::int, sum(gaps)::int, bool_and(balanced)
    FROM ingest_ledger WHERE topic = 'smart-access.events' AND consumer_group = %s GROUP BY 1
"""


@contextmanager
def admin(stream: Stream) -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers)) as client:
        yield client


def test_lag_tools_find_in_kafka_what_is_stored(stream: Stream, launch: Launcher) -> None:
    running = launch(stream)
    with admin(stream) as client:
        for _ in range(2):  # while it runs
            stream.send_events(600)
            stream.wait_until_consumed(running)
            wait_until(lambda: committed(client, stream) == stream.ends(), running)
        stream.send_events(60)
        stream.wait_until_consumed(running)
        stop(running)
        assert committed(client, stream) == stream.ends()


def committed(client: KafkaAdminClient, stream: Stream) -> dict[tuple[str, int], int]:
    found = client.list_group_offsets(stream.group)[stream.group]
    return {(place.topic, place.partition): at.offset for place, at in found.items()}


def expire_everything(stream: Stream) -> None:
    """What retention does: events sent so far are deleted by Kafka."""
    everything = {TopicPartition(EVENTS.topic, partition): -1 for partition in range(PARTITIONS)}
    with admin(stream) as client:
        client.delete_records(everything)


def last_line(running: Consumer) -> str:
    """Waits for the end of a consumer that must fail."""
    assert running.process.wait(30) == 1, running.log
    return running.log.splitlines()[-1]


def consumed_and_stopped(stream: Stream, launch: Launcher, *arguments: str) -> Consumer:
    running = launch(stream, *arguments)
    stream.wait_until_consumed(running)
    stop(running)
    return running


@pytest.mark.parametrize(
    ("runs_meanwhile", "fresh"),
    [(True, 300), (True, 1200), (False, 1200)],
    ids=["running_and_the_log_is_shorter", "running_and_the_log_is_longer", "stopped"],
)
def test_a_kafka_that_was_wiped_and_made_anew_is_read_from_its_beginning(
    own_broker: KafkaBroker,
    own_stream: Stream,
    database: dict[str, str],
    tmp_path: Path,
    launch: Launcher,
    runs_meanwhile: bool,
    fresh: int,
) -> None:
    own_stream.send_events(600)
    running = launch(own_stream)
    own_stream.wait_until_consumed(running)
    if not runs_meanwhile:
        stop(running)
    own_stream.close()
    own_broker.kill()
    own_broker.wipe()
    own_broker.start()
    with closing(Stream(own_broker, database, tmp_path)) as anew:
        anew.group = own_stream.group
        anew.sent = 500  # a hundred of the events have been in the old log already
        anew.send_events(100 + fresh)
        if not runs_meanwhile:
            running = launch(anew)
        wait_until(lambda: by_cluster(anew).get(anew.cluster) == (fresh, 100, 0, 0, True), running)
        stop(running)
        assert by_cluster(anew) == {
            own_stream.cluster: (600, 0, 0, 0, True),
            anew.cluster: (fresh, 100, 0, 0, True),
        }
        assert len(anew.stored()) == 600 + fresh


def by_cluster(stream: Stream) -> dict[str, tuple[Any, ...]]:
    """Stored, duplicates, dead, gaps and whether it balances, of the events' ledger."""
    return {cluster: tuple(counts) for cluster, *counts in stream.rows(BY_CLUSTER, stream.group)}


def test_what_was_read_of_a_kafka_that_then_does_not_say_which_it_is_is_read_again(
    stream: Stream, launch: Launcher
) -> None:
    running = launch(stream, script="tests/integration/unanswered_consumer.py")
    wait_until(lambda: " assigned " in running.log, running)
    time.sleep(2 * SILENCE_S)  # so that it asks when it reads again
    stream.send_events(600)
    stream.wait_until_consumed(running)
    stop(running)
    assert "unanswered" in running.log
    stream.assert_each_once()


def test_what_retention_deleted_unread_stops_the_consumer_until_the_gap_is_accepted(
    stream: Stream, launch: Launcher
) -> None:
    stream.send_events(600)
    consumed_and_stopped(stream, launch)
    stream.send_events(600)
    expire_everything(stream)
    stream.send_events(600)
    line = last_line(launch(stream))
    assert "(100 records) were deleted by Kafka before being read" in line
    assert "--accept-gap" in line
    assert len(stream.stored()) == 600
    running = consumed_and_stopped(stream, launch, "--accept-gap")
    assert running.log.count("accepted, recorded in the ledger as a gap") == PARTITIONS
    counts = {"consumed": 1800, "stored": 1200, "duplicates": 0, "dead": 0, "gaps": 600}
    assert stream.ledger()[EVENTS.topic] == counts
    assert len(stream.stored()) == 1200


@pytest.mark.parametrize("accepts", [False, True], ids=["stops", "accepts"])
def test_retention_that_overtakes_a_running_consumer(stream: Stream, launch: Launcher, accepts: bool) -> None:
    running = launch(stream, *(["--accept-gap"] if accepts else []), BATCH_SIZE="50")
    stream.send_events(600)
    stream.wait_until_consumed(running)
    with stream.rows_held_up():  # it reads on until it has no more room, and no further
        stream.send_events(60_000)
        wait_until(lambda: stream.waiting("smart-access-writer"), running)
        expire_everything(stream)
    stream.send_events(600)
    if not accepts:
        line = last_line(running)
        assert "were deleted by Kafka before being read" in line
        assert "--accept-gap" in line
        running = launch(stream, "--accept-gap")
    stream.wait_until_consumed(running)
    stop(running)
    found = stream.ledger()[EVENTS.topic]
    assert found["gaps"] > 0
    assert found == {**found, "consumed": 61_200, "stored": 61_200 - found["gaps"], "duplicates": 0, "dead": 0}
    assert len(stream.stored()) == found["stored"]


@pytest.mark.parametrize("runs_meanwhile", [True, False], ids=["running", "stopped"])
def test_a_topic_made_anew_in_the_same_cluster_needs_a_decision(
    own_stream: Stream, launch: Launcher, runs_meanwhile: bool
) -> None:
    own_stream.send_events(600)
    running = launch(own_stream)
    own_stream.wait_until_consumed(running)
    if not runs_meanwhile:
        stop(running)
    with admin(own_stream) as client:
        client.delete_topics([EVENTS.topic])
        wait_until(lambda: EVENTS.topic not in client.list_topics())
    ensure_topics({"bootstrap_servers": [own_stream.bootstrap_servers]}, PARTITIONS, 1)
    own_stream.send_events(60)
    if not runs_meanwhile:
        running = launch(own_stream)
    line = last_line(running)
    # while it runs, Kafka may tell of it as a truncated log first
    told = ["Kafka's log ends at 10", *(["Kafka has lost records that were read from it"] if runs_meanwhile else [])]
    assert any(words in line for words in told), line
    assert "CONSUMER_GROUP" in line
    own_stream.group = "another-group"
    running = launch(own_stream)
    wait_until(lambda: len(own_stream.stored()) == 660, running)
    stop(running)


def test_a_topic_deleted_under_a_running_consumer_is_not_given_up_in_silence(
    own_stream: Stream, launch: Launcher
) -> None:
    own_stream.send_events(600)
    running = launch(own_stream)
    own_stream.wait_until_consumed(running)
    with admin(own_stream) as client:
        client.delete_topics([EVENTS.topic])
    line = last_line(running)  # the consumer makes the topic, as at its start, and finds it empty
    assert "Kafka's log ends at 0" in line
    assert "CONSUMER_GROUP" in line


def test_the_ledger_passes_transactions_markers_and_what_was_aborted(stream: Stream, launch: Launcher) -> None:
    with closing(KafkaProducer(bootstrap_servers=stream.bootstrap_servers, transactional_id=stream.group)) as producer:
        producer.init_transactions()
        for number, end in enumerate((producer.commit_transaction, producer.abort_transaction) * 3):
            producer.begin_transaction()
            futures = [
                producer.send(EVENTS.topic, event(600 * number + at), b"k", partition=at % PARTITIONS)
                for at in range(60)
            ]
            producer.flush()
            end()
            for future in futures:
                future.get(10)
    running = consumed_and_stopped(stream, launch)  # to the very end: the last offset of each partition is a marker
    markers = 6 * PARTITIONS
    assert stream.ledger()[EVENTS.topic] == {
        "consumed": 360 + markers, "stored": 180, "duplicates": 0, "dead": 0, "gaps": 180 + markers,
    }  # fmt: skip
    assert running.complaints() == []


def test_an_open_transaction_holds_back_what_follows_it_and_loses_none_of_it(stream: Stream, launch: Launcher) -> None:
    with closing(KafkaProducer(bootstrap_servers=stream.bootstrap_servers, transactional_id=stream.group)) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(EVENTS.topic, event(1_000_000), b"k", partition=0).get(10)
        running = launch(stream)
        stream.send_events(600)
        stream.wait_for_progress(running, 500)
        assert len(stream.stored()) == 500  # partition 0 waits
        producer.commit_transaction()
    stream.wait_until_consumed(running)
    stop(running)
    assert len(stream.stored()) == 601
    assert stream.ledger()[EVENTS.topic]["gaps"] == 1
