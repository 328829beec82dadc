"""Events between the session's broker and a database of the test's own, and consumers that a test may ill-treat."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from csv_loads import Loads
    from event_stream import Launcher, Stream

    from local_servers.kafka_broker import KafkaBroker


@pytest.fixture
def stream(kafka: KafkaBroker, database: dict[str, str], tmp_path: Path) -> Iterator[Stream]:
    from event_stream import Stream

    with closing(Stream(kafka, database, tmp_path)) as events:
        yield events


@pytest.fixture
def own_broker(make_broker: Callable[..., KafkaBroker]) -> Iterator[KafkaBroker]:
    """A broker that the test may stop, kill or wipe."""
    yield make_broker()
    gc.collect()  # sockets that kafka-python forgot while the broker was away: not the next test's business


@pytest.fixture
def own_stream(own_broker: KafkaBroker, database: dict[str, str], tmp_path: Path) -> Iterator[Stream]:
    """Events through a broker of the test's own."""
    from event_stream import Stream

    with closing(Stream(own_broker, database, tmp_path)) as events:
        yield events


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launcher]:
    from event_stream import Launcher

    with closing(Launcher(tmp_path)) as starter:
        yield starter


@pytest.fixture
def loads(database: dict[str, str], tmp_path: Path) -> Loads:
    from csv_loads import Loads

    return Loads(database, tmp_path)
