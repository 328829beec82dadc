"""A flag that a signal handler may set."""

from __future__ import annotations

import threading


def set_soon(flag: threading.Event) -> None:
    """Event.set() for signal handlers. Itself it would wait for ever where the signal came while the interrupted thread
    was inside wait() and held the flag's lock, as that goes on only when the handler has returned."""
    threading.Thread(target=flag.set, name="set-flag").start()
