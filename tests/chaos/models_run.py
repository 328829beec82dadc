"""A real Airflow that runs the streaming DAG on the stage's database, one run as soon as the last has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import psutil
from onlooker import Database

from local_servers.airflow_services import DATABASE, AirflowServices
from local_servers.postgres_server import PostgresServer

DAG = "smart_access_streaming_pipeline"
SCHEDULER = "airflow-scheduler"
READY_WITHIN_S = 300.0
MODELS_WITHIN_S = 900.0  # the interval of the DAG's own schedule, within which all its attempts end
SETTINGS = {
    "STREAMING_SCHEDULE": "@continuous",
    # By default the successor of a scheduler that was killed notices after five minutes what it has left behind
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
}
# Of a run that was retried, the attempt counts that came last
HAS_BUILT = """
SELECT 1 FROM dag_run JOIN task_instance USING (dag_id, run_id)
WHERE dag_id = %s AND dag_run.state = 'success' AND task_id = 'dbt_run' AND task_instance.start_date > %s
LIMIT 1
"""
RUNS = "SELECT coalesce(state, 'none'), count(*) FROM dag_run WHERE dag_id = %s GROUP BY 1"
LEFT_BEHIND = """
SELECT run_id, task_id, task_instance.state
FROM dag_run JOIN task_instance USING (dag_id, run_id)
WHERE dag_run.state IN ('success', 'failed')
  AND (task_instance.state IS NULL OR task_instance.state NOT IN ('success', 'failed', 'upstream_failed', 'skipped'))
"""
AT_WORK = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'dbt' LIMIT 1"


class ModelsRun:
    """database: where the raw tables are, and the marts are to be."""

    def __init__(self, folder: Path, postgres: PostgresServer, database: str, port: int) -> None:
        settings = postgres.environment(database) | SETTINGS
        self.services = AirflowServices(folder / "airflow" / "home", port, folder, settings)
        self.restarts: Counter[str] = Counter()
        self._metadata = Database(postgres, DATABASE)

    def start(self) -> None:
        """Returns when the DAG is on. Raises ServerError."""
        self.services.start()
        self.services.daemons[0].wait_until(self._is_on, READY_WITHIN_S, interval_s=1)

    def _is_on(self) -> bool:
        try:
            return self.services.is_ready() and self.services.unpause(DAG)
        except OSError:
            return False

    def restart_ended(self) -> None:
        """Airflow's processes end when they lose their database; what starts them again is docker, systemd, or this."""
        self.restarts.update(self.services.start_ended())

    def close(self) -> None:
        self.kill()
        self._metadata.forget_connection()

    def processes(self) -> Iterator[psutil.Process]:
        """Each one before what it has started."""
        for daemon in self.services.daemons:
            process = daemon.process()
            if process is not None:
                yield from with_children(process)

    def kill(self, *names: str) -> None:
        """SIGKILL to these of Airflow's processes, all of them if none is named, and to what they have started."""
        for daemon in self.services.daemons:
            process = daemon.process()
            if process is not None and (not names or daemon.name in names):
                started = process.children(recursive=True)
                daemon.kill()
                for child in started:
                    with suppress(psutil.NoSuchProcess):
                        child.kill()

    def kill_dbt(self) -> bool:
        """SIGKILL to a dbt that is at work in the database; False if there is none."""
        self.restart_ended()
        if not self._metadata.rows(AT_WORK):
            return False
        at_work = [process for process in self.processes() if is_dbt(process)]
        for process in at_work:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return bool(at_work)

    def has_built_since(self, moment: datetime) -> bool:
        """Whether a run of the DAG has succeeded whose models were begun after it."""
        return bool(self._metadata.rows(HAS_BUILT, DAG, moment))

    def runs(self) -> dict[str, int]:
        """By state, how many there are."""
        return dict(self._metadata.rows(RUNS, DAG))

    def left_behind(self) -> list[str]:
        """A line for each thing that waits for ever. To be asked after a run has succeeded."""
        unfinished = {state: count for state, count in self.runs().items() if state not in ("success", "failed")}
        found = [f"DAG runs that do not end: {unfinished}"] if sum(unfinished.values()) > 1 else []
        return found + [
            f"{task} of {run}, which has ended, is {state}" for run, task, state in self._metadata.rows(LEFT_BEHIND)
        ]


def with_children(process: psutil.Process) -> Iterator[psutil.Process]:
    """Suspended by whoever asks, one has started all that it will start."""
    with suppress(psutil.NoSuchProcess):
        yield process
        for child in process.children():
            yield from with_children(child)


def is_dbt(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return any(part.endswith("/one_at_a_time.py") for part in process.cmdline()[1:2])
    return False
