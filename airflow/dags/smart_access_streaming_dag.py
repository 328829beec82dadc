"""# Smart Access: the marts, every 15 minutes

Brings the marts up to what the stream and the CSV load have stored since the last run.

| task | what it does |
|---|---|
| `dbt_run` | recomputes the device days that new rows touch; a late event corrects its own day |
| `dbt_test` | checks keys, values and contracts of the result |
| `complete` | logs one line: what ran |

A run that fails changes nothing that the next one does not repair: each model is written in one transaction, and its
watermark with it. So a failed run needs no cleaning up; clear it, or wait for the next slot. One run at a time.

Without the raw tables `dbt_run` fails and names the next step (start the consumer once); with empty tables it succeeds.

Settings, from the environment of the scheduler and the dag-processor: `STREAMING_SCHEDULE` (cron, `*/15 * * * *`;
`*/5 * * * *` for fresher marts), `DBT_PROJECT_DIR` and `DBT_PROFILES_DIR` (the project's `dbt` folder),
`DBT_TARGET_PATH` and `DBT_LOG_PATH`, and libpq's `PGHOST`, `PGPORT`, `PGDATABASE`, `PGUSER`, `PGPASSWORD`.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, task

# resolved: Airflow may reach this file through a link
PROJECT = Path(__file__).resolve().parents[2] / "dbt"
ENVIRONMENT = {
    "DBT_PROJECT_DIR": os.environ.get("DBT_PROJECT_DIR") or str(PROJECT),
    "DBT_PROFILES_DIR": os.environ.get("DBT_PROFILES_DIR") or str(PROJECT),
    # dbt stands beside the interpreter in a virtual environment, elsewhere on the PATH in an image
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
}


def dbt(task_id: str, arguments: str) -> BashOperator:
    """A dbt command. Its last line of output, "Done. PASS=… ERROR=…", is the task's result.

    Two attempts of both tasks end within the interval of the schedule.
    """
    return BashOperator(
        task_id=task_id,
        bash_command=f"dbt --no-use-colors {arguments}",
        env=ENVIRONMENT,
        append_env=True,
        retries=1,
        retry_delay=timedelta(seconds=20),
        execution_timeout=timedelta(minutes=3),
    )


@dag(
    dag_id="smart_access_streaming_pipeline",
    schedule=os.environ.get("STREAMING_SCHEDULE") or "*/15 * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=14),
    doc_md=__doc__,
    tags=["smart-access", "dbt"],
)
def smart_access_streaming_pipeline() -> None:
    dbt_run = dbt("dbt_run", "run")
    # unit tests prove the models' logic where it is changed; on live rows they would prove it again and again
    dbt_test = dbt("dbt_test", "test --exclude-resource-type unit_test")

    @task
    def complete(run: str, test: str) -> str:
        counts = [text.rpartition("Done. ")[2] for text in (run, test)]
        summary = f"dbt run: {counts[0]}; dbt test: {counts[1]}"
        logging.getLogger(__name__).info(summary)
        return summary

    completed = complete(dbt_run.output, dbt_test.output)  # type: ignore[arg-type]  # an XComArg stands for its value
    dbt_run >> dbt_test >> completed


smart_access_streaming_pipeline()
