"""A broker's own metrics for Prometheus: the JMX exporter as an agent in its process, with monitoring/kafka_jmx.yml."""

from __future__ import annotations

from local_servers import LOOPBACK, ROOT
from local_servers.maven_artifact import verified_artifact

COORDINATES = "io.prometheus.jmx:jmx_prometheus_javaagent:1.0.1"  # 3 MB
SHA256 = "7d61f737fd661610ccc14aea79764faa1ea94a340cbc8f0029b3d2edea3d80c1"
DEFAULT_PORT = 9404


def java_option(port: int) -> str:
    """For the broker's command: its metrics at this port of 127.0.0.1. Raises ServerError."""
    agent = verified_artifact(COORDINATES, SHA256)
    return f"-javaagent:{agent}={LOOPBACK}:{port}:{ROOT / 'monitoring' / 'kafka_jmx.yml'}"
