"""# Smart Access: the marts, every 15 minutes

Brings the marts up to what the stream and the CSV load have stored since the last run.

| task | what it does |
|---|---|
| `dbt_run` | says how fresh the raw tables are, notes what changed in the registry, recomputes what new rows touch |
| `dbt_test` | checks keys, values and relationships of the result |
| `complete` | logs one line: what ran, and which sources are not fresh |

A late event corrects its own hour, day and session. A source that is not fresh stops nothing, as a fleet may be silent.
The log of `dbt_run` and the line of `complete` name it in dbt's words: `WARN` for no new row in 15 minutes,
`ERROR STALE` for none in an hour, or none at all.

A run that fails changes nothing that the next one does not repair: each model is written in one transaction, and what
it has seen with it. So a failed run needs no cleaning up; clear it, or wait for the next slot. A task is tried twice,
and all attempts of a run end before the next slot of `*/15`; with a shorter schedule a slot may pass while they last.
The first run over a long history may need more than the four and a half minutes that `dbt_run` has: make it by hand.

One run at a time: here by `max_active_runs`, and with what is run elsewhere by a lock in the database. By hand use
`python dbt/one_at_a_time.py build --selector models`, which waits for a run of this DAG, and this DAG for it. A plain
`dbt` does not wait, and one of the two runs may fail.

Without the raw tables `dbt_run` fails and names the next step (start the consumer once); with empty tables it succeeds.

When the last attempt of a task has failed, one line goes to the task's log and, if `ALERT_WEBHOOK_URL` is set, a POST
to that address: JSON with `text` (the same line), `dag_id`, `task_id`, `run_id`, `try_number`, `error` (the first line
of it) and `log_url`. A webhook that does not answer within seconds is logged and changes nothing.

Settings, from the environment of the scheduler and the dag-processor: `STREAMING_SCHEDULE` (cron, `*/15 * * * *`;
`*/5 * * * *` for fresher marts), `ALERT_WEBHOOK_URL` (or `ALERT_WEBHOOK_URL_FILE`, a file that holds it),
`DBT_PROJECT_DIR` and `DBT_PROFILES_DIR` (the project's `dbt` folder), `DBT_TARGET_PATH` and `DBT_LOG_PATH`, and libpq's
`PGHOST`, `PGPORT`, `PGDATABASE`, `PGUSER`, `PGPASSWORD` (or `PGPASSWORD_FILE`).
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime, timedelta

from airflow.sdk import dag, task

from pipeline_tasks import ONE_AT_A_TIME, PYTHON, TEST, alert, command, counts

DBT = f"{PYTHON} -m dbt.cli.main --no-use-colors"
# Of dbt's lines on freshness, the names and states that are not PASS. It fails where one is stale; where it fails and
# names none, it could not look. The last line is the task's result.
RUN = rf"""set -eo pipefail
otherwise=fresh
said=$({DBT} source freshness | tee /dev/stderr) || otherwise=unknown
named=$(sed -nE 's/.* (WARN|ERROR STALE|ERROR) freshness of raw\.([a-z_]+) .*/\2 \1/p' <<< "$said" | sort | paste -sd ,)
result=$({ONE_AT_A_TIME} build --selector models | tee /dev/stderr | tail -n 1)
echo "$result; sources: ${{named:-$otherwise}}"
"""


@dag(
    dag_id="smart_access_streaming_pipeline",
    schedule=os.environ.get("STREAMING_SCHEDULE") or "*/15 * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=14),
    default_args={"on_failure_callback": alert},
    doc_md=__doc__,
    tags=["smart-access", "dbt"],
)
def smart_access_streaming_pipeline() -> None:
    # two attempts of both end within the interval of the schedule
    dbt_run = command("dbt_run", RUN, minutes=4.5)
    dbt_test = command("dbt_test", TEST, minutes=2)

    @task
    def complete(run: str, test: str) -> str:
        summary = f"dbt run: {counts(run)}; dbt test: {counts(test)}"
        logging.getLogger(__name__).info(summary)
        return summary

    completed = complete(dbt_run.output, dbt_test.output)  # type: ignore[arg-type]  # an XComArg stands for its value
    dbt_run >> dbt_test >> completed


smart_access_streaming_pipeline()
