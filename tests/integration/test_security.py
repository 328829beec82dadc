"""SASL_SSL with SCRAM and ACLs on a real broker: each script may do its own work and nothing else, and secrets stay so.

A refusal is one line that names the setting to change.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import trustme
from event_stream import Launcher, Stream, event, stop
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, TopicAuthorizationFailedError
from running_consumer import PARTITIONS, ROOT

from contracts import CONTRACTS, EVENTS
from local_servers import ServerError, free_port
from local_servers.kafka_cluster import KafkaCluster
from local_servers.kafka_security import CONSUMER, PRODUCER, USERS, KafkaSecurity, acls, grant
from topics import ensure_topics

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker


@pytest.fixture(scope="module")
def secured(make_cluster: Callable[..., KafkaCluster]) -> KafkaCluster:
    cluster = make_cluster(1, secure=True)
    ensure_topics(cluster.admin_connection(), PARTITIONS, 1)
    return cluster


@pytest.fixture
def stream(secured: KafkaCluster, database: dict[str, str], tmp_path: Path) -> Iterator[Stream]:
    with closing(Stream(secured, database, tmp_path)) as events:
        grant(secured.admin_connection(), acls(events.group))
        yield events


def login(cluster: KafkaCluster, user: str) -> dict[str, str]:
    assert cluster.security
    return {"KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap_servers, **cluster.security.client_environment(user)}


def run(script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A script that ends by itself; an empty setting counts as unset."""
    environment = {**os.environ, "PRODUCER_METRICS_PORT": "0", "CONSUMER_METRICS_PORT": "0", **settings}
    command = [sys.executable, f"streaming/{script}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False)


def one_line(found: subprocess.CompletedProcess[str]) -> str:
    assert found.returncode == 1, found.stderr
    [line] = found.stderr.splitlines()
    return line


def test_each_script_with_its_own_login_does_its_work(secured: KafkaCluster, stream: Stream, launch: Launcher) -> None:
    running = launch(stream, **login(secured, CONSUMER))
    produced = run("kafka_producer", "--max-events", "500", "--rate", "5", **login(secured, PRODUCER))
    assert produced.returncode == 0, produced.stderr
    stream.wait_until_consumed(running)
    stop(running)
    assert sum(counts["stored"] for counts in stream.ledger().values()) > 800
    assert not running.complaints()


WRONG_LOGINS: dict[str, tuple[dict[str, str], str]] = {
    "password": ({"KAFKA_PASSWORD_FILE": "", "KAFKA_PASSWORD": "guess"}, "KAFKA_PASSWORD"),
    "user": ({"KAFKA_USERNAME": "nobody"}, "KAFKA_USERNAME"),
    "mechanism": ({"KAFKA_SASL_MECHANISM": "PLAIN"}, "KAFKA_SASL_MECHANISM"),
    "authority": ({"KAFKA_CA_FILE": "other.pem"}, "(KAFKA_CA_FILE): Handshake failed"),
    "no-authority": ({"KAFKA_CA_FILE": ""}, "(KAFKA_CA_FILE): Handshake failed"),
    "protocol": ({"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"}, "KAFKA_SECURITY_PROTOCOL"),
    "no-user": ({"KAFKA_USERNAME": ""}, "needs a login: set KAFKA_USERNAME"),
    "no-password": ({"KAFKA_PASSWORD_FILE": ""}, "needs a login: set KAFKA_PASSWORD or KAFKA_PASSWORD_FILE"),
    "no-file": ({"KAFKA_PASSWORD_FILE": "/nowhere"}, "KAFKA_PASSWORD_FILE=/nowhere cannot be read"),
    "two": ({"KAFKA_PASSWORD": "another"}, "KAFKA_PASSWORD and KAFKA_PASSWORD_FILE say different things"),
    "no-such-authority": ({"KAFKA_CA_FILE": "/nowhere"}, "KAFKA_CA_FILE=/nowhere cannot be read"),
}


@pytest.fixture(scope="module")
def refused(secured: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the producer says to each wrong login; side by side, as most of the time goes into waiting."""
    folder = tmp_path_factory.mktemp("other")
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")

    def attempt(settings: dict[str, str]) -> str:
        if settings.get("KAFKA_CA_FILE") == "other.pem":
            settings = {"KAFKA_CA_FILE": str(folder / "other.pem")}
        return one_line(run("kafka_producer", "--duration", "1", **{**login(secured, PRODUCER), **settings}))

    with ThreadPoolExecutor() as pool:
        lines = pool.map(attempt, (settings for settings, _ in WRONG_LOGINS.values()))
        return dict(zip(WRONG_LOGINS, lines, strict=True))


@pytest.mark.parametrize("name", WRONG_LOGINS)
def test_a_wrong_login_is_one_line_that_names_the_setting(refused: dict[str, str], name: str) -> None:
    assert WRONG_LOGINS[name][1] in refused[name]


def test_the_consumer_says_which_login_is_wrong(secured: KafkaCluster, database: dict[str, str]) -> None:
    settings = {**database, **login(secured, CONSUMER), "KAFKA_PASSWORD_FILE": "", "KAFKA_PASSWORD": "guess"}
    assert "KAFKA_PASSWORD" in one_line(run("kafka_consumer", **settings))


def test_a_missing_right_is_one_line_that_names_user_and_right(
    secured: KafkaCluster, stream: Stream, database: dict[str, str]
) -> None:
    foreign = one_line(run("kafka_producer", "--duration", "1", **login(secured, CONSUMER)))
    assert "KAFKA_USERNAME=consumer may not WRITE topic smart-access.events" in foreign
    foreign = one_line(run("kafka_consumer", **database, **login(secured, PRODUCER)))
    assert "KAFKA_USERNAME=producer may not READ topic smart-access.events" in foreign
    line = run("kafka_consumer", "--group", "another", **database, **login(secured, CONSUMER)).stderr.splitlines()[-1]
    assert "KAFKA_USERNAME=consumer lacks an ACL: READ on group another" in line
    line = run("kafka_producer", "--transactional-id", "mine", **login(secured, PRODUCER)).stderr.splitlines()[-1]
    assert "KAFKA_USERNAME=producer lacks an ACL: WRITE on its --transactional-id" in line


def test_a_topic_that_may_not_be_made_is_named(secured: KafkaCluster) -> None:
    admin = secured.admin_connection()
    with closing(KafkaAdminClient(**admin)) as client:
        client.delete_topics([EVENTS.topic])
    try:
        line = one_line(run("kafka_producer", "--duration", "1", **login(secured, PRODUCER)))
    finally:
        ensure_topics(admin, PARTITIONS, 1)
    assert f"topic {EVENTS.topic} is missing, or hidden from KAFKA_USERNAME=producer, who may not CREATE it" in line


def test_a_right_that_is_taken_away_stops_the_producer(secured: KafkaCluster) -> None:
    """Else it would go on for ever, failing record by record."""
    admin = secured.admin_connection()
    grant(admin, acls("any"))
    settings = {**os.environ, "PRODUCER_METRICS_PORT": "0", **login(secured, PRODUCER)}
    command = [sys.executable, "streaming/kafka_producer.py"]
    with subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        watch = threading.Timer(60, process.kill)
        watch.start()
        while "acknowledged=" not in process.stderr.readline():
            assert process.poll() is None
        mine = [acl for acl in acls("any") if acl.principal == f"User:{PRODUCER}"]
        with closing(KafkaAdminClient(**admin)) as client:
            client.delete_acls(mine)
        _, err = process.communicate()
        watch.cancel()
    grant(admin, mine)
    assert process.returncode == 1
    assert "TopicAuthorizationFailedError" in err


def test_users_may_do_nothing_else(secured: KafkaCluster, stream: Stream) -> None:
    assert secured.security
    as_user = {
        user: {"bootstrap_servers": secured.bootstrap_servers, **secured.security.connection(user)} for user in USERS
    }
    with closing(KafkaProducer(**as_user[CONSUMER], enable_idempotence=False)) as producer:
        future = producer.send(EVENTS.topic, event(1))
        with pytest.raises(TopicAuthorizationFailedError):
            future.get(10)
    with closing(KafkaConsumer(**as_user[PRODUCER], group_id=None)) as consumer:
        consumer.assign([TopicPartition(EVENTS.topic, 0)])
        consumer.seek(TopicPartition(EVENTS.topic, 0), 0)
        with pytest.raises(TopicAuthorizationFailedError):
            consumer.poll(timeout_ms=5000)
    for user in (PRODUCER, CONSUMER):
        with closing(KafkaAdminClient(**as_user[user])) as admin:
            assert set(admin.list_topics()) == set(CONTRACTS)  # not even Kafka's own
            with pytest.raises(KafkaError):
                admin.create_topics({"mine": {"num_partitions": 1, "replication_factor": 1}})
            with pytest.raises(KafkaError):
                grant(as_user[user], acls("any"))


def test_no_secret_is_in_a_log_a_command_line_or_the_servers_settings(
    secured: KafkaCluster, stream: Stream, launch: Launcher
) -> None:
    assert secured.security
    secrets = {user: secured.security.password_file(user).read_text() for user in USERS}
    assert len(set(secrets.values())) == len(USERS)
    running = launch(stream, "--log-level", "DEBUG", **login(secured, CONSUMER))
    produced = run(
        "kafka_producer", "--max-events", "50", "--rate", "5", "--log-level", "DEBUG", **login(secured, PRODUCER)
    )
    assert produced.returncode == 0, produced.stderr
    stream.wait_until_consumed(running)
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    stop(running)
    said = [produced.stdout, produced.stderr, running.log, *lines]
    assert "kafka.Kafka" in "".join(lines)
    assert "DEBUG" in running.log
    folder = secured.brokers[0].data_dir
    said += [secured.brokers[0].daemon.log_file.read_text(), (folder / "server.properties").read_text()]
    for text in said:
        for secret in [*secrets.values(), stream.environment["PGPASSWORD"]]:
            # PostgreSQL's is a common word here: as a value, not in a path
            assert f"password={secret}" not in text
            assert secret in ("postgres",) or secret not in text
    assert not (folder / "format.arguments").exists()


def test_its_files_are_its_owners_alone(secured: KafkaCluster) -> None:
    assert secured.security
    folder = secured.security.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    private = {path.name for path in folder.iterdir() if stat.S_IMODE(path.stat().st_mode) == 0o600}
    assert private >= {"broker.pem", "admin.password", "producer.password", "consumer.password"}


def test_data_that_knows_no_users_is_not_made_secure_silently(make_broker: Callable[..., KafkaBroker]) -> None:
    broker = make_broker()
    broker.data_dir.parent.joinpath("kafka").symlink_to(broker.data_dir)
    security = KafkaSecurity(broker.data_dir.parent / "security")
    with pytest.raises(ServerError, match="made without --secure"):
        KafkaCluster(broker.data_dir.parent, [free_port()], security=security).start()
    assert not security.exists()
