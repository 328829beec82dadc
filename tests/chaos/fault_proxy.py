"""Toxiproxy between two of our processes: a link that can be cut, slowed, reset, or fall silent while it stays open."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import requests

from local_servers import LOOPBACK, is_listening, state_dir
from local_servers.daemon import Daemon

VERSION = "v2.5.0"
MODULE = f"github.com/Shopify/toxiproxy/v2/cmd/server@{VERSION}"
log = logging.getLogger("fault-proxy")

MISSING = "no toxiproxy-server on the path, and no Go to build one with"


def proxy_program() -> Path | None:
    """The one on the path, or one that is built from the Go module (half a minute, once); None without either."""
    found = shutil.which("toxiproxy-server")
    if found:
        return Path(found)
    built = state_dir().absolute() / f"toxiproxy-server-{VERSION}"
    if not built.exists() and shutil.which("go"):
        log.info("building toxiproxy %s …", VERSION)
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="toxiproxy-", dir=built.parent) as scratch:
            subprocess.run(["go", "install", MODULE], env={**os.environ, "GOBIN": scratch}, cwd=scratch, check=True)
            Path(scratch, "server").replace(built)
    return built if built.exists() else None


class FaultProxy:
    """Links by name, each with a port of its own that leads to a server's."""

    def __init__(self, program: Path, folder: Path, port: int) -> None:
        self._program = program
        self._port = port
        self._daemon = Daemon("toxiproxy", folder, folder / "toxiproxy.log")

    def start(self) -> None:
        self._daemon.start([self._program, "-host", LOOPBACK, "-port", str(self._port)])
        self._daemon.wait_until(lambda: is_listening(self._port), timeout_s=20)

    def stop(self) -> None:
        self._daemon.stop()

    def _call(self, method: str, path: str, **body: Any) -> None:
        answer = requests.request(method, f"http://{LOOPBACK}:{self._port}/proxies{path}", json=body, timeout=10)
        assert answer.ok, f"toxiproxy: {method} {path}: {answer.text}"

    def add(self, link: str, port: int, leads_to: int) -> None:
        self._call("POST", "", name=link, listen=f"{LOOPBACK}:{port}", upstream=f"{LOOPBACK}:{leads_to}", enabled=True)

    @contextmanager
    def cut(self, link: str) -> Iterator[None]:
        """Every connection ends, and new ones are refused."""
        self._call("POST", f"/{link}", enabled=False)
        yield
        self._call("POST", f"/{link}", enabled=True)

    def delayed(self, link: str) -> AbstractContextManager[None]:
        return self._toxic(link, "latency", latency=250, jitter=200)

    def half_open(self, link: str) -> AbstractContextManager[None]:
        """Nothing comes through, and neither side is told."""
        return self._toxic(link, "timeout", timeout=0)

    def reset(self, link: str) -> AbstractContextManager[None]:
        """Who sends is reset."""
        return self._toxic(link, "reset_peer", timeout=0)

    @contextmanager
    def _toxic(self, link: str, kind: str, **attributes: int) -> Iterator[None]:
        """Both ways, within the block."""
        toxics = f"/{link}/toxics"
        for stream in ("upstream", "downstream"):
            self._call("POST", toxics, name=stream, type=kind, stream=stream, toxicity=1.0, attributes=attributes)
        yield
        for stream in ("upstream", "downstream"):
            self._call("DELETE", f"{toxics}/{stream}")
