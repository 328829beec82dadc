"""One background process with a pid file and a log: what every server here is.

It runs in a session of its own, so a terminal's Ctrl+C reaches only the program that started it, which then ends its
servers in order. It outlives its starter; another program finds it by the pid file.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from local_servers import ServerError

LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 100_000  # Kafka's last words, with the stack of each exception, take a third of it
ERROR_LINE = re.compile(r"\b(ERROR|FATAL|CRITICAL)\b")
# A process's start as the kernel tells it moves with the clock by a little; a pid is not used again within a minute.
SAME_START_S = 60.0
LOG_LIMIT_BYTES = 50_000_000


class Daemon:
    """A named process. `folder` holds NAME.pid, `log_file` what the process prints."""

    def __init__(self, name: str, folder: Path, log_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self._pid_file = folder / f"{name}.pid"
        # Of a process that this program started: it must be waited for, or it stays a zombie
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0  # where in the log this start's lines begin

    def start(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None, **popen: Any) -> None:
        """Starts the command; `env` is added to this program's environment, `popen` goes to subprocess.Popen."""
        if self.is_running():
            raise ServerError(f"{self.name} runs already (pid {self.pid})")
        for folder in (self._pid_file.parent, self.log_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_LIMIT_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".old.log"))
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._child = subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **popen,
            )
        self._pid_file.write_text(f"{self._child.pid} {psutil.Process(self._child.pid).create_time()}\n")

    @property
    def pid(self) -> int | None:
        process = self.process()
        return process.pid if process else None

    def process(self) -> psutil.Process | None:
        """The running process, or None: neither a zombie nor another process that got the same pid."""
        if self._child is not None:
            self._child.poll()
        try:
            pid, started = self._pid_file.read_text().split()
            process = psutil.Process(int(pid))
            same = abs(process.create_time() - float(started)) <= SAME_START_S
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process if same and _is_alive(process) else None

    def is_running(self) -> bool:
        return self.process() is not None

    def wait(self) -> int:
        """Of a process that this program started: waits for its end; its exit code."""
        if self._child is None:
            raise ServerError(f"{self.name} was not started here")
        code = self._child.wait()
        self._forget()
        return code

    def exit_code(self) -> int | None:
        """Of a process that this program started and that has ended."""
        return self._child.poll() if self._child is not None else None

    def send(self, number: signal.Signals) -> None:
        process = self.process()
        if process is not None:
            process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 30) -> bool:
        """Asks the process to end and waits; kills it, and its children, at the deadline. True: it ended by itself."""
        process = self.process()
        ended = True
        if process is not None:
            children = process.children(recursive=True)
            process.send_signal(number)
            ended = self._wait_gone(process, timeout_s)
            if not ended:
                process.kill()
                self._wait_gone(process, 10)
            _end_orphans(children)
        self._forget()
        return ended

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        process = self.process()
        if process is not None:
            process.kill()
            self._wait_gone(process, 10)
        self._forget()

    def _wait_gone(self, process: psutil.Process, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not _is_alive(process):
                return True
            time.sleep(0.02)
        return False

    def _forget(self) -> None:
        if self._child is not None:
            # Java looks like a zombie while its last threads end: only after this it has gone
            self._child.wait(timeout=10)
        self._pid_file.unlink(missing_ok=True)

    def wait_until(self, ready: Callable[[], bool], timeout_s: float, interval_s: float = 0.05) -> None:
        """Polls until ready() holds. If the process ends or time runs out: stops it, ServerError with its log's end."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.is_running():
                self._forget()
                raise ServerError(f"{self.name} ended while starting.{self.log_tail()}")
            if time.monotonic() > deadline:
                self.stop()
                raise ServerError(f"{self.name} is not ready after {timeout_s:.0f} s.{self.log_tail()}")
            time.sleep(interval_s)

    def log_tail(self) -> str:
        """The log's last lines, introduced, and before them the first that tells of an error: a server that cannot go
        on has much to say of how it ends. Empty if there is no log."""
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        before, tail = lines[:-LOG_TAIL_LINES], lines[-LOG_TAIL_LINES:]
        first = next((number for number, line in enumerate(before) if ERROR_LINE.search(line)), len(before))
        error = before[first : first + 2]  # Java says which exception in the line after it
        introduction = f" The {'error and the ' if error else ''}end of {self.log_file}:"
        return "\n".join([introduction, *("  " + line for line in error + tail)])


def _end_orphans(children: list[psutil.Process]) -> None:
    """Workers that outlive their parent would keep its port."""
    for number, patience_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
        for child in filter(_is_alive, children):
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)
        deadline = time.monotonic() + patience_s
        while any(map(_is_alive, children)) and time.monotonic() < deadline:
            time.sleep(0.02)


def _is_alive(process: psutil.Process) -> bool:
    """A zombie is not: it waits for a parent that reaps it, for ever where PID 1 does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
