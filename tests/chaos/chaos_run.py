"""A run: one fault after the other under load, how long until all is stored again, and after each round a count.

Everything is written down as it happens, a JSON object a line: `fault`, `round`, `problem`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from faults import KINDS, Planned
from independent_count import IndependentCount
from onlooker import Place
from script import NotRecovered
from stage import Stage

from local_servers import ServerError

RECOVERED_WITHIN_S = 300.0  # tells what hangs from what a busy machine delays


class Run:
    """stop: once set, the fault under way is ended, all is counted, and that is the end.

    say: takes a line for who watches.
    """

    def __init__(self, stage: Stage, results: Path, stop: threading.Event, say: Callable[[str], None]) -> None:
        self.stage = stage
        self.count = self.count_from_zero()
        self.lines: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self._results = results
        self._stop = stop
        self._say = say
        self._rounds = 0
        self.faults = 0
        self._began = time.monotonic()

    def count_from_zero(self) -> IndependentCount:
        return IndependentCount(self.stage.broker.admin_connection(), self.stage.rows)

    def go(self, plan: Iterable[list[Planned]], faults: float, seconds: float, per_round: int) -> bool:
        """Until so many faults or seconds, or until something does not agree. True: all is well."""
        try:
            self._recovery()
            of_earlier_rounds = 0
            for step in plan:
                if self._stop.is_set() or self.faults >= faults or self._elapsed() >= seconds:
                    break
                if self.faults - of_earlier_rounds >= per_round:
                    of_earlier_rounds = self.faults
                    if not self._end_round():
                        return False
                    self.stage.send_on(self.count.last_number + 1, self._rounds + 1)
                    self._recovery()
                self._inflict(step)
            return self._end_round() and self._count_anew() and not self.problems
        except (AssertionError, NotRecovered, ServerError) as error:
            self._problem(str(error))
            return False

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _inflict(self, step: list[Planned]) -> None:
        began, befell = time.monotonic(), []
        with ExitStack() as lasting:
            for fault in step:
                befell.append(lasting.enter_context(KINDS[fault.kind].befall(self.stage, fault.pick)))
                self._stop.wait(fault.hold_s)
        lasted = time.monotonic() - began
        first_s, all_s = self._recovery()
        self.faults += len(step)
        kinds = [fault.kind for fault in step]
        times = {"lasted_s": round(lasted, 3), "first_s": round(first_s, 3), "all_s": round(all_s, 3)}
        self._note(fault=kinds, befell=befell, **times, memory=self.stage.memory())
        self._say(
            f"{self._clock()} {self.faults:5} {' within '.join(reversed(kinds)):50} {'+'.join(befell):28}"
            f" lasted {lasted:5.1f} s, a row after {first_s:5.2f} s, all of them after {all_s:5.2f} s"
        )

    def _recovery(self) -> tuple[float, float]:
        """Seconds from now until a row is stored, and until all is stored that Kafka has now."""
        began = time.monotonic()
        before = self._when_told(self.stage.ledger, "PostgreSQL does not tell the ledger")
        marks = self._when_told(self.stage.ends, "Kafka does not tell where it ends")
        self._wait(lambda: self.stage.ledger() != before, "no row is stored any more")
        first_s = time.monotonic() - began
        self._wait(
            lambda: all(self.stage.ledger().get(place, -1) >= end for place, end in marks.items() if end),
            "some partition is not stored any more",
        )
        return first_s, time.monotonic() - began

    def _when_told(self, ask: Callable[[], dict[Place, int]], otherwise: str) -> dict[Place, int]:
        told: dict[Place, int] = {}
        self._wait(lambda: told.update(ask()) is None, otherwise)
        return told

    def _wait(self, done: Callable[[], bool], otherwise: str) -> None:
        def looked_after() -> bool:
            for script in self.stage.scripts:
                said = script.restart_if_ended()
                if said:
                    self._problem(said)
            return done()

        self.stage.wait(looked_after, otherwise, RECOVERED_WITHIN_S)

    def _end_round(self) -> bool:
        self._rounds += 1
        self.stage.producer.stop()
        ends = self._when_told(self.stage.ends, "Kafka does not tell where it ends")
        self._wait(lambda: self.stage.ledger() == ends, "the ledger does not come to where Kafka ends")
        self.count.read(self.stage.journal)
        return self._report("round", self.count)

    def _count_anew(self) -> bool:
        """From Kafka's first record on, as somebody would who knows nothing of the rounds."""
        afresh = self.count_from_zero()
        for journal in self.stage.folder.glob("journal-*"):
            afresh.read(journal)
        return self._report("count from offset 0", afresh)

    def _report(self, what: str, count: IndependentCount) -> bool:
        differences = count.differences()
        counts = count.total()
        self._note(round=self._rounds, what=what, counts=counts, differences=differences)
        for difference in differences:
            self._problem(difference)
        told = " ".join(f"{name}={counts[name]}" for name in ("stored", "duplicates", "dead"))
        self._say(f"{self._clock()} {what} {self._rounds}: {told}: {'DOES NOT AGREE' if differences else 'agrees'}")
        return not differences

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        self._note(problem=text)
        self._say(f"{self._clock()} PROBLEM: {text}")

    def _clock(self) -> str:
        return str(timedelta(seconds=int(self._elapsed())))

    def _note(self, **what: Any) -> None:
        line = {"at_s": round(self._elapsed(), 2), **what}
        self.lines.append(line)
        with self._results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
