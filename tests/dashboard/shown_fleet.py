"""What the tests of the dashboard share: the fleet that the pages show, and dbt on a database."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from sqlalchemy import create_engine
from streamlit.testing.v1 import AppTest

import pipeline_settings
from simulator import Simulator

ROOT = pipeline_settings.ROOT
sys.path.append(str(ROOT / "benchmarks"))
from detectors import store  # noqa: E402

HEALTH_INTERVAL = 300
PAGES = ("overview", "anomalies", "devices", "households", "access", "batteries", "connectivity", "pipeline")

# What a quiet fleet of three days may lack: a door that stays open, a device that is silent, a battery that runs out,
# and records that did not come through. The failures are old enough to be no day ahead of UTC's where they happened.
TROUBLE = """
INSERT INTO raw_households (household_id, region, timezone, updated_at, ingested_at)
SELECT 'trouble', 'Nowhere', 'Asia/Kathmandu', at, at FROM (SELECT now() - interval '3 days' AS at) AS ago;
INSERT INTO raw_devices (device_id, household_id, device_type, model, firmware_version, updated_at, ingested_at)
SELECT id, 'trouble', 'gate', 'Gate X', '1.0', at, at
FROM unnest(ARRAY['left-open', 'silent', 'draining']) AS id, (SELECT now() - interval '3 days' AS at) AS ago;
INSERT INTO raw_device_health (device_id, reported_at, battery_pct, signal_strength_dbm, is_online, ingested_at)
SELECT id, at, CASE id WHEN 'draining' THEN 22 + 8 * extract(epoch FROM now() - at) / 86400 ELSE 80 END, -60, true, at
FROM unnest(ARRAY['left-open', 'silent', 'draining']) AS id, generate_series(1, 860) AS n,
     LATERAL (SELECT now() - n * interval '5 minutes' AS at) AS ago
WHERE id <> 'silent' OR n > 24;
INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, ingested_at)
SELECT gen_random_uuid(), id, at, kind, 'keypad', at
FROM (VALUES ('left-open', 'open', interval '90 minutes'), ('silent', 'open', interval '3 hours'),
             ('silent', 'close', interval '2 hours 59 minutes'), ('draining', 'open', interval '5 hours'),
             ('draining', 'close', interval '4 hours 59 minutes')) AS happened (id, kind, ago),
     LATERAL (SELECT now() - ago AS at) AS moments;
INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, ingested_at)
SELECT gen_random_uuid(), 'draining', at, 'fail', 'app', at
FROM generate_series(1, 12) AS n, LATERAL (SELECT now() - interval '6 hours' - n * interval '20 seconds' AS at) AS ago;
INSERT INTO dead_letters (topic, partition, "offset", reason, detail, fate) VALUES
    ('smart-access.events', 0, 1, 'bad_json', 'cut off', NULL),
    ('smart-access.events', 0, 2, 'bad_json', 'cut off', NULL),
    ('smart-access.health', 1, 3, 'bad_time', '1970', NULL),
    ('smart-access.health', 1, 4, 'bad_time', '1970', 'replayed');
INSERT INTO ingest_offsets (cluster_id, consumer_group, topic, partition, start_offset, next_offset, stored, dead)
VALUES ('c', 'g', 'smart-access.events', 0, 10, 72, 60, 2), ('c', 'g', 'smart-access.events', 1, 0, 5, 5, 0);
INSERT INTO ingest_minutes (cluster_id, consumer_group, topic, partition, minute_starts_at, stored, duplicates, dead)
SELECT 'c', 'g', 'smart-access.events', 0, date_trunc('minute', now()) - n * interval '1 minute', 10, 1, 2
FROM generate_series(1, 90) AS n;
"""


# On a slow machine the tests take longer than a device may be silent: who reported at the fleet's last moment does so
# again, and no mart has it yet.
REPORT_AGAIN = """
INSERT INTO raw_device_health (device_id, reported_at, battery_pct, signal_strength_dbm, is_online, ingested_at)
SELECT device_id, now(), battery_pct, signal_strength_dbm, is_online, ingested_at
FROM (SELECT DISTINCT ON (device_id) * FROM raw_device_health ORDER BY device_id, reported_at DESC) AS newest,
     (SELECT max(reported_at) AS at FROM raw_device_health) AS last
WHERE reported_at > last.at - 2 * %(interval)s AND last.at < now() - %(interval)s
"""


class Fleet(NamedTuple):
    """since, until: a range of whole hours that ends before the data does, so that no test hangs on the clock."""

    environment: dict[str, str]
    since: datetime
    until: datetime

    def ask(self, query: str, **parameters: Any) -> pd.DataFrame:
        """The rows of a query, as PostgreSQL's owner."""
        engine = create_engine("postgresql+psycopg2://", creator=lambda: self.connect())
        try:
            with engine.connect() as connection:
                result = connection.exec_driver_sql(query, {"since": self.since, "until": self.until, **parameters})
                return pd.DataFrame(result.all(), columns=list(result.keys()))
        finally:
            engine.dispose()

    def value(self, query: str, **parameters: Any) -> Any:
        return self.ask(query, **parameters).iloc[0, 0]

    def report_again(self) -> None:
        connection = self.connect()
        with connection, connection.cursor() as cursor:
            cursor.execute(REPORT_AGAIN, {"interval": timedelta(seconds=HEALTH_INTERVAL)})
        connection.close()

    def connect(self) -> Any:
        with pytest.MonkeyPatch.context() as patched:
            for name, value in self.environment.items():
                patched.setenv(name, value)
            return pipeline_settings.connect_postgres("tests")

    def link(self) -> dict[str, str]:
        """The URL's parameters of that range."""
        return {"range": "custom", "from": f"{self.since:%Y-%m-%dT%H:%M}", "to": f"{self.until:%Y-%m-%dT%H:%M}"}


MOVE = """
UPDATE raw_households SET updated_at = updated_at + %(by)s, ingested_at = ingested_at + %(by)s;
UPDATE raw_devices SET updated_at = updated_at + %(by)s, ingested_at = ingested_at + %(by)s;
UPDATE raw_device_health SET reported_at = reported_at + %(by)s, ingested_at = ingested_at + %(by)s;
UPDATE raw_access_events SET event_ts = event_ts + %(by)s, ingested_at = ingested_at + %(by)s;
"""


def fill(connection: Any, start: datetime, simulated_from: datetime | None = None) -> None:
    """Three days of 24 devices from `start` on, and three devices in trouble.

    What happens depends on the hours of the day; with `simulated_from` it is what happens from that moment on.
    """
    begin = simulated_from or start
    store(connection, Simulator(8, 3, 0.1, HEALTH_INTERVAL, "realistic", seed=5, start=begin), begin, 3 * 86_400)
    with connection.cursor() as cursor:
        cursor.execute(MOVE, {"by": start - begin})
        cursor.execute(TROUBLE)


def run_dbt(environment: dict[str, str], folder: Path) -> None:
    """All models, by a process of its own: this one's dbt is the other tests'."""
    folders = {"DBT_TARGET_PATH": str(folder), "DBT_LOG_PATH": str(folder), "DBT_SCHEMA": "marts"}
    command = [sys.executable, str(ROOT / "dbt/one_at_a_time.py"), "--quiet", "build", "--selector", "models"]
    made = subprocess.run(
        command, env={**os.environ, **environment, **folders}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr


Visit = Callable[..., AppTest]
