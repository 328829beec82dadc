"""The servers of the pipeline as ordinary processes, out of packages: no Docker, no Java, no installed PostgreSQL.

One file per server; stack.py starts, stops and shows Kafka and PostgreSQL, demo.py runs the whole pipeline. They listen
on 127.0.0.1 only and keep everything they write in one ignored folder, STACK_DIR (.local).
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"

# The scripts of streaming/ import each other without a package name; what is used of them here is found the same way
if str(ROOT / "streaming") not in sys.path:
    sys.path.insert(0, str(ROOT / "streaming"))


class ServerError(RuntimeError):
    """A server cannot start, or ended by itself. The text is for the person at the terminal: it says what to do."""


def state_dir() -> Path:
    """The one folder of everything that the servers write."""
    return ROOT / (os.environ.get("STACK_DIR") or ".local")


def port_setting(name: str, default: int) -> int:
    """A port from the environment. Raises ServerError when it is none."""
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ServerError(f"{name}={text} is not a port: set a number from 1 to 65535")
    return int(text)


def free_port() -> int:
    """A port that nothing listens on now. For a minute no other program of this machine is given it by chance.

    A server may take seconds to come to its port, and others choose theirs meanwhile. The server's end of a connection
    that it closed itself waits for a minute (TIME_WAIT); the system gives out no such port, and lets only those have it
    who name it and set SO_REUSEADDR, as servers do.
    """
    with socket.socket() as server, socket.socket() as client:
        server.bind((LOOPBACK, 0))
        # Not before it has the port, or it could be one that another program holds in the same way
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.listen()
        port: int = server.getsockname()[1]
        client.connect((LOOPBACK, port))
        server.accept()[0].close()
    return port


def require_free_port(port: int, remedy: str) -> None:
    """Raises ServerError, naming the setting to change, when something listens on the port already."""
    with socket.socket() as probe:
        # As the servers do: connections that a former server closed a moment ago do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ServerError(f"port {port} is in use: {remedy} ({error.strerror})") from None


def is_listening(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
