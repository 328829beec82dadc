"""How fast a system fills raw_access_events, and what it and PostgreSQL spend on that."""

from __future__ import annotations

import subprocess
import time
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psutil
import psycopg2
from preloaded_topic import peak_memory
from systems import Place, System

from local_servers import ServerError
from local_servers.postgres_server import PostgresServer

STALLED_S = 1.0
PATIENCE_S = 120.0  # until the first row, and for every further one


class Failed(Exception):
    """A system that could not do it; its own words."""


# What a system that goes wrong, or is gone, may bring about in whoever watches it
TROUBLE = (Failed, ServerError, OSError, psutil.Error, psycopg2.Error, subprocess.SubprocessError)


class Sample(NamedTuple):
    """What there is, and CPU seconds spent since the start, at one moment."""

    at: float
    size: int  # of the table, bytes: the one measure of progress that costs PostgreSQL nothing
    process_cpu: float
    postgres_cpu: float


class Meter:
    def __init__(self, connection: Any, postgres: PostgresServer) -> None:
        self._connection = connection
        lines = (postgres.data_dir / "postmaster.pid").read_text().splitlines()
        self._postmaster = psutil.Process(int(lines[0]))

    def ask(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(query, parameters)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def rows(self) -> int:
        return int(self.ask("SELECT count(*) FROM raw_access_events")[0][0])

    def size(self) -> int:
        return int(self.ask("SELECT pg_relation_size('raw_access_events')")[0][0])

    def postgres_cpu(self) -> float:
        """Of all of its processes, those that have ended included."""
        own = self._postmaster.cpu_times()
        spent = own.user + own.system + own.children_user + own.children_system
        for child in self._postmaster.children():
            try:
                times = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            spent += times.user + times.system
        return spent

    def sample(self, processes: list[psutil.Process]) -> Sample:
        own = 0.0
        for process in processes:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            own += times.user + times.system
        return Sample(time.perf_counter(), self.size(), own, self.postgres_cpu())

    def measure(self, system: System, place: Place, total: int, seconds: float) -> dict[str, float]:
        """Starts the system on an emptied table; ends it when `total` rows are there, or so long after the first.

        Raises Failed.
        """
        try:
            system.start(place)
            samples, memory = self._watch(system, total, seconds)
        finally:
            system.stop()
        return self._figures(samples) | {"memory": memory}

    def _watch(self, system: System, total: int, seconds: float) -> tuple[list[Sample], float]:
        """A sample before the first growth, all after it until the last growth, and one more."""
        processes = system.processes()
        samples = [self.sample(processes)]
        grown_at = samples[0].at
        while True:
            time.sleep(0.1)
            sample = self.sample(processes)
            if sample.size > samples[-1].size:
                samples.append(sample)
                grown_at = sample.at
                if len(samples) > 2 and sample.at - samples[1].at > seconds:
                    break
            elif len(samples) == 1:
                samples[0] = sample
            if sample.at - grown_at < STALLED_S:
                continue
            if trouble := system.failure():
                raise Failed(trouble)
            if len(samples) > 1 and self.rows() >= total:
                break
            if sample.at - grown_at > PATIENCE_S:
                raise Failed(f"no row for {PATIENCE_S:.0f} s; {self.rows():,} of {total:,} are there")
        return samples, sum(peak_memory(process.pid) for process in processes if process.is_running())

    def _figures(self, samples: list[Sample]) -> dict[str, float]:
        transactions = self.ask("SELECT ingested_at, count(*) FROM raw_access_events GROUP BY 1 ORDER BY 1")
        if len(transactions) < 3:
            raise Failed(f"{len(transactions)} transactions are too few for a rate")
        first, last = transactions[0][0], transactions[-1][0]
        middle = first + (last - first) / 2
        rows = sum(count for _, count in transactions)
        begun, ended = samples[1], samples[-1]
        # by the share of the table's size, as the first growth may be of one large transaction
        millions = max(rows * (1 - begun.size / ended.size), 1) / 1e6
        return {
            "rows": rows,
            "rate": _rate(transactions, first, last),
            "second_half": _rate(transactions, min(at for at, _ in transactions if at >= middle), last),
            "cpu": (ended.process_cpu - begun.process_cpu) / millions,
            "postgres_cpu": (ended.postgres_cpu - begun.postgres_cpu) / millions,
        }


def _rate(transactions: list[tuple[datetime, int]], begin: datetime, end: datetime) -> float:
    """Rows/s of the transactions that began from `begin` on and before `end`."""
    took: timedelta = end - begin
    rows = sum(count for at, count in transactions if begin <= at < end)
    return rows / took.total_seconds() if took else float("nan")
