"""Three hosts, of which one after the other drops out under load and comes back: nothing lost, nothing doubled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hosts import Host, hosts, unavailable
from kafka.admin import KafkaAdminClient
from psycopg2.errors import LockNotAvailable
from three_hosts import WITHIN_S, ThreeHosts

from local_servers import ROOT
from pipeline_settings import KAFKA_SOCKETS

# a broker that is away leaves kafka-python with sockets that it forgets to close
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]

RATE = 400
# A consumer's transaction that has moved the ledger and is in the midst of its rows
IN_MID_COPY = """
import time
from pipeline_settings import connect_postgres
from sink import SESSION

class Rows:
    def read(self, size):
        print("copying", flush=True)
        time.sleep(600)

with connect_postgres("smart-access-writer", options=SESSION).cursor() as cursor:
    cursor.execute("UPDATE ingest_offsets SET next_offset = 1 WHERE consumer_group = 'of a lost host'")
    cursor.copy_expert("COPY raw_access_events FROM STDIN", Rows())
"""
A_LEDGER = """
INSERT INTO ingest_offsets (cluster_id, consumer_group, topic, partition, start_offset, next_offset)
VALUES ('c', 'of a lost host', 'smart-access.events', 0, 0, 0) RETURNING 1"""
ITS_ROW = "SELECT next_offset FROM ingest_offsets WHERE consumer_group = 'of a lost host' FOR UPDATE NOWAIT"
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def stage(servers_folder: Path) -> Iterator[ThreeHosts]:
    lacking = unavailable()
    if lacking:
        pytest.skip(lacking)
    with (
        hosts(3) as (networks, made),
        closing(ThreeHosts(servers_folder / "three-hosts", RATE, networks, made)) as three,
    ):
        three.start()
        yield three


def tell(record: Record, host: Host, what: str, first_s: float, all_s: float, whole_s: float) -> None:
    said = f"rows again after {first_s:.1f} s, of all partitions {all_s:.1f} s; back and whole after {whole_s:.1f} s"
    print(f"{host.name} {what}: {said}", flush=True)
    record(f"{host.name} {what}", said)


def test_a_host_whose_links_go_down_is_done_without_and_comes_back(stage: ThreeHosts, record_property: Record) -> None:
    with stage.load():
        for host in stage.hosts:
            with host.cut_off():
                first_s, all_s = stage.seconds_until_moved()
            tell(record_property, host, "cut off", first_s, all_s, stage.seconds_until_whole())


def test_a_host_on_which_all_dies_is_done_without_and_comes_back(stage: ThreeHosts, record_property: Record) -> None:
    with stage.load():
        for host in stage.hosts:
            host.kill_everything()
            with host.cut_off():
                first_s, all_s = stage.seconds_until_moved()
            stage.start_host(host)
            tell(record_property, host, "died", first_s, all_s, stage.seconds_until_whole())


def test_a_consumer_that_only_loses_the_database_says_so_and_goes_on(
    stage: ThreeHosts, record_property: Record
) -> None:
    host = stage.hosts[0]
    log = stage.consumers[host.number].daemon.log_file
    with stage.load():
        said = log.read_text().count("PostgreSQL is down")
        with host.cut_off("postgres"):
            stage.wait(lambda: log.read_text().count("PostgreSQL is down") > said, "it does not notice", WITHIN_S)
        first_s, all_s = stage.seconds_until_moved()
        tell(record_property, host, "without the database", first_s, all_s, stage.seconds_until_whole())


def test_what_a_lost_host_has_locked_is_free_again_for_its_successor(stage: ThreeHosts) -> None:
    host = stage.hosts[0]
    stage.rows(A_LEDGER)
    environment = {**os.environ, **stage.consumer_environment, "PYTHONPATH": "streaming"}
    command = [*host.enter, sys.executable, "-c", IN_MID_COPY]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == "copying\n"
        with pytest.raises(LockNotAvailable):
            stage.rows(ITS_ROW)
        try:
            with host.cut_off("postgres"):
                stage.wait(lambda: stage.rows(ITS_ROW) == [(0,)], "its locks stay", WITHIN_S)
        finally:
            session.kill()


def test_a_client_finds_the_brokers_that_answer_among_those_that_are_silent(stage: ThreeHosts) -> None:
    broker = stage.kafka.brokers[0]
    servers = [f"{stage.networks['kafka'].silent_address()}:{broker.port}", broker.bootstrap_servers]
    connection = {"bootstrap_servers": servers, "bootstrap_timeout_ms": 60_000, "socket_options": KAFKA_SOCKETS}
    for _ in range(5):  # it begins with either
        KafkaAdminClient(**connection).close()
