"""What docker-compose.kafka.yml starts, started without Docker: Kafka alone, as a cluster, secured; the databases.

Only what is the images' own is stood in for (containers.py says how): commands, variables, scripts, certificates and
health checks are those of the file.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from compose_files import ROOT, environment, services
from containers import Containers
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ConfigResource,
    ConfigResourceType,
    KafkaAdminClient,
    ResourcePatternFilter,
    ResourceType,
)
from kafka.admin import ACLResourcePatternType as PatternType
from kafka.errors import KafkaTimeoutError, TopicAuthorizationFailedError

import topics
from contracts import CONTRACTS
from local_servers import kafka_agent, kafka_security
from local_servers.maven_artifact import verified_artifact
from local_servers.postgres_server import PostgresServer, binaries_folder

EVENTS = "smart-access.events"


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    started = Containers(tmp_path / "containers")
    yield started
    started.stop()


def connection_to(*addresses: str) -> dict[str, Any]:
    return {"bootstrap_servers": list(addresses), "bootstrap_timeout_ms": 10_000}


def partitions_of(connection: dict[str, Any]) -> dict[str, list[int]]:
    """By topic, how many brokers have each of its partitions."""
    with closing(KafkaAdminClient(**connection)) as admin:
        described = admin.describe_topics(list(CONTRACTS))
    return {topic["name"]: [len(part["replica_nodes"]) for part in topic["partitions"]] for topic in described}


def send_event(connection: dict[str, Any], **options: Any) -> None:
    """One record that all in-sync brokers have. Raises KafkaError."""
    with closing(KafkaProducer(**connection, acks="all", **options)) as producer:
        producer.send(EVENTS, key=b"a", value=b"{}").get(timeout=30)


def test_the_broker_starts_answers_its_health_check_and_keeps_its_cluster_id(containers: Containers) -> None:
    containers.start("kafka")
    connection = connection_to(containers.host_address("kafka"))
    cluster = topics.cluster_id(connection)
    # not the one that the image has for everybody
    assert cluster != "5L6g3nShT-eMCtK--X86sw"

    # the scripts were quicker
    assert topics.ensure_topics(connection, 2, 1) == list(CONTRACTS)
    containers.run("create-topics")
    assert partitions_of(connection) == {topic: [1] * 2 for topic in CONTRACTS}

    containers.daemon("kafka").send(signal.SIGSTOP)
    assert not containers.is_healthy("kafka")
    containers.daemon("kafka").send(signal.SIGCONT)
    assert containers.is_healthy("kafka")

    containers.daemon("kafka").stop()
    assert not containers.is_healthy("kafka")
    containers.start("kafka")
    assert topics.cluster_id(connection) == cluster


def test_the_broker_tells_its_metrics_once_it_has_the_agent(containers: Containers) -> None:
    agent = verified_artifact(kafka_agent.COORDINATES, kafka_agent.SHA256)
    shutil.copy(agent, containers.path("/mnt/agent/jmx_prometheus_javaagent.jar"))
    containers.start("kafka")
    with urllib.request.urlopen(f"http://{containers.address('kafka', 9404)}/metrics", timeout=10) as answer:
        assert "kafka_server_replicamanager_underreplicatedpartitions 0.0" in answer.read().decode()


@pytest.mark.slow
def test_the_cluster_keeps_three_copies_and_takes_records_without_one_of_its_brokers(containers: Containers) -> None:
    names = ["kafka-1", "kafka-2", "kafka-3"]
    containers.run("kafka-cluster-id")
    made = containers.path("/mnt/shared/config/cluster-id").read_text()
    containers.run("kafka-cluster-id")
    containers.start(*names)
    connection = connection_to(*map(containers.host_address, names))
    assert topics.cluster_id(connection) == made.strip()

    containers.run("create-topics-cluster")
    assert partitions_of(connection) == {topic: [3] * 6 for topic in CONTRACTS}
    # as the scripts would have made them
    assert topics.ensure_topics(connection, 6, 3) == []
    with closing(KafkaAdminClient(**connection)) as admin:
        events = ConfigResource(ConfigResourceType.TOPIC, EVENTS)
        [[found]] = [list(part.values()) for part in admin.describe_configs([events], config_filter="all").values()]
    assert found["min.insync.replicas"]["value"] == "2"

    containers.daemon("kafka-1").kill()
    send_event(connection)


def as_user(containers: Containers, user: str, password: str | None = None) -> dict[str, Any]:
    demo = environment(services()["kafka-secure-setup"])[f"{user.upper()}_PASSWORD"]
    return connection_to(containers.host_address("kafka-secure")) | {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": user,
        "sasl_plain_password": password or demo,
        "ssl_cafile": str(containers.path("/etc/kafka/secrets/ca.pem")),
    }


def rights(acls: Iterable[ACL]) -> set[tuple[str, str, str, str]]:
    return {
        (acl.principal, acl.operation.name, acl.resource_pattern.resource_type.name, acl.resource_pattern.resource_name)
        for acl in acls
    }


def rights_on(connection: dict[str, Any]) -> set[tuple[str, str, str, str]]:
    anything = ResourcePatternFilter(ResourceType.ANY, None, PatternType.ANY)
    with closing(KafkaAdminClient(**connection)) as admin:
        found, _ = admin.describe_acls(ACLFilter(None, "*", ACLOperation.ANY, ACLPermissionType.ANY, anything))
    return rights(found)


@pytest.mark.slow
def test_the_secured_broker_lets_each_user_do_its_own_and_nobody_else_anything(containers: Containers) -> None:
    containers.run("kafka-secure-certificates")
    authority = containers.path("/etc/kafka/secrets/ca.pem").read_bytes()
    containers.run("kafka-secure-certificates")
    assert containers.path("/etc/kafka/secrets/ca.pem").read_bytes() == authority
    containers.start("kafka-secure")
    containers.run("kafka-secure-setup")

    admin, producer, consumer = (as_user(containers, user) for user in ("admin", "producer", "consumer"))
    # those of scripts/stack up --secure
    assert rights_on(admin) == rights(kafka_security.acls("smart-access-sink"))
    # what the scripts do at their start
    for user in (producer, consumer):
        assert topics.ensure_topics(user, 6, 1) == []
    send_event(producer)
    with pytest.raises(TopicAuthorizationFailedError):
        send_event(consumer, enable_idempotence=False)
    options = {"group_id": "smart-access-sink", "auto_offset_reset": "earliest", "consumer_timeout_ms": 15_000}
    with closing(KafkaConsumer(EVENTS, **consumer, **options)) as reading:
        assert next(reading).value == b"{}"

    # what no right speaks of is forbidden too
    with closing(KafkaAdminClient(**producer)) as user, pytest.raises(TopicAuthorizationFailedError):
        user.create_topics({"unasked": {"num_partitions": 1, "replication_factor": 1}})

    quick = {"bootstrap_timeout_ms": 1500}
    for refused in (as_user(containers, "producer", "wrong"), {"bootstrap_servers": producer["bootstrap_servers"]}):
        with pytest.raises(KafkaTimeoutError):
            KafkaAdminClient(**(refused | quick))


def psql(server: PostgresServer, database: str, file: Path, **variables: str) -> None:
    """As the image of PostgreSQL runs a file."""
    command = [binaries_folder() / "psql", "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "-q", "-f", file]
    env = {**os.environ, **server.environment(database), **variables}
    subprocess.run(command, env=env, check=True, capture_output=True)


def relations(server: PostgresServer, database: str) -> set[tuple[str, str]]:
    with closing(server.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT relnamespace::regnamespace::text, relname FROM pg_class"
            " WHERE relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
        )
        return set(cursor.fetchall())


def test_an_empty_volume_gets_the_tables_and_views_that_the_scripts_make(
    postgres: PostgresServer, database: dict[str, str]
) -> None:
    mounts = [mount.split(":")[:2] for mount in services()["postgres"]["volumes"] if ".sql:" in mount]
    empty = f"empty_{uuid.uuid4().hex}"
    postgres.create_database(empty)
    for source, _ in sorted(mounts, key=lambda mount: mount[1]):
        psql(postgres, empty, ROOT / source)
    assert relations(postgres, empty) == relations(postgres, database["PGDATABASE"])
    postgres.drop_database(empty)


def test_the_schema_registry_gets_a_database_that_is_its_own_on_an_old_volume_too(postgres: PostgresServer) -> None:
    service, registry = services()["schema-registry-database"], environment(services()["schema-registry"])
    [script] = [part for part in service["command"] if part.startswith("/scripts/")]
    password = environment(service)["REGISTRY_PASSWORD"]
    for said in ("another", password):
        file = ROOT / "docker/postgres" / Path(script).name
        psql(postgres, "postgres", file, REGISTRY_PASSWORD=said)
    name = registry["APICURIO_DATASOURCE_URL"].rpartition("/")[2]
    login = {"user": registry["APICURIO_DATASOURCE_USERNAME"], "password": registry["APICURIO_DATASOURCE_PASSWORD"]}
    with (
        closing(psycopg2.connect(host="127.0.0.1", port=postgres.port, dbname=name, **login)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("CREATE TABLE kept (id int)")
        cursor.execute("SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
        assert cursor.fetchone() == (False,)
    postgres.drop_database(name)
