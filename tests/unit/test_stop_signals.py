from __future__ import annotations

import threading

from stop_signals import set_soon


def test_a_signal_that_comes_while_its_thread_holds_the_flags_lock_does_not_wait_for_that_thread() -> None:
    flag = threading.Event()
    returned = threading.Event()

    def interrupted_within_wait() -> None:
        with flag._cond:  # type: ignore[attr-defined]  # as wait() does
            set_soon(flag)
            returned.set()

    threading.Thread(target=interrupted_within_wait, daemon=True).start()
    assert returned.wait(10)
    assert flag.wait(10)
