"""A run of the models that computes days anew, by a script that has deleted rows of theirs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import datetime
from typing import Any

from pipeline_settings import ROOT, postgres_parameters

log = logging.getLogger("backfill")

DBT_LOCK = (0x646274, 1)  # dbt/one_at_a_time.py holds it while it runs
DBT_WAIT_S = 600
FLEET = ("run", "--select", "fct_fleet_hourly", "rpt_pipeline_health")
EVERYTHING = ("build", "--selector", "models")


def marts() -> str:
    return os.environ.get("DBT_SCHEMA") or "marts"


def keep_models_away(connection: Any) -> None:
    """Until the connection ends. Raises psycopg2.errors.LockNotAvailable when a run takes too long."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", DBT_LOCK)
        if cursor.fetchone()[0]:
            return
        log.info("a run of the models is at work: waiting for its end, at most %d s", DBT_WAIT_S)
        cursor.execute("SET LOCAL lock_timeout = %s", (f"{DBT_WAIT_S}s",))
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", DBT_LOCK)


def compute_anew(connection: Any, first: datetime, last: datetime, models: tuple[str, ...]) -> bool:
    """Whether that went well; True, too, where no run has made the marts yet. To be called under keep_models_away."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass(%s)",
            (f"{marts()}.fct_fleet_hourly",),
        )
        owner = cursor.fetchone()
    if owner is None:
        return True
    log.info("computing the days from %s to %s anew", f"{first:%Y-%m-%d}", f"{last:%Y-%m-%d}")
    span = f"{{backfill_since: {first:%Y-%m-%d}, backfill_until: {last:%Y-%m-%d}}}"
    # a plain dbt, as the lock is ours; another user than the marts' owner would take them away from that one
    command = [sys.executable, "-P", "-c", "from dbt.cli.main import cli; cli()", *models, "--vars", span]
    environment = {**os.environ, **postgres_parameters()}
    environment["PGOPTIONS"] = f"{os.environ.get('PGOPTIONS', '')} -c role={owner[0]}".strip()
    environment.pop("PSEUDONYM_KEY", None)
    for name in ("DBT_PROJECT_DIR", "DBT_PROFILES_DIR"):
        environment[name] = os.environ.get(name) or str(ROOT / "dbt")
    return not subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False).returncode
