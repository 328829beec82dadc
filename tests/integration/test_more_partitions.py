"""Partitions added to a live topic, under load: nothing lost, nothing doubled, none of the new ones left out."""

from __future__ import annotations

from contextlib import closing

from event_stream import Launcher, Stream, stop, wait_until
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient

from contracts import EVENTS

MORE = 12
READ = "SELECT count(*) FROM ingest_offsets WHERE topic = %s AND next_offset > 0"


def test_partitions_added_under_load_lose_nothing_and_double_nothing(own_stream: Stream, launch: Launcher) -> None:
    stream = own_stream
    first, second = launch(stream), launch(stream)
    with stream.load(rate=500):
        stream.wait_for_progress(first, 500)
        with closing(KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers)) as admin:
            admin.create_partitions({EVENTS.topic: MORE})
        stream.wait_for_progress(first, 500)
    stream.producer.close()  # a producer knows how many there are from its start on
    stream.producer = KafkaProducer(bootstrap_servers=stream.bootstrap_servers, linger_ms=5, metrics_enabled=False)
    stream.partitions = MORE
    with stream.load(rate=500):
        # what lies in partitions that no consumer knows yet is read from its first record on, seconds later
        wait_until(lambda: stream.one(READ, EVENTS.topic) == MORE, first)
    wait_until(lambda: stream.progress() == stream.sent, first)
    stop(first, second)
    stream.assert_each_once()
    assert stream.one("SELECT count(DISTINCT kafka_partition) FROM raw_access_events") == MORE
