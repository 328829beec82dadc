"""Sends a simulated fleet's reports to Kafka, each when it is due.

Idempotent and counted: every record is acknowledged by all in-sync replicas or reported as failed, and the exit code is
0 only if all were acknowledged. Ctrl+C and SIGTERM stop, wait for what is on its way and print the summary; a second
Ctrl+C does not wait. With --transactional-id the records become visible by the second, all or nothing.

    python streaming/kafka_producer.py                              until Ctrl+C
    python streaming/kafka_producer.py --duration 10                ten minutes
    python streaming/kafka_producer.py --profile realistic --max-speed --duration 43200     the last 30 days, at once
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import signal
import sys
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

from kafka.errors import AuthorizationError, KafkaError, KafkaTimeoutError, RetriableError

import kafka_log
import pipeline_metrics
from contracts import EVENTS
from delivery import Delivery
from fleet import Parameters
from kafka_contact import NoContact, first_contact
from pacing import Clock
from pipeline_settings import (
    add_kafka_options,
    add_logging_options,
    add_metrics_options,
    kafka_connection,
    number,
    option,
    set_up_logging,
)
from schema_registry import RegistryError, add_registry_options, schema_headers
from simulator import PROFILES, Simulator, Truth
from stop_signals import set_soon
from topics import ensure_topics

log = logging.getLogger("producer")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date-time such as 2026-05-04T13:20:00Z") from None
    moment = moment.replace(tzinfo=moment.tzinfo or UTC)
    if not datetime(2000, 1, 1, tzinfo=UTC) <= moment <= datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"{text} is out of range: must be from 2000-01-01 to now")
    return moment


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole, share = number(int, 1, 1_000_000), number(float, 0, 1)
    group = parser.add_argument_group("fleet")
    option(group, "--households", "NUM_HOUSEHOLDS", 100, whole, "households")
    option(group, "--devices-per-household", "NUM_DEVICES_PER_HOUSEHOLD", 3, number(int, 1, 1000), "devices in each")
    text = "events per device and second, in profile load; 0 for none"
    option(group, "--rate", "EVENT_RATE_PER_DEVICE", 0.1, number(float, 0, 10_000), text)
    text = "seconds between two health reports of a device; 0 for none"
    option(group, "--health-interval", "HEALTH_CHECK_INTERVAL", 30, number(float, 0, 86_400), text)
    text = "load: an even rate; realistic: about 10 events a device and day, by the household's clock (default: load)"
    group.add_argument("--profile", choices=PROFILES, default="load", help=text)
    text = "same seed, same fleet and, from the same start, the same bytes (default: a new one each time)"
    group.add_argument("--seed", type=number(int, 0, 2**63), default=None, help=text)
    for name, default, text in (
        ("duplicate", 0.01, "of the events are sent twice"),
        ("malformed", 0.005, "of the reports are malformed"),
    ):
        text = f"share that {text} (default: {default})"
        group.add_argument(f"--{name}-share", type=share, default=default, metavar="SHARE", help=text)
    group = parser.add_argument_group("run")
    text = "simulated minutes (default: until Ctrl+C)"
    group.add_argument("--duration", type=number(float, 0, 1e7), default=None, metavar="MINUTES", help=text)
    text = "stop after so many access events (default: no limit)"
    group.add_argument("--max-events", type=number(int, 0, 10**12), default=None, metavar="N", help=text)
    text = "no pacing: history that ends now, as fast as Kafka takes it (needs --duration or --max-events)"
    group.add_argument("--max-speed", action="store_true", help=text)
    text = "where the history of --max-speed starts (default: so that it ends now)"
    group.add_argument("--start", type=_moment, default=None, metavar="TIME", help=text)
    text = "send in Kafka transactions under this name (default: none)"
    group.add_argument("--transactional-id", default=None, metavar="ID", help=text)
    text = "write what was injected, a JSON object a line (default: none)"
    group.add_argument("--ground-truth", type=Path, default=None, metavar="FILE", help=text)
    add_metrics_options(group, "PRODUCER_METRICS_PORT", 9102, "port of /metrics")
    add_kafka_options(parser)
    add_registry_options(parser)
    add_logging_options(parser)
    args = parser.parse_args(arguments)
    if args.max_speed and args.duration is None and not args.max_events:
        parser.error("--max-speed needs --duration or --max-events")
    if args.start and not args.max_speed:
        parser.error("--start needs --max-speed: a live stream starts now")
    if args.transactional_id == "":
        parser.error("--transactional-id needs a name")
    return args


def timeline(args: argparse.Namespace) -> tuple[datetime, float]:
    """Where simulated time starts and after how many seconds it ends; without pacing, at the present."""
    now = datetime.now(UTC)
    last = math.inf if args.duration is None else args.duration * 60
    if not args.max_speed:
        return now, last
    devices = args.households * args.devices_per_household
    rate = devices * (args.rate if args.profile == "load" else 2 * Parameters.sessions_per_day / 86_400)
    needed = min(last, args.max_events / rate) if args.max_events and rate else last
    start = args.start or now - timedelta(seconds=needed)
    return start, min(last, (now - start).total_seconds())


def send_all(
    simulator: Simulator,
    delivery: Delivery,
    clock: Clock,
    stop: threading.Event,
    limits: tuple[float, float],
    truth: TextIO | None,
) -> None:
    """Sends until the stream ends, `limits` (simulated seconds, access events) are reached, or `stop` is set."""
    last, most = limits
    events, due = delivery.tallies[EVENTS.topic], 0.0
    for count, (due, topic, key, value, truths) in enumerate(simulator):
        if due >= last or events.sent >= most:
            break
        if due > clock.reached:
            clock.wait_until(due)
        if stop.is_set():
            break
        delivery.send(topic, key, value)
        if truths and truth:
            write_truths(truth, truths)
        if not count & 255:
            clock.tick(due)
    if truth:
        write_truths(truth, simulator.unfinished(due))


def write_truths(file: TextIO, truths: Iterable[Truth]) -> None:
    for entry in truths:
        file.write(json.dumps(entry) + "\n")


def print_summary(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found), flush=True)
        return
    print(" ".join(f"{name}={value}" for name, value in found.items() if name != "topics"))
    for topic, counts in found["topics"].items():
        print(f"  {topic:24} " + " ".join(f"{name}={count}" for name, count in counts.items()), flush=True)


def stop_on_signals() -> threading.Event:
    """Set by the first SIGINT or SIGTERM; the second one interrupts."""
    stop = threading.Event()

    def handle(signum: int, frame: Any) -> None:
        if stop.is_set():
            signal.signal(signum, signal.SIG_IGN)
            raise KeyboardInterrupt
        set_soon(stop)
        log.info("stopping: waiting for what is on its way to Kafka")

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


def produce(args: argparse.Namespace, delivery: Delivery, stop: threading.Event, truth: TextIO | None) -> int:
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    start, last = timeline(args)
    sizes = (args.households, args.devices_per_household, args.rate, args.health_interval, args.profile, seed)
    shares = {"duplicate_share": args.duplicate_share, "malformed_share": args.malformed_share}
    simulator = Simulator(*sizes, start=start, **shares)
    devices = args.households * args.devices_per_household
    log.info("%d devices, profile %s, seed %d, simulated time from %s", devices, args.profile, seed, start)
    clock = Clock(delivery, stop, args.max_speed)
    most = math.inf if args.max_events is None else args.max_events
    sending, done = 0.0, False
    try:
        send_all(simulator, delivery, clock, stop, (last, most), truth)
        sending = clock.elapsed()
        delivery.finish()
        done = True
    except KafkaError as error:
        log.error("sending stopped: %r", error)
        if args.transactional_id and not isinstance(error, (AuthorizationError, KafkaTimeoutError)):
            text = "has another producer --transactional-id %s, or was Kafka away for a minute?"
            log.error(text, args.transactional_id)
        delivery.abort(error)
    except KeyboardInterrupt:
        log.error("interrupted twice: %d records were still on their way", delivery.in_flight)
    delivery.close()
    for tally in delivery.tallies.values():
        if tally.error:
            log.error("%s: %d failed, at last with %r", tally.topic, tally.failed, tally.error)
    found = delivery.summary(sending or clock.elapsed())
    print_summary(found, args.log_format == "json")
    return 0 if done and not found["failed"] else 1


def connect(args: argparse.Namespace) -> Delivery | None:
    """None, and an error in the log, when no broker or registry lets us in. Exits when it is stopped meanwhile."""
    connection = kafka_connection(args)
    try:
        headers = schema_headers(args)  # first: with a schema that is refused not even a topic is made
        first_contact(connection)
        ensure_topics(connection, args.partitions, args.replication_factor, right="WRITE")
        return Delivery(connection, args.transactional_id, headers)
    except AuthorizationError as error:
        log.error("KAFKA_USERNAME=%s lacks an ACL: WRITE on its --transactional-id? %s", args.username, error)
    except RetriableError as error:  # it let us in, and went away then
        log.error("Kafka at %s went away before anything was sent, start again: %s", args.bootstrap_servers, error)
    except (RegistryError, NoContact, KafkaError) as error:
        log.error("%s", error)
    except KeyboardInterrupt:
        log.info("stopped before anything was sent")
        sys.exit(0)
    return None


def main() -> int:
    args = parse_arguments()
    set_up_logging(args)
    kafka_log.calm()
    for signum in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background job inherits it ignored
        signal.signal(signum, signal.default_int_handler)
    try:
        what = f"{args.metrics_host}:{args.metrics_port} (METRICS_HOST, PRODUCER_METRICS_PORT, 0 for none)"
        if args.metrics_port:
            pipeline_metrics.serve(args.metrics_host, args.metrics_port)
        what = str(args.ground_truth)
        with args.ground_truth.open("w", buffering=1) if args.ground_truth else nullcontext() as truth:
            delivery = connect(args)
            return produce(args, delivery, stop_on_signals(), truth) if delivery else 1
    except OSError as error:
        log.error("cannot use %s: %s", what, error.strerror)
        return 1


if __name__ == "__main__":
    sys.exit(main())
