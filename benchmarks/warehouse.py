"""What the benchmarks of the warehouse share: a PostgreSQL of their own with the project's tables, and dbt on it."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "streaming")]

from local_servers import free_port  # noqa: E402
from local_servers.postgres_server import PostgresServer  # noqa: E402
from pipeline_settings import apply_schema  # noqa: E402


@contextmanager
def temporary_warehouse(health_interval: float, settings: dict[str, str] | None = None) -> Iterator[Any]:
    """Yields a connection that commits each statement, with dbt's environment pointing at the same database."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is ended then, too
    with tempfile.TemporaryDirectory(prefix="smart-access-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = PostgresServer(folder / "postgres", free_port(), settings=settings)
        postgres.start()
        try:
            os.environ.update(postgres.environment())
            os.environ.update(
                DBT_PROJECT_DIR=str(ROOT / "dbt"),
                DBT_PROFILES_DIR=str(ROOT / "dbt"),
                DBT_TARGET_PATH=str(folder / "target"),
                DBT_LOG_PATH=str(folder),
                DBT_LOG_LEVEL_FILE="none",
                DBT_SCHEMA="marts",
                HEALTH_CHECK_INTERVAL=str(health_interval),
            )
            with closing(postgres.connect(postgres.database)) as connection:
                connection.autocommit = False
                apply_schema(connection)
                connection.autocommit = True
                yield connection
        finally:
            postgres.stop()


def build(*arguments: str) -> tuple[float, dict[str, float]]:
    """Snapshots and models, in this process: seconds by the clock, and dbt's own seconds of each model."""
    from dbt.cli.main import dbtRunner

    began = time.perf_counter()
    run = dbtRunner().invoke(["--quiet", "build", "--selector", "models", *arguments])
    took = time.perf_counter() - began
    results: Any = run.result
    if not run.success:
        raise SystemExit(f"dbt failed: {run.exception or [each.message for each in results if each.status == 'error']}")
    return took, {each.node.name: each.execution_time for each in results}


def rows(connection: Any, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found
