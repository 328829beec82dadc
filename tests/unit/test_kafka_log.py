"""What of kafka-python's own log reaches a terminal."""

import logging

import pytest

from kafka_log import OneInAWhile


def passes(log_filter: OneInAWhile, name: str, message: str) -> bool:
    return log_filter.filter(logging.LogRecord(name, logging.ERROR, "", 0, message, (), None))


def test_of_the_clients_warnings_one_in_a_while_gets_through() -> None:
    log_filter = OneInAWhile()
    assert passes(log_filter, "kafka.net", "Connection refused")
    assert not passes(log_filter, "kafka.net", "Connection refused")
    assert passes(log_filter, "consumer", "fenced")


@pytest.mark.parametrize("kind", ["KafkaTCPTransport", "KafkaSSLTransport"])
def test_a_read_of_a_closed_connection_is_no_news_and_hides_none(kind: str) -> None:
    log_filter = OneInAWhile()
    assert not passes(log_filter, "kafka.net", f"<{kind} [none] (closed)>: Error receiving network data closing socket")
    assert passes(log_filter, "kafka.net", f"<{kind} [127.0.0.1:9092<-40000]>: socket disconnected")
