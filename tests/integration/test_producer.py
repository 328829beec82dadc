"""The producer against a real broker: what it calls acknowledged is in the topic, once, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from event_stream import wait_until
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import ConcurrentTransactionsError, InvalidProducerEpochError, KafkaTimeoutError
from kafka.producer.transaction_manager import InitProducerIdHandler

import delivery
import kafka_contact
from contracts import CONTRACTS, InvalidRecord
from delivery import Delivery
from local_servers import free_port
from topics import ensure_topics

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker

ROOT = Path(__file__).resolve().parents[2]
EVENTS = "smart-access.events"
CLEAN = ("--duplicate-share", "0", "--malformed-share", "0")


@contextmanager
def producer(broker: KafkaBroker, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "streaming/kafka_producer.py", "--bootstrap-servers", broker.bootstrap_servers]
    env = {**os.environ, "PRODUCER_METRICS_PORT": "0", "LOG_FORMAT": "json", **environment}
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *arguments], cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # does nothing to one that has ended


def ended(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """The summary and the log of a producer that ends by itself."""
    out, err = process.communicate(timeout=120)
    return json.loads(out), err


def offsets(broker: KafkaBroker, topic: str = EVENTS, **options: Any) -> dict[TopicPartition, int]:
    with closing(KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, **options)) as consumer:
        partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        return dict(consumer.end_offsets(partitions)) if partitions else {}


def read(broker: KafkaBroker, topic: str = EVENTS, since: dict[TopicPartition, int] | None = None) -> list[Any]:
    """The committed records of a topic from `since` on."""
    ends, records = offsets(broker, topic), []
    with closing(
        KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, isolation_level="read_committed")
    ) as consumer:
        consumer.assign(list(ends))
        # another test may have had the broker delete the oldest records
        for partition, begin in consumer.beginning_offsets(list(ends)).items():
            consumer.seek(partition, (since or {}).get(partition, begin))
        deadline = time.monotonic() + 60
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            assert time.monotonic() < deadline
            for found in consumer.poll(timeout_ms=500).values():
                records.extend(found)
    return records


def wait_for_records(broker: KafkaBroker, more_than: int) -> None:
    wait_until(lambda: sum(offsets(broker).values()) > more_than, timeout=60)


def ids(records: list[Any]) -> Counter[str]:
    return Counter(json.loads(record.value)["event_id"] for record in records)


def test_every_record_is_acknowledged_and_in_its_topic(kafka: KafkaBroker, tmp_path: Path) -> None:
    before = {topic: offsets(kafka, topic) for topic in CONTRACTS}
    truth = tmp_path / "truth.jsonl"
    with producer(kafka, "--max-speed", "--max-events", "5000", "--ground-truth", str(truth)) as process:
        summary, err = ended(process)
    assert process.returncode == 0, err
    assert summary["sent"] == summary["acknowledged"] > 5400
    assert summary["failed"] == 0
    assert summary["p99_ms"] > 0
    malformed: Counter[str] = Counter()
    for topic, counts in summary["topics"].items():
        records = read(kafka, topic, before[topic])
        assert len(records) == counts["sent"] == counts["acknowledged"]
        for record in records:
            try:
                CONTRACTS[topic].decode(record.value, record.key, record.timestamp)
            except InvalidRecord:
                malformed[topic] += 1
    assert summary["topics"][EVENTS]["sent"] == 5000
    injected = Counter(t["topic"] for t in map(json.loads, truth.read_text().splitlines()) if t["kind"] == "malformed")
    assert malformed == injected
    assert malformed[EVENTS] > 0


def test_same_keys_go_where_kafkas_own_partitioner_sends_them(kafka: KafkaBroker) -> None:
    from kafka import KafkaProducer

    before = offsets(kafka)
    with producer(kafka, "--max-speed", "--max-events", "300", "--households", "5", *CLEAN) as process:
        ended(process)
    ours = {record.key: record.partition for record in read(kafka, since=before)}
    assert len(set(ours.values())) > 1
    with closing(KafkaProducer(bootstrap_servers=kafka.bootstrap_servers)) as other:
        theirs = {key: other.send("smart-access.health", b"{}", key=key).get(30).partition for key in ours}
    assert ours == theirs


@pytest.mark.alone
def test_the_rate_of_a_live_stream_holds_within_a_percent(kafka: KafkaBroker) -> None:
    began = time.time() * 1000
    before = offsets(kafka)
    with producer(kafka, "--rate", "2", "--duration", "0.1", "--health-interval", "0") as process:  # 600/s for 6 s
        summary, err = ended(process)
    assert process.returncode == 0, err
    assert summary["topics"][EVENTS]["sent"] == 3600
    assert summary["topics"][EVENTS]["rate"] == pytest.approx(600, rel=0.01)
    times = sorted(record.timestamp for record in read(kafka, since=before))
    assert began < times[0] <= times[-1] < time.time() * 1000
    assert len(times) / (times[-1] - times[0]) * 1000 == pytest.approx(600, rel=0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_waits_for_what_is_on_its_way(kafka: KafkaBroker, number: signal.Signals) -> None:
    before = offsets(kafka)
    with producer(kafka, "--rate", "3", *CLEAN) as process:
        wait_for_records(kafka, sum(before.values()) + 1000)
        process.send_signal(number)
        summary, err = ended(process)
    assert process.returncode == 0, err
    assert summary["topics"][EVENTS]["acknowledged"] == summary["topics"][EVENTS]["sent"] > 1000
    assert len(read(kafka, since=before)) == summary["topics"][EVENTS]["sent"]


def test_a_broker_that_is_just_starting_is_waited_for(
    make_broker: Callable[..., KafkaBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_contact, "PATIENCE_S", 60)  # a busy machine starts one in longer than 20 s
    port = free_port()
    with ThreadPoolExecutor(1) as background:
        contact = background.submit(kafka_contact.first_contact, {"bootstrap_servers": [f"127.0.0.1:{port}"]})
        wait([contact], timeout=kafka_contact.ATTEMPT_MS / 1000 + 1)  # one attempt has failed by then
        assert not contact.done()
        make_broker(port=port)
        contact.result()


def test_without_a_broker_one_line_says_so() -> None:
    with socket.socket() as unused:  # bound, not listening: refused
        unused.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{unused.getsockname()[1]}"
        env = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": where, "PRODUCER_METRICS_PORT": "0"}
        command = [sys.executable, "streaming/kafka_producer.py"]
        found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert found.stdout == ""
    assert len(found.stderr.splitlines()) == 1
    assert f"no Kafka at {where} (KAFKA_BOOTSTRAP_SERVERS): " in found.stderr
    assert "ECONNREFUSED" in found.stderr


def test_a_broker_that_crashes_during_the_send_costs_nothing(make_broker: Callable[..., KafkaBroker]) -> None:
    broker = make_broker()
    with producer(broker, "--rate", "5", "--max-events", "9000", *CLEAN) as process:  # 1,500/s
        wait_for_records(broker, 1000)
        broker.kill()
        broker.start()
        summary, err = ended(process)
    assert process.returncode == 0, err
    assert summary["topics"][EVENTS] == {"sent": 9000, "acknowledged": 9000, "rate": pytest.approx(1500, rel=0.5)}
    found = ids(read(broker))
    assert len(found) == 9000
    assert set(found.values()) == {1}


def test_what_was_not_acknowledged_is_reported_as_failed(make_broker: Callable[..., KafkaBroker]) -> None:
    broker = make_broker()
    with producer(broker, "--rate", "3", *CLEAN) as process:
        wait_for_records(broker, 500)
        broker.pause()
        process.send_signal(signal.SIGINT)
        assert process.stderr
        while "stopping" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)  # the second one does not wait
        summary, err = ended(process)
    broker.resume()
    assert process.returncode == 1
    assert "interrupted twice" in err
    assert summary["failed"] == summary["sent"] - summary["acknowledged"] > 0


@pytest.mark.alone
def test_transactions_become_visible_by_the_second_and_are_counted_when_committed(kafka: KafkaBroker) -> None:
    before = offsets(kafka)
    arguments = ("--rate", "3", "--duration", "0.05", "--transactional-id", "test-commits", *CLEAN)
    with producer(kafka, *arguments) as process:
        summary, err = ended(process)
    assert process.returncode == 0, err
    records = read(kafka, since=before)
    assert len(records) == summary["topics"][EVENTS]["acknowledged"] == summary["topics"][EVENTS]["sent"] == 2700
    markers = sum(offsets(kafka).values()) - sum(before.values()) - len(records)
    assert 6 * 2 <= markers <= 6 * 6  # one for each partition and commit: about four commits in three seconds


def test_a_fenced_producer_counts_only_what_it_committed(kafka: KafkaBroker) -> None:
    before = offsets(kafka)
    name = ("--transactional-id", "test-fence", *CLEAN)
    with producer(kafka, "--rate", "3", *name) as first:
        wait_for_records(kafka, sum(before.values()) + 2000)
        with producer(kafka, "--max-speed", "--max-events", "500", *name) as second:
            later, _ = ended(second)
        earlier, err = ended(first)
    assert second.returncode == 0
    assert first.returncode == 1, err
    assert "sending stopped" in err
    assert "has another producer --transactional-id test-fence" in err
    counts = [summary["topics"][EVENTS]["acknowledged"] for summary in (earlier, later)]
    assert counts[0] < earlier["topics"][EVENTS]["sent"]
    found = ids(read(kafka, since=before))
    assert sum(counts) == len(found) == sum(found.values())


@contextmanager
def transaction(broker: KafkaBroker, name: str) -> Iterator[Delivery]:
    """Has committed 20 events; 20 more are acknowledged, in a transaction that is open and due to be committed."""
    ensure_topics(broker.admin_connection(), 6, 1)
    with closing(Delivery({"bootstrap_servers": broker.bootstrap_servers}, name, {})) as producing:
        send_events(producing, 20)
        producing.finish()
        send_events(producing, 20)
        wait_until(lambda: not producing.in_flight and producing._commit_is_due())
        yield producing


def send_events(producing: Delivery, count: int) -> None:
    for number in range(count):
        producing.send(EVENTS, b"device-%d" % number, b"{}")


def look_after(producing: Delivery) -> None:
    wait_until(producing.look_after)


@pytest.mark.parametrize("goes_on", [look_after, Delivery.finish])
def test_what_kafka_aborted_is_not_counted_as_committed(
    kafka: KafkaBroker, monkeypatch: pytest.MonkeyPatch, goes_on: Callable[[Delivery], None]
) -> None:
    """A second producer of a name has Kafka abort what the first has open, and asks again; until then, for a tenth of
    a second, Kafka lets the first begin a new epoch. The second is held there."""
    before, name = offsets(kafka), f"test-aborted-{goes_on.__name__}"
    answer, aborted, go_on = InitProducerIdHandler.handle_response, threading.Event(), threading.Event()

    def hold(handler: InitProducerIdHandler, response: Any) -> None:
        if threading.current_thread() is second._sender and response.error_code == ConcurrentTransactionsError.errno:
            aborted.set()
            go_on.wait()
        answer(handler, response)

    with transaction(kafka, name) as first, ThreadPoolExecutor(1) as background:
        second = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=name)
        monkeypatch.setattr(InitProducerIdHandler, "handle_response", hold)
        begun = background.submit(second.init_transactions)
        try:
            assert aborted.wait(30)
            # no transaction is open any more
            wait_until(lambda: offsets(kafka, isolation_level="read_committed") == offsets(kafka))
            send_events(first, 10)
            with pytest.raises(InvalidProducerEpochError):
                goes_on(first)
        finally:
            go_on.set()
        begun.result()
        second.close()
    assert first.acknowledged == len(read(kafka, since=before)) == 20


def test_a_transaction_is_left_to_a_kafka_that_does_not_answer(
    make_broker: Callable[..., KafkaBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker()
    with transaction(broker, "test-left") as left:
        monkeypatch.setattr(delivery, "FINISH_TIMEOUT", 0.5)
        broker.pause()
        send_events(left, 10)
        with pytest.raises(KafkaTimeoutError) as raised:
            left.finish()
        left.abort(raised.value)
        broker.resume()
        wait_until(lambda: not left.in_flight)  # or kafka-python's thread would outlive the test
    assert left.acknowledged == 20


def test_metrics_agree_with_the_summary(kafka: KafkaBroker, tmp_path: Path) -> None:
    port = free_port()
    before = sum(offsets(kafka).values())
    with producer(kafka, "--rate", "1", *CLEAN, PRODUCER_METRICS_PORT=str(port)) as process:
        wait_for_records(kafka, before + 300)
        name, deadline, text = f'producer_records_acknowledged_total{{topic="{EVENTS}"}}', time.monotonic() + 30, ""
        while f"{name} 0.0" in text or name not in text:
            assert time.monotonic() < deadline
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                text = answer.read().decode()
        process.send_signal(signal.SIGTERM)
        ended(process)
    assert float(text.split(f"{name} ")[1].split()[0]) > 0
    assert f'producer_records_failed_total{{topic="{EVENTS}"}} 0.0' in text
    assert "producer_send_latency_seconds_bucket" in text
