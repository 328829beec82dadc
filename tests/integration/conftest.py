"""Events between the session's broker and a database of the test's own, and consumers that a test may ill-treat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from event_stream import Launcher, Stream

    from local_servers.kafka_broker import KafkaBroker


@pytest.fixture
def stream(kafka: KafkaBroker, database: dict[str, str], tmp_path: Path) -> Iterator[Stream]:
    from event_stream import Stream

    with closing(Stream(kafka, database, tmp_path)) as events:
        yield events


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launcher]:
    from event_stream import Launcher

    with closing(Launcher(tmp_path)) as starter:
        yield starter
