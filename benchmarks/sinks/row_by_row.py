"""A script as guides have it: one INSERT a record, a commit after so many; positions are committed by kafka-python.

python benchmarks/sinks/row_by_row.py KAFKA_SERVERS GROUP TOPIC ROWS
"""

from __future__ import annotations

import json
import sys
import time

import psycopg2
from kafka import KafkaConsumer

INSERT = """
INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)
VALUES (%(event_id)s, %(device_id)s, %(event_ts)s, %(event_type)s, %(trigger_source)s)
ON CONFLICT (event_id) DO NOTHING"""
PATIENCE_S = 5


def main() -> None:
    servers, group, topic, rows = sys.argv[1:]
    consumer = KafkaConsumer(
        topic, bootstrap_servers=servers, group_id=group, auto_offset_reset="earliest", session_timeout_ms=6000
    )
    connection = psycopg2.connect("")
    waiting, committed_at = 0, time.monotonic()
    while True:
        polled = consumer.poll(timeout_ms=500)
        for records in polled.values():
            for record in records:
                with connection.cursor() as cursor:
                    cursor.execute(INSERT, json.loads(record.value))
                waiting += 1
                if waiting >= int(rows):
                    connection.commit()
                    waiting, committed_at = 0, time.monotonic()
        if waiting and time.monotonic() - committed_at > PATIENCE_S:
            connection.commit()
            waiting, committed_at = 0, time.monotonic()


if __name__ == "__main__":
    main()
