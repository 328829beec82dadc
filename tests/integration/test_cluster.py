"""Three brokers: any one may be lost under load; with two gone everybody waits and says so. Nothing lost or doubled.

Each record is sent once, so a duplicate in the ledger would be a record that Kafka doubled or the consumer read twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from event_stream import Launcher, Stream, stop, wait_until
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from running_consumer import PARTITIONS, ROOT, Consumer

from contracts import CONTRACTS
from topics import ensure_topics

if TYPE_CHECKING:
    from local_servers.kafka_cluster import KafkaCluster

pytestmark = pytest.mark.slow

RATE = 1500  # events per second, of 300 devices


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., KafkaCluster]) -> KafkaCluster:
    three = make_cluster(3)
    ensure_topics(three.admin_connection(), PARTITIONS, 3)
    return three


@pytest.fixture
def stream(cluster: KafkaCluster, database: dict[str, str], tmp_path: Path) -> Iterator[Stream]:
    with closing(Stream(cluster, database, tmp_path)) as events:
        yield events


@contextmanager
def fleet(stream: Stream, log_file: Path) -> Iterator[tuple[Consumer, dict[str, Any]]]:
    """The real producer at work in the block; afterwards its summary is in the dictionary, and all is acknowledged."""
    command = [sys.executable, "streaming/kafka_producer.py", "--rate", str(RATE / 300)]
    command += ["--duplicate-share", "0", "--malformed-share", "0"]
    settings = {"PRODUCER_METRICS_PORT": "0", "LOG_FORMAT": "json", "KAFKA_REPLICATION_FACTOR": "3"}
    environment = {**os.environ, **stream.environment, **settings}
    summary: dict[str, Any] = {}
    with (
        log_file.open("w") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        running = Consumer(process, log_file)
        try:
            yield running, summary
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=60)
            summary |= json.loads(out)
            assert process.returncode == 0, running.log
        finally:
            process.kill()  # does nothing to one that has ended


def assert_everything_arrived_once(stream: Stream, summary: dict[str, Any]) -> None:
    assert summary["failed"] == 0
    ledger = stream.ledger()
    for topic, counts in summary["topics"].items():
        sent = counts["acknowledged"]
        assert ledger[topic] == {"consumed": sent, "stored": sent, "duplicates": 0, "dead": 0, "gaps": 0}
    events = summary["topics"]["smart-access.events"]["acknowledged"]
    assert stream.one("SELECT count(*) FROM raw_access_events") == events > 0


def copies(cluster: KafkaCluster, topics: Iterable[str]) -> dict[str, set[int]]:
    with closing(KafkaAdminClient(**cluster.admin_connection())) as admin:
        return {
            topic["name"]: {len(partition["replica_nodes"]) for partition in topic["partitions"]}
            for topic in admin.describe_topics(list(topics))
        }


def fewest_in_sync(cluster: KafkaCluster) -> dict[str, str | None]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in CONTRACTS]
    with closing(KafkaAdminClient(**cluster.admin_connection())) as admin:
        configs = admin.describe_configs(resources, config_filter="all")["topic"]
    return {topic: settings.get("min.insync.replicas", {}).get("value") for topic, settings in configs.items()}


def test_topics_have_three_copies_of_which_two_must_be_written(cluster: KafkaCluster) -> None:
    # the broker that is asked may not have heard of them yet
    wait_until(lambda: copies(cluster, CONTRACTS) == {topic: {3} for topic in CONTRACTS})
    wait_until(lambda: fewest_in_sync(cluster) == dict.fromkeys(CONTRACTS, "2"))


def test_any_one_broker_may_be_killed_under_load(
    cluster: KafkaCluster, stream: Stream, launch: Launcher, tmp_path: Path
) -> None:
    consumer = launch(stream, KAFKA_REPLICATION_FACTOR="3")
    with fleet(stream, tmp_path / "producer.log") as (producer, summary):
        for broker in cluster.brokers:
            stream.wait_for_progress(consumer, RATE)
            broker.kill()
            # more than was on its way: both go on with two
            stream.wait_for_progress(consumer, 3 * RATE)
            producer.assert_runs()
            broker.start()
    stream.wait_until_consumed(consumer)
    stop(consumer)
    assert_everything_arrived_once(stream, summary)
    assert copies(cluster, ["__consumer_offsets"]) == {"__consumer_offsets": {3}}


def test_with_two_brokers_down_the_producer_waits_says_why_and_recovers(
    cluster: KafkaCluster, stream: Stream, launch: Launcher, tmp_path: Path
) -> None:
    consumer = launch(stream, KAFKA_REPLICATION_FACTOR="3")
    with fleet(stream, tmp_path / "producer.log") as (producer, summary):
        stream.wait_for_progress(consumer, RATE)
        for broker in cluster.brokers[:2]:
            broker.kill()
        wait_until(lambda: "Kafka has acknowledged nothing for 5 s" in producer.log, producer)
        assert "min.insync.replicas" in producer.log
        cluster.start()
        stream.wait_for_progress(consumer, 3 * RATE)
    stream.wait_until_consumed(consumer)
    stop(consumer)
    assert_everything_arrived_once(stream, summary)
