"""# Smart Access: what is too old goes, once a day at 03:30

Deletes what is older than `RETENTION_DAYS`: raw rows, dead letters, and what follows them in the marts.

| task | what it does |
|---|---|
| `sweep` | deletes in short transactions, resting between them, so that ingestion goes on, and vacuums |
| `complete` | logs one line of counts |

Off until `RETENTION_DAYS` is set: then `sweep` succeeds, and says that it is off. What goes, what stays and why:
`docs/retention.md`. Each sweep has its line in the table `sweeps`, with the rows deleted by table.

A sweep that was stopped, or failed, has deleted what it has deleted; the next one goes on. `sweep` is tried again after
five minutes. Of two at once the later one fails and says so. The marts are swept while no run of the models is at work:
it waits for one, 10 minutes at most, and lets one that waits go first, so pause nothing.

When the last attempt of a task has failed, `ALERT_WEBHOOK_URL` is told, as by the other pipelines.

Settings, from the environment of the scheduler and the dag-processor: `MAINTENANCE_SCHEDULE` (cron, `30 3 * * *`, UTC),
`RETENTION_DAYS` (unset: off), `AGGREGATE_RETENTION_MONTHS` (`13`), `SWEEP_SHARE` (`0.2`: the part of the time that it
works), `DBT_SCHEMA`, `ALERT_WEBHOOK_URL`, and libpq's `PGHOST`, `PGPORT`, `PGDATABASE`, `PGUSER`, `PGPASSWORD`.
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime, timedelta

from airflow.sdk import dag, task

from pipeline_tasks import PROJECT, PYTHON, alert, command

SWEEP = f"set -o pipefail; {PYTHON} '{PROJECT}/streaming/apply_retention.py' | tail -n 1"


@dag(
    dag_id="smart_access_maintenance",
    schedule=os.environ.get("MAINTENANCE_SCHEDULE") or "30 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=20),
    default_args={"on_failure_callback": alert},
    doc_md=__doc__,
    tags=["smart-access"],
)
def smart_access_maintenance() -> None:
    sweep = command("sweep", SWEEP, minutes=9 * 60, retries=1, delay_s=300)

    @task
    def complete(said: str) -> str:
        logging.getLogger(__name__).info(said)
        return said

    completed = complete(sweep.output)  # type: ignore[arg-type]  # an XComArg stands for its value
    sweep >> completed


smart_access_maintenance()
