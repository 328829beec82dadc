"""# Smart Access: files, once a day at 02:00

Loads the CSV files that lie in the drop folder, then brings the marts up to them. Asked to, it makes the marts of past
days anew: a backfill.

| task | what it does |
|---|---|
| `load` | loads each file into its raw table and moves it to `done/` or `failed/`, with a report beside it |
| `dbt_run` | recomputes what the new rows touch, and the days of a backfill |
| `dbt_test` | checks keys, values and relationships of the result |
| `complete` | logs one line of counts; fails if a file did, with the others loaded and the marts right all the same |

**Files.** Put them into the folder of `BATCH_DROP_DIR` under a name that ends in `.csv` or `.csv.gz`. While one is
being written call it something else (`NAME.part`): a file untouched for a minute counts as whole. One that was loaded
before changes nothing. While PostgreSQL is away, files stay where they are and `load` is tried again.

**Backfill.** Rows that arrive late, of whatever age, correct their own hours, days and sessions unasked.
A backfill is for when a model's logic has changed, or its table was damaged: *Trigger* the DAG with

- `since` and `until`, the first and the last day (UTC) whose rows are made anew; either may be left empty; or
- `full_refresh`: everything anew, from the raw tables.

Both give what a full refresh gives. One run of dbt at a time: it waits for one of the streaming pipeline, which waits
for this one, 90 s at most; so pause that DAG for a backfill that takes longer.

When the last attempt of a task has failed, `ALERT_WEBHOOK_URL` is told, as by the streaming pipeline.

Settings, from the environment of the scheduler and the dag-processor: `BATCH_SCHEDULE` (cron, `0 2 * * *`, UTC),
`BATCH_DROP_DIR` (`.local/drop` in the project), `ALERT_WEBHOOK_URL`, `DBT_PROJECT_DIR`, `DBT_PROFILES_DIR`,
`DBT_TARGET_PATH`, `DBT_LOG_PATH`, and libpq's `PGHOST`, `PGPORT`, `PGDATABASE`, `PGUSER`, `PGPASSWORD`.
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime, timedelta

from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowFailException

from pipeline_tasks import ONE_AT_A_TIME, PROJECT, PYTHON, TEST, alert, command, counts

LOAD = f"set -o pipefail; {PYTHON} '{PROJECT}/streaming/drop_folder.py' | tail -n 1"
RUN = rf"""set -eo pipefail
asked=()
[ "$FULL_REFRESH" = false ] || asked+=(--full-refresh)
[ "$SINCE$UNTIL" = nullnull ] || asked+=(--vars "{{backfill_since: $SINCE, backfill_until: $UNTIL}}")
{ONE_AT_A_TIME} build --selector models "${{asked[@]}}" | tee /dev/stderr | tail -n 1
"""
DAY = ["null", "string"]


@dag(
    dag_id="smart_access_batch_pipeline",
    schedule=os.environ.get("BATCH_SCHEDULE") or "0 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=20),
    default_args={"on_failure_callback": alert},
    params={
        "since": Param(None, type=DAY, format="date", title="Backfill: first day (UTC)"),
        "until": Param(None, type=DAY, format="date", title="Backfill: last day (UTC)"),
        "full_refresh": Param(False, type="boolean", title="Make all of the marts anew"),
    },
    doc_md=__doc__,
    tags=["smart-access", "dbt"],
)
def smart_access_batch_pipeline() -> None:
    load = command("load", LOAD, minutes=90, retries=3, delay_s=300)
    dbt_run = command(
        "dbt_run",
        RUN,
        minutes=90,
        retries=3,
        delay_s=120,
        SINCE="{{ params.since or 'null' }}",
        UNTIL="{{ params.until or 'null' }}",
        FULL_REFRESH="{{ 'true' if params.full_refresh else 'false' }}",
    )
    dbt_test = command("dbt_test", TEST, minutes=30)

    @task
    def complete(files: str, run: str, test: str) -> str:
        summary = f"{files}; dbt run: {counts(run)}; dbt test: {counts(test)}"
        logging.getLogger(__name__).info(summary)
        if " failed=0 " not in files:
            raise AirflowFailException(f"a file could not be loaded; its report lies in failed/: {files}")
        return summary

    completed = complete(load.output, dbt_run.output, dbt_test.output)  # type: ignore[arg-type]  # XComArgs
    load >> dbt_run >> dbt_test >> completed


smart_access_batch_pipeline()
