"""A run: one fault after the other under load, how long until all is stored again, and after each round a count.

Everything is written down as it happens, a JSON object a line: `fault`, `round`, `problem`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import marts_count
from faults import AIRFLOW, KINDS, Planned
from independent_count import IndependentCount
from models_run import MODELS_WITHIN_S
from onlooker import DATABASE, Place
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
        ended, over_at = time.monotonic(), datetime.now(UTC)
        first_s, all_s = self._recovery()
        self.faults += len(step)
        kinds = [fault.kind for fault in step]
        times = {"lasted_s": ended - began, "first_s": first_s, "all_s": all_s}
        told = f"lasted {ended - began:5.1f} s, a row after {first_s:5.2f} s, all of them after {all_s:5.2f} s"
        if AIRFLOW in {KINDS[kind].area for kind in kinds}:
            self._await_models(over_at)
            times["models_s"] = time.monotonic() - ended
            told += f", a run of the models after {times['models_s']:.0f} s"
        times = {name: round(seconds, 3) for name, seconds in times.items()}
        self._note(fault=kinds, befell=befell, **times, memory=self.stage.memory())
        self._say(f"{self._clock()} {self.faults:5} {' within '.join(reversed(kinds)):50} {'+'.join(befell):28} {told}")

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

    def _await_models(self, moment: datetime) -> None:
        """Until a run of the DAG has succeeded whose models were begun after it."""
        models = self.stage.models
        if models is not None:
            self._wait(lambda: models.has_built_since(moment), "no run of the models succeeds", MODELS_WITHIN_S)

    def _wait(self, done: Callable[[], bool], otherwise: str, within_s: float = RECOVERED_WITHIN_S) -> None:
        def looked_after() -> bool:
            for script in self.stage.scripts:
                said = script.restart_if_ended()
                if said:
                    self._problem(said)
            if self.stage.models:
                self.stage.models.restart_ended()
            return done()

        self.stage.wait(looked_after, otherwise, within_s)

    def _end_round(self) -> bool:
        self._rounds += 1
        self.stage.producer.stop()
        ends = self._when_told(self.stage.ends, "Kafka does not tell where it ends")
        self._wait(lambda: self.stage.ledger() == ends, "the ledger does not come to where Kafka ends")
        self.count.read(self.stage.journal)
        return self._report("round", self.count) and self._marts_agree()

    def _marts_agree(self) -> bool:
        models = self.stage.models
        if models is None:
            return True
        self._await_models(datetime.now(UTC))
        differences = marts_count.differences(self.stage.postgres.connect(DATABASE)) + models.left_behind()
        runs, restarts = models.runs(), dict(models.restarts)
        self._note(round=self._rounds, what="marts", runs=runs, restarts=restarts, differences=differences)
        told = " ".join(f"{state}={count}" for state, count in sorted(runs.items()))
        return self._verdict(
            f"marts {self._rounds}: runs {told}, processes restarted={sum(restarts.values())}", differences
        )

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
        told = " ".join(f"{name}={counts[name]}" for name in ("stored", "duplicates", "dead"))
        return self._verdict(f"{what} {self._rounds}: {told}", differences)

    def _verdict(self, told: str, differences: list[str]) -> bool:
        for difference in differences:
            self._problem(difference)
        self._say(f"{self._clock()} {told}: {'DOES NOT AGREE' if differences else 'agrees'}")
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
