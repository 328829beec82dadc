"""The services of docker-compose.kafka.yml are what the scripts expect and what runs without Docker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from compose_files import KAFKA_FILE, ROOT, all_services, broker_properties, environment, published_ports, services

import topics
from contracts import CONTRACTS
from local_servers import kafka_agent, kafka_jars, postgres_server
from local_servers.kafka_broker import KafkaBroker, replication_settings
from local_servers.kafka_security import KafkaSecurity
from pipeline_settings import POSTGRES_DEFAULTS

CLUSTER = ["kafka-1", "kafka-2", "kafka-3"]


def test_the_topics_are_made_as_the_scripts_make_them() -> None:
    script = (ROOT / "docker/kafka/create-topics.sh").read_text(encoding="utf-8")
    made = dict(re.findall(r"^create (smart-access\.\S+) (.*)$", script, re.MULTILINE))
    assert made == {
        topic: "--config cleanup.policy=compact"
        if contract.compacted
        else f"--config cleanup.policy=delete --config retention.ms={topics.RETENTION_MS}"
        for topic, contract in CONTRACTS.items()
    }


@pytest.mark.parametrize(
    ("name", "replication"), [("create-topics", "1"), ("create-topics-cluster", "3"), ("kafka-secure-setup", "1")]
)
def test_the_topics_have_the_scripts_number_of_partitions(name: str, replication: str) -> None:
    made = environment(services()[name])
    assert (made["PARTITIONS"], made["REPLICATION_FACTOR"]) == ("6", replication)


def test_the_images_are_of_the_versions_that_run_without_docker() -> None:
    kafka = re.search(r"kafka_2\.13:([\d.]+)", kafka_jars.COORDINATES)
    assert kafka
    major = postgres_server._major_version(postgres_server.binaries_folder())
    images = {service["image"] for service in all_services().values()}
    assert {image for image in images if image.startswith("apache/kafka:")} == {f"apache/kafka:{kafka[1]}"}
    assert {image for image in images if image.startswith("postgres:")} == {f"postgres:{major}"}


def native_properties(folder: Path) -> dict[str, str]:
    lines = KafkaBroker(folder / "kafka", 9092)._write_properties().read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


# Where a container listens, and where its data is, is its own affair
OF_THE_PLACE = {
    "listeners",
    "advertised.listeners",
    "listener.security.protocol.map",
    "inter.broker.listener.name",
    "controller.quorum.voters",
    "log.dirs",
}


def test_the_broker_has_the_settings_of_the_one_without_docker(tmp_path: Path) -> None:
    ours, native = broker_properties(services()["kafka"]), native_properties(tmp_path)
    assert ours.keys() >= OF_THE_PLACE
    of_ours = {name: value for name, value in ours.items() if name not in OF_THE_PLACE}
    different = {
        name: value for name, value in native.items() if name not in OF_THE_PLACE and of_ours.get(name) != value
    }
    assert different == {}


@pytest.mark.parametrize("name", CLUSTER)
def test_a_broker_of_the_cluster_differs_only_in_place_number_and_copies(name: str) -> None:
    single, ours = broker_properties(services()["kafka"]), broker_properties(services()[name])
    different = {key: ours[key] for key in ours if key not in OF_THE_PLACE and ours[key] != single.get(key)}
    assert different == replication_settings(3) | ({} if name == "kafka-1" else {"node.id": name[-1]})
    assert single.keys() == ours.keys()


def test_the_secured_broker_has_the_settings_of_the_one_without_docker(tmp_path: Path) -> None:
    ours = broker_properties(services()["kafka-secure"])
    # the host's listener has another name, and the key another format: the image has no openssl
    native = {
        name.replace("listener.name.client.", "listener.name.host."): value
        for name, value in KafkaSecurity(tmp_path).broker_settings().items()
        if not name.startswith(("ssl.keystore.", "ssl.truststore."))
    }
    protocols = native.pop("listener.security.protocol.map").replace("CLIENT:", "HOST:")
    assert {name: value for name, value in native.items() if ours.get(name) != value} == {}
    assert set(ours["listener.security.protocol.map"].split(",")) == set(protocols.split(","))


@pytest.mark.parametrize(
    ("name", "port"), [("kafka", 9092), ("kafka-1", 9192), ("kafka-2", 9292), ("kafka-3", 9392), ("kafka-secure", 9492)]
)
def test_a_broker_sends_clients_of_the_host_to_the_port_that_is_published(name: str, port: int) -> None:
    service = services()[name]
    assert published_ports(service) == {port: 9092} | ({9404: 9404} if name == "kafka" else {})
    advertised = broker_properties(service)["advertised.listeners"]
    assert advertised == f"INTERNAL://{name}:19092,HOST://127.0.0.1:{port}"


def test_the_settings_that_the_files_head_names_for_the_scripts_are_the_services_own() -> None:
    head = (ROOT / KAFKA_FILE).read_text(encoding="utf-8").split("\nname:")[0]
    cluster = ",".join(f"127.0.0.1:{port}" for name in CLUSTER for port in published_ports(services()[name]))
    assert f"KAFKA_BOOTSTRAP_SERVERS={cluster} " in head
    [secure] = published_ports(services()["kafka-secure"])
    assert f"KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:{secure} " in head
    [registry] = published_ports(services()["schema-registry"])
    assert f"SCHEMA_REGISTRY_URL=http://127.0.0.1:{registry}/apis/ccompat/v7" in head
    users = environment(services()["kafka-secure-setup"])
    for user in ("producer", "consumer", "admin"):
        assert users[f"{user.upper()}_PASSWORD"] == f"demo-{user}"
        assert f"demo-{user}" in head


def test_postgres_has_the_scripts_names_and_the_settings_of_the_one_without_docker() -> None:
    service = services()["postgres"]
    assert environment(service) == {
        "POSTGRES_DB": POSTGRES_DEFAULTS["PGDATABASE"],
        "POSTGRES_USER": POSTGRES_DEFAULTS["PGUSER"],
        "POSTGRES_PASSWORD": POSTGRES_DEFAULTS["PGPASSWORD"],
    }
    assert published_ports(service) == {int(POSTGRES_DEFAULTS["PGPORT"]): 5432}
    ours = dict(argument.removeprefix("-c").split("=", 1) for argument in service["command"][1:])
    # the image listens to its network and has a socket
    theirs = {
        name: value
        for name, value in postgres_server.SETTINGS.items()
        if name not in ("listen_addresses", "unix_socket_directories")
    }
    assert ours == theirs | {"shared_buffers": "256MB", "wal_compression": "lz4"}
    assert service["mem_limit"] == "2g"  # of which shared_buffers is an eighth


def test_the_tables_are_made_from_the_files_that_the_scripts_apply_in_their_order() -> None:
    mounts = dict(reversed(mount.split(":")[:2]) for mount in services()["postgres"]["volumes"] if ".sql:" in mount)
    # the image runs them in the order of their names
    made = [mounts[place].removeprefix("./streaming/sql/") for place in sorted(mounts)]
    assert all(place.startswith("/docker-entrypoint-initdb.d/") for place in mounts)
    settings = (ROOT / "streaming/pipeline_settings.py").read_text(encoding="utf-8")
    [applied] = re.findall(r"for name in \((.*\.sql.*)\):", settings)
    assert made == re.findall(r'"([\w.]+)"', applied)


def test_the_brokers_agent_is_the_one_without_docker() -> None:
    assert environment(services()["kafka-agent"]) == {
        "COORDINATES": kafka_agent.COORDINATES,
        "SHA256": kafka_agent.SHA256,
    }


def test_prometheus_scrapes_what_the_profile_monitoring_starts_and_the_scripts() -> None:
    scraped = yaml.safe_load((ROOT / "monitoring/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    targets = {target for scrape in scraped for target in scrape["static_configs"][0]["targets"]}
    listening = [9404] + [
        port
        for name, service in all_services().items()
        if "monitoring" in service.get("profiles", []) and name != "grafana"
        for port in [
            *published_ports(service),
            *(int(found) for found in re.findall(r"listen-address=127\.0\.0\.1:(\d+)", str(service.get("command")))),
        ]
    ]
    scripts = {"127.0.0.1:9101", "127.0.0.1:9102"}
    assert targets - scripts == {f"127.0.0.1:{port}" for port in listening}
