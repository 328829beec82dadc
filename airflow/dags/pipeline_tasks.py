"""What the DAGs share: how dbt and the scripts are called, and who is told of a task that failed."""

from __future__ import annotations

import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests
from airflow.providers.standard.operators.bash import BashOperator

# resolved: Airflow may reach this file through a link
PROJECT = Path(__file__).resolve().parents[2]
# By Airflow's own interpreter, not by the PATH: a task's bash may read ~/.bashrc, as its standard input is a socket,
# and find another python or dbt there
PYTHON = f"'{sys.executable}'"
ONE_AT_A_TIME = f'{PYTHON} "$DBT_PROJECT_DIR/one_at_a_time.py" --no-use-colors'
# unit tests prove the models' logic where it is changed; on live rows they would prove it again and again
TEST = f"{ONE_AT_A_TIME} test --exclude-resource-type unit_test"
WEBHOOK_TIMEOUT_S = 10

log = logging.getLogger(__name__)


def alert(context: dict[str, Any]) -> None:
    """Tells of a failed task: a line in its log and, if ALERT_WEBHOOK_URL is set, a POST. Raises nothing."""
    ti = context["ti"]
    error = (str(context.get("exception") or "").strip() or "no reason given").splitlines()[0]
    text = f"{ti.dag_id}.{ti.task_id} failed in {ti.run_id} (attempt {ti.try_number}): {error}"
    log.error(text)
    file = os.environ.get("ALERT_WEBHOOK_URL_FILE")
    try:
        url = Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get("ALERT_WEBHOOK_URL")
    except OSError as failure:
        log.error("ALERT_WEBHOOK_URL_FILE=%s cannot be read: %s", file, failure.strerror)
        return
    if not url:
        return
    message = {
        "text": text,
        "dag_id": ti.dag_id,
        "task_id": ti.task_id,
        "run_id": ti.run_id,
        "try_number": ti.try_number,
        "error": error,
        "log_url": ti.log_url,
    }
    try:
        requests.post(url, json=message, timeout=WEBHOOK_TIMEOUT_S).raise_for_status()
    except requests.RequestException as failure:
        # its kind only: its text holds the address, and that often holds a token
        log.error("ALERT_WEBHOOK_URL did not take the alert: %s", type(failure).__name__)


def command(
    task_id: str, script: str, minutes: float, retries: int = 1, delay_s: float = 20, **environment: str
) -> BashOperator:
    """A task of a shell script, of so many minutes at most. `environment` may have templates in it."""
    folders = {
        "DBT_PROJECT_DIR": os.environ.get("DBT_PROJECT_DIR") or str(PROJECT / "dbt"),
        "DBT_PROFILES_DIR": os.environ.get("DBT_PROFILES_DIR") or str(PROJECT / "dbt"),
    }
    return BashOperator(
        task_id=task_id,
        bash_command=script,
        env=folders | environment,
        append_env=True,
        retries=retries,
        retry_delay=timedelta(seconds=delay_s),
        execution_timeout=timedelta(minutes=minutes),
    )


def counts(said: str) -> str:
    """The counts of the line with which dbt ends."""
    return said.rpartition("Done. ")[2]
