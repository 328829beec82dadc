"""Three hosts, a broker and a consumer on each; PostgreSQL and a producer on the machine itself, on both networks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from hosts import Host, Network
from independent_count import IndependentCount
from kafka.admin import KafkaAdminClient
from numbered_events import NUMBER_IN_ROW, PARTITIONS
from onlooker import DATABASE, GROUP, Onlooker, Place
from script import Script
from stage import SESSION_TIMEOUT_S, steady_ports

import pipeline_settings
from contracts import CONTRACTS
from local_servers import LOOPBACK
from local_servers.kafka_broker import KafkaBroker, new_cluster_id
from local_servers.postgres_server import PostgresServer
from topics import ensure_topics

WITHIN_S = 120.0  # tells what hangs from what a busy machine delays
UNDER_WAY = 50  # records of one partition; more than a consumer has at hand of it when its host drops out


class Cluster:
    """The brokers, as one Kafka."""

    def __init__(self, brokers: list[KafkaBroker]) -> None:
        self.brokers = brokers
        self.bootstrap_servers = ",".join(broker.bootstrap_servers for broker in brokers)

    def admin_connection(self) -> dict[str, Any]:
        return {"bootstrap_servers": self.bootstrap_servers.split(","), "bootstrap_timeout_ms": 30_000}


class ThreeHosts(Onlooker):
    """folder: where all data and logs go. rate: records a second. By host's number: brokers, consumers."""

    def __init__(self, folder: Path, rate: int, networks: dict[str, Network], hosts: list[Host]) -> None:
        self.hosts = hosts
        self.networks = networks
        self._folder = folder
        self._rate = rate
        ports = steady_ports()
        port, controller = islice(ports, 2)
        voters = [f"{host.number}@{host.addresses['kafka']}:{controller}" for host in hosts]
        self.brokers = {
            host.number: KafkaBroker(
                folder / host.name / "kafka", port, heap="256m", fast_start=True, node_id=host.number,
                voters=[controller] * len(hosts), settings={"controller.quorum.voters": ",".join(voters)},
                address=host.addresses["kafka"], command_prefix=host.enter,
            )
            for host in hosts
        }  # fmt: skip
        self.kafka = Cluster(list(self.brokers.values()))
        self._trusted = [f"{LOOPBACK}/32", str(networks["postgres"].subnet)]
        listen = {"listen_addresses": f"{LOOPBACK},{networks['postgres'].address}", "hba_file": str(folder / "hba")}
        postgres = PostgresServer(folder / "postgres" / "data", next(ports), settings=listen)
        super().__init__(postgres, self.kafka)
        self.consumer_environment = {
            **postgres.environment(DATABASE),
            "PGHOST": networks["postgres"].address,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "KAFKA_REPLICATION_FACTOR": "3",
            "CONSUMER_GROUP": GROUP,
            "CONSUMER_METRICS_PORT": "0",
            "SESSION_TIMEOUT": str(SESSION_TIMEOUT_S),
        }
        self.consumers = {
            host.number: Script(
                "consumer",
                folder / host.name,
                lambda: ["streaming/kafka_consumer.py"],
                dict(self.consumer_environment),
                host.enter,
            )
            for host in hosts
        }
        self.producer = Script("producer", folder, self._producer_command, {})
        self.count = IndependentCount(self.kafka.admin_connection(), self.rows)
        self._journals = 0

    def _producer_command(self) -> list[str]:
        journal, first = self._folder / f"journal-{self._journals}", self.count.last_number + 1
        return [
            "tests/chaos/numbered_producer.py", self.kafka.bootstrap_servers, str(journal), str(self._rate), str(first),
        ]  # fmt: skip

    def start(self) -> None:
        self._folder.mkdir()
        (self._folder / "hba").write_text("".join(f"host all all {who} scram-sha-256\n" for who in self._trusted))
        self.postgres.start()
        self.postgres.create_database(DATABASE)
        with closing(self.postgres.connect(DATABASE)) as connection:
            connection.autocommit = False
            pipeline_settings.apply_schema(connection)
        cluster_id = new_cluster_id()
        for broker in self.brokers.values():
            broker.launch(cluster_id)
        for broker in self.brokers.values():
            broker.wait_until_ready()
        ensure_topics(self.kafka.admin_connection(), PARTITIONS, 3)
        for consumer in self.consumers.values():
            consumer.start()
        self.seconds_until_whole()
        self.wait(lambda: len(self.ledger()) == len(CONTRACTS) * PARTITIONS, "no partition is placed", WITHIN_S)

    def close(self) -> None:
        self.forget_connection()
        for script in (self.producer, *self.consumers.values()):
            script.kill()
        for broker in self.brokers.values():
            broker.kill()
        self.postgres.stop()

    def start_host(self, host: Host) -> None:
        """What ended with it."""
        self.brokers[host.number].launch()
        self.consumers[host.number].start()

    # --- how it stands ---

    def is_whole(self) -> bool:
        """Whether each partition has its three copies in sync, and each host's consumer partitions of its own."""
        with closing(KafkaAdminClient(**self.kafka.admin_connection())) as admin:
            topics = admin.describe_topics([*CONTRACTS, "__consumer_offsets"])
            in_sync = {len(partition["isr_nodes"]) for topic in topics for partition in topic["partitions"]}
            members = admin.describe_groups([GROUP])[GROUP]["members"]
        owners = {
            member["client_host"].lstrip("/")
            for member in members
            if member["member_assignment"] and member["member_assignment"]["assigned_partitions"]
        }
        return in_sync == {3} and owners == {host.addresses["kafka"] for host in self.hosts}

    def has_moved(self, since: dict[Place, int], everywhere: bool) -> bool:
        """Whether more is stored since then than was under way, of some partition or of each."""
        at = self.ledger()
        moved = (at[place] - since[place] > UNDER_WAY for place in since if place[0] in NUMBER_IN_ROW)
        return all(moved) if everywhere else any(moved)

    def seconds_until_moved(self) -> tuple[float, float]:
        """From now: until rows of some partition are stored, and of each one."""
        began, since = time.monotonic(), self.ledger()
        self.wait(lambda: self.has_moved(since, everywhere=False), "no row is stored any more", WITHIN_S)
        first_s = time.monotonic() - began
        self.wait(lambda: self.has_moved(since, everywhere=True), "some partition is not stored any more", WITHIN_S)
        return first_s, time.monotonic() - began

    def seconds_until_whole(self) -> float:
        began = time.monotonic()
        self.wait(self.is_whole, "three hosts are not together in Kafka and in the group", WITHIN_S)
        return time.monotonic() - began

    # --- load ---

    @contextmanager
    def load(self) -> Iterator[None]:
        """Records come in within the block; afterwards all is stored, and was counted."""
        self._journals += 1
        self.producer.start()
        self.seconds_until_moved()
        yield
        for script in (self.producer, *self.consumers.values()):
            assert script.daemon.is_running(), f"{script.name} ended by itself. {script.tail()}"
        self.producer.stop()
        ends = self.ends()
        self.wait(lambda: self.ledger() == ends, "the ledger does not come to where Kafka ends", WITHIN_S)
        self.count.read(self._folder / f"journal-{self._journals}")
        assert self.count.differences() == []
