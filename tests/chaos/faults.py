"""Every kind of fault, and a plan of them that the seed decides alone.

A fault is a context manager: it begins, lasts for as long as the block does, and is over with everything started again.
It yields whom it befell.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from models_run import MODELS_WITHIN_S, SCHEDULER, ModelsRun
from script import Script
from stage import CONSUMERS, PRODUCER, Stage

AIRFLOW = "airflow"  # an area
Befall = Callable[[Stage, float], AbstractContextManager[str]]  # the float, from 0 to 1, picks whom
SESSIONS = "SELECT pid FROM pg_stat_activity WHERE starts_with(application_name, 'smart-access') ORDER BY pid"


@dataclass(frozen=True)
class Kind:
    """area: of two faults at once, each has another. needs: the attribute of the stage that it cannot be without."""

    area: str
    befall: Befall
    shortest_s: float = 0.2
    longest_s: float = 2.0
    needs: str = ""


@dataclass(frozen=True)
class Planned:
    kind: str
    pick: float
    hold_s: float


def _one(choices: list[Any], pick: float) -> Any:
    return choices[min(int(pick * len(choices)), len(choices) - 1)]


@contextmanager
def _killed(scripts: list[Script]) -> Iterator[str]:
    for script in scripts:
        script.kill()
    yield "+".join(script.name for script in scripts)
    for script in scripts:
        script.start()


@contextmanager
def _stopped(script: Script) -> Iterator[str]:
    script.stop()
    yield script.name
    script.start()


@contextmanager
def _paused(script: Script) -> Iterator[str]:
    script.daemon.send(signal.SIGSTOP)
    yield script.name
    script.daemon.send(signal.SIGCONT)


@contextmanager
def _clock_stepped(script: Script, pick: float) -> Iterator[str]:
    """Up to ten minutes ahead or behind, and back."""
    ahead_s = round((pick * 7919 % 1 - 0.5) * 1200)
    script.set_clock(ahead_s)
    yield f"{script.name}{ahead_s:+d}s"
    script.set_clock(0)


@contextmanager
def _server_down(server: Any, end: Callable[[], None]) -> Iterator[str]:
    end()
    yield type(server).__name__
    server.start()


@contextmanager
def _kafka_paused(stage: Stage, _: float) -> Iterator[str]:
    stage.broker.pause()
    yield type(stage.broker).__name__
    stage.broker.resume()


@contextmanager
def _sessions_ended(stage: Stage, _: float) -> Iterator[str]:
    ended = stage.rows(f"SELECT count(pg_terminate_backend(pid)) FROM ({SESSIONS}) AS s")  # noqa: S608 - our own
    yield f"{ended[0][0]} sessions"


@contextmanager
def _session_killed(stage: Stage, pick: float) -> Iterator[str]:
    """PostgreSQL ends all sessions when one of them crashes, and recovers by itself."""
    pids = [pid for (pid,) in stage.rows(SESSIONS)]
    if pids:
        os.kill(_one(pids, pick), signal.SIGKILL)
    yield "one session" if pids else "no session"


@contextmanager
def _disk_full(stage: Stage, _: float) -> Iterator[str]:
    assert stage.disk is not None
    with stage.disk.full():
        yield "tables"


@contextmanager
def _link_fault(what: str, links: list[str], stage: Stage, pick: float) -> Iterator[str]:
    link = _one(links, pick)
    with getattr(stage.proxy, what)(link):
        yield link


@contextmanager
def _scheduler_killed(stage: Stage, _: float) -> Iterator[str]:
    """With the tasks that it has started, as a container's end would end them."""
    models = _models(stage)
    models.kill(SCHEDULER)
    yield SCHEDULER
    models.restart_ended()


@contextmanager
def _dbt_killed(stage: Stage, _: float) -> Iterator[str]:
    stage.wait(_models(stage).kill_dbt, "no run of dbt is there to be killed", MODELS_WITHIN_S)
    yield "dbt"


@contextmanager
def _airflow_restarted(stage: Stage, _: float) -> Iterator[str]:
    services = _models(stage).services
    services.stop()
    yield "airflow"
    services.start()


@contextmanager
def _airflow_paused(stage: Stage, _: float) -> Iterator[str]:
    paused = []
    for process in _models(stage).processes():
        process.suspend()
        paused.append(process)
    yield f"airflow, {len(paused)} processes"
    for process in paused:
        process.resume()


def _models(stage: Stage) -> ModelsRun:
    assert stage.models is not None
    return stage.models


def _consumer(stage: Stage, pick: float) -> Script:
    script: Script = _one(stage.consumers, pick)
    return script


