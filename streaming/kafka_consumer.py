"""Moves the four topics into PostgreSQL, exactly once. Start as many as there are partitions; stop them at will.

    python streaming/kafka_consumer.py [--help]

Two threads: one polls and decodes (membership.py), one writes (writer.py, sink.py). Positions come from the ledger in
PostgreSQL, never from Kafka (positions.py); offsets are committed to Kafka as well, after the fact, for the tools that
read lag there.

Ctrl+C or SIGTERM: finishes the batch, commits, leaves the group, exits 0. A kill at any instant loses nothing and
doubles nothing. Exit code 1: the last line says which setting, or which decision, is needed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import sys
import threading
import time
from functools import partial

import psycopg2
import tenacity
from kafka.errors import (
    AuthorizationError,
    FencedInstanceIdError,
    InvalidSessionTimeoutError,
    KafkaError,
    RetriableError,
)

import kafka_log
import pipeline_metrics as metrics
from kafka_contact import NoContact, first_contact
from membership import GROUP_PATIENCE_S, ClusterChanged, Session
from pipeline_settings import (
    add_kafka_options,
    add_logging_options,
    add_metrics_options,
    add_retention_option,
    apply_schema,
    connect_postgres,
    kafka_connection,
    lacks_a_right,
    number,
    option,
    postgres_parameters,
    set_up_logging,
)
from positions import LogMismatch
from sink import Fenced, Sink, is_outage
from stop_signals import set_soon
from topics import cluster_id, ensure_topics
from writer import Status, Writer

log = logging.getLogger("consumer")

TLS_PARAMETERS = ("PGSSLMODE", "PGSSLROOTCERT")  # libpq's own
STOP_TIMEOUT_S = 30.0
STOP_TIMEOUT_IN_OUTAGE_S = 5.0  # what is not written is read again; no need to keep the terminal waiting


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Moves the reports of access devices from Kafka into PostgreSQL, exactly once.",
        epilog="PostgreSQL is named by libpq's variables: PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD, PGSSLMODE …",
    )
    option(parser, "--group", "CONSUMER_GROUP", "smart-access-sink", str, "consumer group, and the ledger's name")
    option(parser, "--instance-id", "CONSUMER_INSTANCE_ID", "", str, "static member name: a restart goes on at once")
    option(parser, "--batch-size", "BATCH_SIZE", 20_000, number(int, 1, 1_000_000), "most rows in one transaction")
    option(parser, "--batch-timeout", "BATCH_TIMEOUT", 1.0, number(float, 0, 60), "longest wait of a row, seconds")
    option(parser, "--session-timeout", "SESSION_TIMEOUT", 10, number(float, 1, 1800), "group's patience, seconds")
    add_metrics_options(parser, "CONSUMER_METRICS_PORT", 9101, "port of /metrics, /healthz and /readyz")
    text = "events and health reports older than so many days become dead letters; unset: none"
    add_retention_option(parser, text)
    parser.add_argument(
        "--accept-gap", action="store_true", help="go on past offsets that Kafka has deleted, and record the gap"
    )
    parser.add_argument(
        "--until-caught-up", action="store_true", help="end when everything is stored that Kafka held at the start"
    )
    add_kafka_options(parser)
    add_logging_options(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    set_up_logging(args)
    kafka_log.calm()
    sys.setswitchinterval(0.0002)  # the default of 5 ms leaves one thread waiting while the other computes
    gc.freeze()  # what is imported stays: no need to look at it again and again
    gc.set_threshold(50_000, 20, 100)  # a poll makes thousands of records, none of them in a cycle
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: set_soon(stop))
    status = Status()
    if args.metrics_port:
        try:
            metrics.serve(args.metrics_host, args.metrics_port, status.report)
        except OSError as error:
            where = f"{args.metrics_host}:{args.metrics_port}"
            log.error("cannot listen on %s: %s. Set CONSUMER_METRICS_PORT, METRICS_HOST", where, error.strerror)
            return 1
    try:
        wait_for_postgres(stop, status)
        first_contact(kafka_connection(args))
    except NoContact as error:
        log.error("%s", error)
        return 1
    except psycopg2.OperationalError as error:
        if stop.is_set():
            log.info("stopped before PostgreSQL answered")
            return 0
        reason = str(error).strip().splitlines()[0]
        names = TLS_PARAMETERS if _is_about_tls(reason) else postgres_parameters()
        log.error("PostgreSQL refuses: %s. Set %s", reason, ", ".join(names))
        return 1
    fenced_twice_until = 0.0
    while not stop.is_set():
        try:
            run_session(args, stop, status)
        except Fenced as error:
            metrics.FENCED.inc()
            log.warning("fenced: another consumer owns %s. Nothing of this batch was written; joining anew", error)
        except ClusterChanged as error:
            log.warning("%s: Kafka was made anew, starting afresh", error)
        except RetriableError as error:
            log.warning("Kafka: %s; joining anew", error)
            stop.wait(1)
        except FencedInstanceIdError:
            # A member that joins again because an answer was lost is another one of its name to Kafka: joining once
            # more mends that. Two that there are fence each other with every heartbeat, thus within a session
            if time.monotonic() < fenced_twice_until:
                log.error("CONSUMER_INSTANCE_ID=%s is another consumer's too: give each its own", args.instance_id)
                return 1
            fenced_twice_until = time.monotonic() + args.session_timeout + GROUP_PATIENCE_S
            log.warning("Kafka let another one in as CONSUMER_INSTANCE_ID=%s; joining anew", args.instance_id)
            stop.wait(1)
        except AuthorizationError as error:
            log.error("KAFKA_USERNAME=%s lacks an ACL: READ on group %s? %s", args.username, args.group, error)
            return 1
        except InvalidSessionTimeoutError:
            limits = "group.min.session.timeout.ms and group.max.session.timeout.ms"
            log.error("SESSION_TIMEOUT=%g lies outside of the brokers' %s", args.session_timeout, limits)
            return 1
        except psycopg2.errors.InsufficientPrivilege as error:
            log.error("%s", lacks_a_right(error))
            return 1
        except (LogMismatch, KafkaError) as error:
            log.error("%s", error)
            return 1
    log.info("stopped")
    return 0


def wait_for_postgres(stop: threading.Event, status: Status) -> None:
    """Makes the tables, waiting for PostgreSQL as long as it takes. Raises what waiting cannot mend."""

    def say(attempt: tenacity.RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome else ""
        if attempt.attempt_number == 1:
            log.warning("waiting for PostgreSQL (PGHOST, PGPORT): %s", str(error).strip().splitlines()[0])
            status.set("backing_off", "PostgreSQL does not answer yet")

    def make_tables() -> None:
        connection = connect_postgres("smart-access-consumer")
        try:
            apply_schema(connection)
        finally:
            connection.close()

    tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: is_outage(error) and not _is_refusal(error)),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        stop=tenacity.stop_when_event_set(stop),
        sleep=tenacity.sleep_using_event(stop),
        before_sleep=say,
        reraise=True,
    )(make_tables)


def _is_refusal(error: BaseException) -> bool:
    """A server that answers and says no; libpq gives no SQLSTATE while connecting, so its text must do."""
    text = str(error)
    words = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")
    return any(word in text for word in words) or _is_about_tls(text)


def _is_about_tls(text: str) -> bool:
    words = ("certificate verify failed", "does not support SSL", "root certificate file", "server certificate for")
    return any(word in text for word in words)


def run_session(args: argparse.Namespace, stop: threading.Event, status: Status) -> None:
    """One membership in the group, until `stop` or until it must begin anew."""
    connection = kafka_connection(args)
    ensure_topics(connection, args.partitions, args.replication_factor, right="READ")
    cluster = cluster_id(connection)
    ledger = Sink(partial(connect_postgres, "smart-access-consumer"), cluster, args.group)
    sink = Sink(partial(connect_postgres, "smart-access-writer"), cluster, args.group)
    writer = Writer(sink, status, args.batch_size, args.batch_timeout)
    session = Session(
        connection, args.group, args.instance_id, args.session_timeout, args.accept_gap, args.until_caught_up,
        args.retention_days, cluster, ledger, writer, status,
    )  # fmt: skip
    writer.start()
    log.info("cluster %s, group %s", cluster, args.group)
    try:
        session.run(stop)
        timeout = STOP_TIMEOUT_IN_OUTAGE_S if status.state == "backing_off" else STOP_TIMEOUT_S
        status.set("stopping")
        if not writer.flush(timeout):
            log.warning("stopped with rows not yet written: they will be read again")
    finally:
        writer.stop()
        ledger.close()
        session.close()


if __name__ == "__main__":
    sys.exit(main())
