"""kafka-python's own log, made bearable: while a broker is away it writes several lines a second.

For the scripts' terminals; with LOG_LEVEL=DEBUG everything is shown.
"""

from __future__ import annotations

import logging
import time

ONE_LINE_EVERY = 10.0  # seconds


class OneInAWhile(logging.Filter):
    """Lets one of the client's warnings through every ten seconds, without its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("kafka"):
            return True
        # A read that met its connection's closing. That the other side closed one is told before, and not so
        if "(closed)>" in record.getMessage():
            return False
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + ONE_LINE_EVERY
        record.exc_info = None
        return True


def calm() -> None:
    """To be called after set_up_logging."""
    if logging.getLogger().level > logging.DEBUG:
        for handler in logging.getLogger().handlers:
            handler.addFilter(OneInAWhile())
