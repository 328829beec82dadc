"""Every metric's name, in one place; each script serves its own at /metrics, with /healthz and /readyz where given."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, make_wsgi_app

disable_created_metrics()  # a second series for each, which says when the process started

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# --- consumer -------------------------------------------------------------------------------------------------------
# Records taken from Kafka and accounted for in the ledger
CONSUMED = Counter("consumer_records_consumed_total", "Records consumed and committed", ["topic"])
# Rows written
STORED = Counter("consumer_records_stored_total", "Records stored as rows", ["topic"])
# Records whose key was there already (or, in the registry, an older version)
DUPLICATES = Counter("consumer_records_duplicate_total", "Records absorbed as duplicates", ["topic"])
# Records that became dead letters
DEAD = Counter("consumer_records_dead_total", "Records that became dead letters", ["topic", "reason"])
# Records of erased households and devices, which were not taken (docs/erasure.md)
SUPPRESSED = Counter("consumer_records_suppressed_total", "Records of erased households, not taken", ["topic"])
# Events and health reports whose Kafka key is not their device_id; the value counts
KEY_MISMATCHES = Counter("consumer_key_mismatches_total", "Records whose key differs from their device", ["topic"])
# Records in one transaction
BATCH_RECORDS = Histogram(
    "consumer_batch_records", "Records in one transaction", buckets=(1, 10, 100, 500, 1000, 2500, 5000, 10000, 20000)
)
# From BEGIN to the end of COMMIT
COMMIT_SECONDS = Histogram("consumer_commit_seconds", "Duration of one transaction", buckets=SECONDS)
# From a record's Kafka timestamp to the end of its transaction; a sample of each batch
EVENT_TO_ROW_SECONDS = Histogram(
    "consumer_event_to_row_seconds", "Record's Kafka timestamp to its committed row, sampled", buckets=SECONDS
)
# Offsets between the ledger and the end of the partition
LAG_RECORDS = Gauge("consumer_lag_records", "Records not yet stored", ["topic", "partition"])
# Age of the last stored record while there is a lag, else 0
LAG_SECONDS = Gauge("consumer_lag_seconds", "Age of the newest stored record while behind", ["topic"])
# Transactions tried again after an outage of PostgreSQL
RETRIES = Counter("consumer_retries_total", "Transactions retried after an outage", ["sqlstate"])
# Transactions refused because another consumer owns the partition now
FENCED = Counter("consumer_fenced_total", "Transactions refused by the ledger's fence")
# Offsets that Kafka deleted before they were read, accepted with --accept-gap
GAPS = Counter("consumer_gap_records_total", "Offsets lost to retention and accepted", ["topic"])
# 1 for the state the consumer is in: starting, running, backing_off or stopping
STATE = Gauge("consumer_state", "1 for the present state", ["state"])

# --- producer -------------------------------------------------------------------------------------------------------
# Records handed to Kafka's client
PRODUCER_SENT = Counter("producer_records_sent_total", "Records sent", ["topic"])
# Records that all in-sync replicas have
PRODUCER_ACKNOWLEDGED = Counter("producer_records_acknowledged_total", "Records acknowledged", ["topic"])
# Records that Kafka refused or did not take in time
PRODUCER_FAILED = Counter("producer_records_failed_total", "Records not acknowledged", ["topic"])
# From send to acknowledgement; a sample
PRODUCER_SEND_LATENCY = Histogram("producer_send_latency_seconds", "Send to acknowledgement, sampled", buckets=SECONDS)


def serve(host: str, port: int, ready: Callable[[], tuple[bool, dict[str, Any]]] | None = None) -> None:
    """Serves /metrics on host:port; with `ready` also /readyz and /healthz.

    ready() gives (ready, report); the process counts as healthy unless the report says stuck.
    Raises OSError when the port is taken, or the host is not this machine's.
    """
    metrics = make_wsgi_app()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ["PATH_INFO"]
        if ready is None or path not in ("/readyz", "/healthz"):
            return metrics(environ, start_response)
        is_ready, report = ready()
        fine = is_ready if path == "/readyz" else not report.get("stuck")
        start_response("200 OK" if fine else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [json.dumps(report).encode() + b"\n"]

    server = make_server(host, port, app, WSGIServer, _QuietHandler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""
