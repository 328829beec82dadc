"""A Kafka UI in the browser: topics, records, consumer groups and their lag. python -m local_servers.kafka_ui

Kaskade, a terminal program, behind textual-serve; each open page runs one (about 90 MB). It can also change topics, and
asks for no password, so it listens on 127.0.0.1 only.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from textual_serve.server import Server

from local_servers import LOOPBACK, port_setting
from local_servers.stack import bootstrap_servers

DEFAULT_PORT = 8090


def main() -> None:
    kaskade = Path(sys.executable).with_name("kaskade")
    command = shlex.join([str(kaskade), "admin", "-b", bootstrap_servers()])
    Server(command, host=LOOPBACK, port=port_setting("KAFKA_UI_PORT", DEFAULT_PORT), title="Kafka").serve()


if __name__ == "__main__":
    main()