PROCESS_FAULTS = {
    "consumer killed": Kind("consumer", lambda stage, pick: _killed([_consumer(stage, pick)])),
    "consumers killed": Kind("consumer", lambda stage, _: _killed(stage.consumers)),
    "consumer stopped": Kind("consumer", lambda stage, pick: _stopped(_consumer(stage, pick))),
    # up to longer than the session lasts: it wakes up as one that was replaced
    "consumer paused": Kind("consumer", lambda stage, pick: _paused(_consumer(stage, pick)), 0.5, 9.0),
    "consumer clock step": Kind(
        "consumer", lambda stage, pick: _clock_stepped(_consumer(stage, pick), pick), 1.5, 3.0, "has_clocks"
    ),
    "producer killed": Kind("producer", lambda stage, _: _killed([stage.producer])),
    "producer stopped": Kind("producer", lambda stage, _: _stopped(stage.producer)),
    "producer paused": Kind("producer", lambda stage, _: _paused(stage.producer), 0.5, 4.0),
    "producer clock step": Kind(
        "producer", lambda stage, pick: _clock_stepped(stage.producer, pick), 1.5, 3.0, "has_clocks"
    ),
}
SERVER_FAULTS = {
    "Kafka killed": Kind("kafka", lambda stage, _: _server_down(stage.broker, stage.broker.kill)),
    "Kafka restarted": Kind("kafka", lambda stage, _: _server_down(stage.broker, stage.broker.stop)),
    "Kafka paused": Kind("kafka", _kafka_paused, 0.5, 4.0),
    "PostgreSQL killed": Kind("postgres", lambda stage, _: _server_down(stage.postgres, stage.postgres.kill)),
    "PostgreSQL restarted": Kind("postgres", lambda stage, _: _server_down(stage.postgres, stage.postgres.stop)),
    "PostgreSQL stopped at once": Kind(
        "postgres", lambda stage, _: _server_down(stage.postgres, partial(stage.postgres.stop, "immediate"))
    ),
    "PostgreSQL session killed": Kind("postgres", _session_killed, 0, 0.5),
    "PostgreSQL sessions ended": Kind("postgres", _sessions_ended, 0, 0.5),
    "disk full": Kind("postgres", _disk_full, 1.5, 4.0, "disk"),
}
LINKS = {
    "consumer-Kafka": [f"{name}-kafka" for name in CONSUMERS],
    "consumer-PostgreSQL": [f"{name}-postgres" for name in CONSUMERS],
    "producer-Kafka": [f"{PRODUCER}-kafka"],
}
LINK_FAULTS = {
    f"{link} {what.replace('_', '-')}": Kind("link", partial(_link_fault, what, names), 0.3, 4.0, "proxy")
    for link, names in LINKS.items()
    for what in ("cut", "delayed", "reset", "half_open")
}
AIRFLOW_FAULTS = {
    "Airflow scheduler killed": Kind(AIRFLOW, _scheduler_killed, needs="models"),
    "Airflow restarted": Kind(AIRFLOW, _airflow_restarted, needs="models"),
    # up to longer than a task's heartbeat may be missing
    "Airflow paused": Kind(AIRFLOW, _airflow_paused, 1.0, 60.0, "models"),
    "Airflow task killed": Kind(AIRFLOW, _dbt_killed, 0, 0.5, "models"),
}
KINDS = PROCESS_FAULTS | SERVER_FAULTS | LINK_FAULTS | AIRFLOW_FAULTS
# What stops in order, or waits for a run, waits for others: it cannot begin while they are kept away
NOT_WITHIN = {"consumer stopped", "producer stopped", "Airflow restarted", "Airflow task killed"}
SHARE_OF_PAIRS = 0.15


def kinds_to_be_had(stage: Stage) -> list[str]:
    return [name for name, kind in KINDS.items() if not kind.needs or getattr(stage, kind.needs)]


def plan(kinds: list[str], seed: int) -> Iterator[list[Planned]]:
    """Without end: one fault, or now and then two of which the second begins while the first lasts.

    Each kind comes once before any comes again.
    """
    drawn = random.Random(seed)
    bag: list[str] = []
    while True:
        bag = bag or drawn.sample(kinds, len(kinds))
        chosen = [bag.pop()]
        elsewhere = [kind for kind in bag if KINDS[kind].area != KINDS[chosen[0]].area and kind not in NOT_WITHIN]
        if elsewhere and drawn.random() < SHARE_OF_PAIRS:
            chosen.append(elsewhere[-1])
            bag.remove(elsewhere[-1])
        yield [
            Planned(kind, drawn.random(), drawn.uniform(KINDS[kind].shortest_s, KINDS[kind].longest_s))
            for kind in chosen
        ]
