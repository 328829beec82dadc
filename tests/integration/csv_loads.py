"""Files, the scripts that load and export them, and the tables that they go to and come from."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from event_stream import event_id
from running_consumer import ROOT, Database

HEADER = "event_id,device_id,event_ts,event_type,trigger_source"
HISTORY = "SELECT rows, stored, duplicates, dead, balanced, ended_at IS NOT NULL FROM file_loads ORDER BY file_load_id"
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'smart-access-load'"
EVERYTHING = ("raw_access_events", "raw_device_health", "raw_devices", "raw_households", "dead_letters", "file_loads")


def row(number: int, **changes: str) -> str:
    cells = {
        "event_id": event_id(number),
        "device_id": f"lock-{number % 50}",
        "event_ts": "2025-06-01T12:00:00Z",
        "event_type": "open",
        "trigger_source": "app",
    }
    return ",".join((cells | changes).values())


class Loads(Database):
    def __init__(self, environment: dict[str, str], folder: Path):
        super().__init__(environment)
        self.folder = folder

    def put(self, name: str, *rows: str, header: str = HEADER) -> str:
        path = self.folder / name
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return str(path)

    def put_events(self, name: str, count: int) -> str:
        return self.put(name, *(row(number) for number in range(count)))

    @contextmanager
    def script(
        self, *arguments: str, name: str = "load_csv", stdin: bytes | None = None, **environment: str
    ) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, f"streaming/{name}.py", *arguments]
        env, pipe = {**os.environ, **self.environment, **environment}, subprocess.PIPE
        source = pipe if stdin is not None else subprocess.DEVNULL
        with subprocess.Popen(command, cwd=ROOT, env=env, stdin=source, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                if stdin is not None and process.stdin:
                    process.stdin.buffer.write(stdin)
                    process.stdin.close()
                    process.stdin = None
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str, code: int = 0, **options: Any) -> tuple[str, str]:
        """What it says on its outputs."""
        with self.script(*arguments, **options) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert "Traceback" not in err
        return out, err

    def everything(self) -> dict[str, list[Any]]:
        """The tables as they are, down to which transaction wrote each row."""
        return {table: sorted(self.rows(f"SELECT xmin::text, t::text FROM {table} AS t")) for table in EVERYTHING}  # noqa: S608

    def contents(self, table: str) -> list[Any]:
        """A raw table's rows, but for the way that they came and when."""
        way = "'{kafka_partition, kafka_offset, file_load_id, ingested_at}'"
        return sorted(self.rows(f"SELECT (to_jsonb(t) - {way}::text[])::text FROM {table} AS t"))  # noqa: S608

    @contextmanager
    def held_up(self, number: int) -> Iterator[None]:
        """A load that comes to this event waits for as long as the block lasts."""
        with closing(self.connect()) as blocker:
            with blocker.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)"
                    " VALUES (%s, 'x', now(), 'open', 'x')",
                    (event_id(number),),
                )
            yield
            blocker.rollback()

    def wait_until(self, statement: str, process: subprocess.Popen[str]) -> None:
        """Until it gives a row, while the process runs."""
        deadline = time.monotonic() + 30
        while not self.rows(statement):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def wait_until_held_up(self, process: subprocess.Popen[str], count: int = 1) -> None:
        statement = (
            "SELECT FROM pg_stat_activity WHERE application_name = 'smart-access-load' AND wait_event_type = 'Lock'"
            f" HAVING count(*) >= {count}"
        )
        self.wait_until(statement, process)
