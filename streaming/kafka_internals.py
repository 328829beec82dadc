"""When kafka-python's private parts may be replaced: in the version that the tests hold ours against, and no other."""

from __future__ import annotations

import logging
import os

import kafka

log = logging.getLogger("kafka_internals")

TESTED_VERSION = "3.0.12"


def may_be_replaced(setting: str) -> bool:
    """False, with a line in the log, in another version and where the environment has `setting`=off."""
    if os.environ.get(setting, "on").lower() == "off":
        log.info("%s=off: kafka-python's own is taken", setting)
        return False
    if kafka.__version__ != TESTED_VERSION:
        log.warning(
            "kafka-python is %s, tested is %s: staying slow, as with %s=off",
            kafka.__version__, TESTED_VERSION, setting,
        )  # fmt: skip
        return False
    return True
