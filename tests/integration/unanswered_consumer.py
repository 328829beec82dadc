"""The consumer, whose question whether this is still the same Kafka has no answer three times, once it has its
partitions: as if Kafka went away just after it had sent records."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "streaming"))

from kafka.errors import KafkaConnectionError

import kafka_consumer
from membership import Session

ask = Session._require_same_cluster
asked = 0


def ask_in_vain(self: Session) -> None:
    global asked
    asked += 1
    if 2 <= asked <= 4:  # the first one is asked before there are records
        print("unanswered", flush=True)
        raise KafkaConnectionError("away again")
    ask(self)


Session._require_same_cluster = ask_in_vain  # type: ignore[method-assign]
sys.exit(kafka_consumer.main())
