"""The producer's schemas in a real registry (Apicurio): registered and named in each record, or the producer ends.

And one evolution, as docs/schema_evolution.md walks through it: its statements are run as they stand there.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import requests
from kafka import KafkaConsumer, TopicPartition
from schema_changes import BREAKING, HARMLESS, Schema

from contracts import CONTRACTS, EVENTS, HEALTH
from local_servers import ServerError, free_port
from local_servers.schema_registry import SchemaRegistry
from schema_registry import Registry, RegistryError, producer_schema

if TYPE_CHECKING:
    from event_stream import Stream

    from local_servers.kafka_broker import KafkaBroker

ROOT = Path(__file__).resolve().parents[2]
LOGIN = ("alice", "sesame")
# What the registered form never says: it is closed, and its title is its topic's
NOT_REGISTERED = {"unknown_fields_are_forbidden", "unknown_fields_get_a_type", "the_topic_is_another"}
# Apicurio 3.3.3 takes a value of one kind for another where a keyword makes the difference
REFUSED_WITHOUT_NEED = {"a_closed_list_opens", "a_boolean_may_be_null"}


class Rest(NamedTuple):
    """The registry as anybody with the login sees it."""

    url: str

    def ask(self, method: str, path: str, **body: Any) -> Any:
        return requests.request(method, self.url + path, json=body or None, auth=LOGIN, timeout=20)

    def client(self) -> closing[Registry]:
        return closing(Registry(self.url, LOGIN, patience_s=1))

    def register(self, topic: str, *schemas: Schema) -> list[int]:
        with self.client() as client:
            return [client.register(topic, schema) for schema in schemas]

    def forget(self) -> None:
        for subject in self.ask("GET", "/subjects").json():
            self.ask("DELETE", f"/subjects/{subject}").raise_for_status()


@pytest.fixture(scope="module")
def server(servers_folder: Path) -> Iterator[SchemaRegistry]:
    running = SchemaRegistry(servers_folder / "schema-registry", free_port(), LOGIN)
    try:
        running.start()
    except ServerError as error:
        if isinstance(error.__cause__, requests.ConnectionError | requests.Timeout):
            pytest.skip(f"the registry is not here yet, and Maven Central cannot be reached: {error}")
        raise
    yield running
    running.stop()


@pytest.fixture
def registry(server: SchemaRegistry) -> Rest:
    rest = Rest(server.url)
    rest.forget()
    return rest


def versions_of(change: Any, schema: Schema) -> tuple[Schema, Schema]:
    changed = copy.deepcopy(schema)
    change(changed)
    return schema, changed


def with_temperature(schema: Schema) -> Schema:
    new = {"battery_temperature_c": {"type": ["number", "null"], "minimum": -60, "maximum": 120}}
    return {**schema, "properties": schema["properties"] | new}


@pytest.mark.parametrize("name", sorted(HARMLESS.keys() - REFUSED_WITHOUT_NEED))
def test_a_change_that_breaks_nothing_is_taken(registry: Rest, name: str) -> None:
    contract, change = HARMLESS[name]
    before, after = registry.register(name, *versions_of(change, producer_schema(contract)))
    assert (before == after) is (name == "nothing")


@pytest.mark.parametrize("name", sorted(BREAKING.keys() - NOT_REGISTERED))
def test_a_change_that_breaks_readers_is_refused_with_the_registrys_reason(registry: Rest, name: str) -> None:
    contract, change, _ = BREAKING[name]
    before, after = versions_of(change, producer_schema(contract))
    registry.register(name, before)
    with pytest.raises(RegistryError, match=rf"refuses {name}-value, its readers .* Incompatible artifact"):
        registry.register(name, after)
    body = {"schemaType": "JSON", "schema": json.dumps(after)}
    assert registry.ask("POST", f"/subjects/{name}-value/versions", **body).status_code == 409
    assert registry.ask("GET", f"/subjects/{name}-value/versions").json() == [1]


@pytest.mark.parametrize("name", sorted(REFUSED_WITHOUT_NEED))
def test_what_the_registry_refuses_without_need(registry: Rest, name: str) -> None:
    """Known limits: when one of them falls, docs/schema_evolution.md says too much."""
    contract, change = HARMLESS[name]
    with pytest.raises(RegistryError, match="Incompatible artifact"):
        registry.register(name, *versions_of(change, producer_schema(contract)))


def test_why_the_registered_schema_is_closed(registry: Rest) -> None:
    as_published = {**producer_schema(HEALTH), "additionalProperties": True}
    with pytest.raises(RegistryError, match="propertySchemasAdded"):
        registry.register("open", as_published, with_temperature(as_published))


def test_why_the_registered_schema_is_of_draft_07(registry: Rest) -> None:
    as_published = {**producer_schema(HEALTH), "$schema": HEALTH.json_schema()["$schema"]}
    with pytest.raises(RegistryError, match="500 Internal Server Error: #: could not determine version"):
        registry.register("2020-12", as_published, with_temperature(as_published))


def test_an_older_producer_finds_its_own_schema_again(registry: Rest) -> None:
    old = producer_schema(HEALTH)
    first, second, again = registry.register("rolled-back", old, with_temperature(old), old)
    assert first == again != second
    assert registry.ask("GET", "/subjects/rolled-back-value/versions").json() == [1, 2]


def test_many_producers_may_start_at_once(registry: Rest) -> None:
    old = producer_schema(HEALTH)
    for schema in (old, with_temperature(old)):
        with ThreadPoolExecutor(8) as pool:
            assert len({found for [found] in pool.map(registry.register, ["at-once"] * 8, [schema] * 8)}) == 1
    assert registry.ask("GET", "/subjects/at-once-value/versions").json() == [1, 2]


@pytest.mark.parametrize(("before", "after"), [("NONE", "BACKWARD"), ("FORWARD", "BACKWARD"), ("FULL", "FULL")])
def test_the_check_includes_backward_whatever_it_was(registry: Rest, before: str, after: str) -> None:
    registry.ask("PUT", "/config/checked-value", compatibility=before).raise_for_status()
    registry.register("checked", producer_schema(HEALTH))
    assert registry.ask("GET", "/config/checked-value").json() == {"compatibilityLevel": after}


@pytest.mark.parametrize(("login", "told"), [(None, "wants a login"), (("alice", "x"), "refuses our login")])
def test_without_the_right_login_one_line_names_the_settings(registry: Rest, login: Any, told: str) -> None:
    with closing(Registry(registry.url, login)) as client, pytest.raises(RegistryError, match=told) as refused:
        client.register(HEALTH.topic, producer_schema(HEALTH))
    assert "(SCHEMA_REGISTRY_USERNAME, and SCHEMA_REGISTRY_PASSWORD or" in str(refused.value)


def test_an_address_without_the_api_is_told(registry: Rest) -> None:
    root = registry.url.removesuffix("/apis/ccompat/v7")
    with closing(Registry(root, LOGIN)) as client, pytest.raises(RegistryError, match="ends in /apis/ccompat/v7"):
        client.register(HEALTH.topic, producer_schema(HEALTH))


def test_where_nothing_listens_it_is_told_with_the_reason() -> None:
    told = r"^no schema registry at .*\(SCHEMA_REGISTRY_URL\): .*refused$"
    address = f"http://127.0.0.1:{free_port()}"
    with closing(Registry(address, patience_s=0.5)) as client, pytest.raises(RegistryError, match=told):
        client.register(HEALTH.topic, producer_schema(HEALTH))


def test_a_registry_without_tls_is_told(registry: Rest) -> None:
    address = registry.url.replace("http:", "https:")
    told = r"^no TLS with .*WRONG_VERSION_NUMBER"
    with closing(Registry(address, LOGIN)) as client, pytest.raises(RegistryError, match=told):
        client.register(HEALTH.topic, producer_schema(HEALTH))


def produce(broker: KafkaBroker, events: int, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PRODUCER_METRICS_PORT": "0", "LOG_FORMAT": "json", **settings}
    command = [sys.executable, "streaming/kafka_producer.py", "--bootstrap-servers", broker.bootstrap_servers]
    size = ["--max-speed", "--max-events", str(events), "--households", "3", "--malformed-share", "0"]
    return subprocess.run([*command, *size], cwd=ROOT, env=env, capture_output=True, text=True, timeout=90, check=False)


def login_to(registry: Rest) -> dict[str, str]:
    user, password = LOGIN
    names = {"URL": registry.url, "USERNAME": user, "PASSWORD": password}
    return {f"SCHEMA_REGISTRY_{name}": value for name, value in names.items()}


def offsets(broker: KafkaBroker) -> dict[TopicPartition, int]:
    with closing(KafkaConsumer(bootstrap_servers=broker.bootstrap_servers)) as consumer:
        places = [TopicPartition(topic, p) for topic in CONTRACTS for p in consumer.partitions_for_topic(topic) or ()]
        return dict(consumer.end_offsets(places)) if places else {}


def records_since(broker: KafkaBroker, before: dict[TopicPartition, int]) -> list[Any]:
    ends, records = offsets(broker), []
    with closing(KafkaConsumer(bootstrap_servers=broker.bootstrap_servers)) as consumer:
        consumer.assign(list(ends))
        for place, end in ends.items():
            consumer.seek(place, before.get(place, 0) if end else end)
        deadline = time.monotonic() + 60
        while any(consumer.position(place) < end for place, end in ends.items()):
            assert time.monotonic() < deadline
            records += [record for found in consumer.poll(timeout_ms=500).values() for record in found]
    return records


def test_every_record_names_its_schema_and_stays_plain_json(kafka: KafkaBroker, registry: Rest) -> None:
    before = offsets(kafka)
    ended = produce(kafka, 300, **login_to(registry))
    assert ended.returncode == 0, ended.stderr
    newest = {topic: registry.ask("GET", f"/subjects/{topic}-value/versions/latest").json() for topic in CONTRACTS}
    assert {topic: json.loads(found["schema"]) for topic, found in newest.items()} == {
        topic: producer_schema(contract) for topic, contract in CONTRACTS.items()
    }
    records = records_since(kafka, before)
    assert len(records) == json.loads(ended.stdout)["acknowledged"]
    assert {record.topic for record in records} == set(CONTRACTS)
    for record in records:
        assert list(record.headers) == [("schema-id", str(newest[record.topic]["id"]).encode())]
        CONTRACTS[record.topic].decode(record.value, record.key, record.timestamp)


def test_without_the_setting_a_record_has_no_header(kafka: KafkaBroker, registry: Rest) -> None:
    before = offsets(kafka)
    ended = produce(kafka, 50)
    assert ended.returncode == 0, ended.stderr
    assert {tuple(record.headers) for record in records_since(kafka, before)} == {()}
    assert registry.ask("GET", "/subjects").json() == []


def test_with_a_schema_that_breaks_readers_the_producer_sends_nothing(kafka: KafkaBroker, registry: Rest) -> None:
    before = offsets(kafka)
    looser = producer_schema(EVENTS)
    looser["required"] = [name for name in looser["required"] if name != "trigger_source"]
    registry.register(EVENTS.topic, looser)
    ended = produce(kafka, 50, **login_to(registry))
    assert (ended.returncode, ended.stdout) == (1, "")
    [line] = ended.stderr.splitlines()
    assert "(SCHEMA_REGISTRY_URL) refuses smart-access.events-value, its readers would break: " in line
    assert "A new required property was added" in line
    assert "sesame" not in line
    assert offsets(kafka) == before


def statements(under: str) -> list[str]:
    """The SQL blocks of a section of docs/schema_evolution.md."""
    text = (ROOT / "docs/schema_evolution.md").read_text(encoding="utf-8")
    [section] = re.findall(rf"^## {re.escape(under)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```sql\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def report(minute: int, **more: Any) -> bytes:
    said = {"device_id": "lock-1", "reported_at": f"2025-06-01T12:{minute:02d}:00Z", "is_online": True, **more}
    return json.dumps(said).encode()


def temperatures(stream: Stream, column: str) -> dict[int, float | None]:
    """By minute, as a column of the staging model reads it."""
    minute = "extract(minute FROM reported_at)::int AS minute"
    query = f"SELECT {minute}, {column.strip().rstrip(',')} FROM raw_device_health"  # noqa: S608
    return dict(stream.rows(query))


def test_the_evolution_of_the_documents_from_producer_to_mart(stream: Stream, registry: Rest) -> None:
    old = producer_schema(HEALTH)
    before, after = registry.register(HEALTH.topic, old, with_temperature(old))
    said: dict[int, Any] = {0: None, 1: 21.5, 2: 22, 3: "n/a", 4: 1e300, 5: True, 6: [20]}
    unknown_to_it = [("schema-id", str(after).encode())]
    stream.send(HEALTH.topic, report(10), b"lock-1", [("schema-id", str(before).encode())], partition=0)
    for minute, value in said.items():
        stream.send(HEALTH.topic, report(minute, battery_temperature_c=value), b"lock-1", unknown_to_it, partition=0)
    stream.send(HEALTH.topic, b"no report", b"lock-1", unknown_to_it, partition=0)
    stream.flush()
    with stream.consumer() as consumer:  # it knows nothing of the field, nor of the registry
        stream.wait_until_consumed(consumer)

    counts = {"consumed": 9, "stored": 8, "duplicates": 0, "dead": 1, "gaps": 0}
    assert stream.ledger()[HEALTH.topic] == counts
    kept = [["schema-id", base64.b64encode(str(after).encode()).decode()]]
    assert stream.rows("SELECT reason, headers FROM dead_letters") == [("bad_json", kept)]
    in_extra = "SELECT extract(minute FROM reported_at)::int, extra -> 'battery_temperature_c' FROM raw_device_health"
    assert dict(stream.rows(in_extra)) == {**said, 4: 10**300, 10: None}

    [from_extra] = statements("3. Read it from `extra`")
    [column] = statements("5. The column")
    [from_either] = statements("6. Read it from both")
    [move] = statements("7. Move the old values, or not")
    reading = dict.fromkeys([*said, 10]) | {1: 21.5, 2: 22.0}
    assert temperatures(stream, from_extra) == reading
    for _ in range(2):  # schema.sql is applied at each start
        stream.execute(column)
    stream.execute("UPDATE raw_device_health SET battery_temperature_c = 5 WHERE extract(minute FROM reported_at) = 10")
    reading |= {10: 5.0}
    assert temperatures(stream, from_either) == reading
    stream.execute(move)
    assert temperatures(stream, from_either) == reading
    moved = "SELECT extra FROM raw_device_health WHERE battery_temperature_c IS NOT NULL"
    assert stream.rows(moved) == [(None,)] * 3
