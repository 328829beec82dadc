"""One of our scripts as a process that faults end, stop and start anew, and whose clock may step."""

from __future__ import annotations

import importlib.util
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from local_servers import ROOT, ServerError
from local_servers.daemon import Daemon


def faketime_library() -> Path | None:
    """That of the package libfaketime, found without importing it. Debian 12's is older, and breaks time.sleep."""
    spec = importlib.util.find_spec("libfaketime")
    if spec is None or spec.origin is None:
        return None
    library = Path(spec.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return library if library.exists() and platform.machine() == "x86_64" else None


STARTUP_S = 30.0  # more than an interpreter needs for its imports on a busy machine


class NotRecovered(Exception):
    """Something did not go on, or end, by itself as it should; the text says what."""


class Script:
    """command: what Python is to run, asked at each start. prefix: what starts it elsewhere than here."""

    def __init__(
        self,
        name: str,
        folder: Path,
        command: Callable[[], list[str]],
        environment: dict[str, str],
        prefix: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.daemon = Daemon(name, folder, folder / f"{name}.log")
        self._folder = folder
        self._command = command
        self._prefix = prefix
        self._environment = environment
        self._is_to_run = False

    @property
    def _clock_file(self) -> Path:
        return self._folder / f"{self.name}.clock"

    def give_clock(self, library: Path) -> None:
        """From its next start on it reads the time of day from a file; what measures durations stays the machine's."""
        self.set_clock(0)
        self._environment |= {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock_file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        }

    def set_clock(self, ahead_s: int) -> None:
        fresh = self._clock_file.with_suffix(".new")
        fresh.write_text(f"{ahead_s:+d}\n")
        fresh.replace(self._clock_file)

    def start(self) -> None:
        self.daemon.start([*self._prefix, sys.executable, *self._command()], self._environment, cwd=ROOT)
        self._is_to_run = True

    def kill(self) -> None:
        pid = self.daemon.pid
        self._is_to_run = False
        self.daemon.kill()
        for left in Path("/dev/shm").glob(f"*faketime_*_{pid}"):  # noqa: S108 - by libfaketime, of one that was killed
            left.unlink()

    def stop(self) -> None:
        """SIGTERM. Raises NotRecovered unless it ends well, and in time."""
        self._is_to_run = False
        try:
            self.daemon.wait_until(self._takes_sigterm, STARTUP_S)
        except ServerError as error:
            raise NotRecovered(str(error)) from None
        in_time = self.daemon.stop(timeout_s=90)
        code = self.daemon.exit_code()
        if not in_time or code != 0:
            raise NotRecovered(f"{self.name} did not end well at SIGTERM: exit code {code}. {self.tail()}")

    def _takes_sigterm(self) -> bool:
        """Whether it would not just die of it, as one that was only just started (Linux tells; elsewhere: yes)."""
        status = Path(f"/proc/{self.daemon.pid}/status")
        if not status.exists():
            return True
        caught = int(status.read_text().split("SigCgt:")[1].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def restart_if_ended(self) -> str | None:
        """What is to be said of a script that ended by itself, and runs again now; None of one that runs."""
        if not self._is_to_run or self.daemon.is_running():
            return None
        said = f"{self.name} ended by itself, exit code {self.daemon.exit_code()}. {self.tail()}"
        self.start()
        return said

    def tail(self) -> str:
        return self.daemon.log_tail().strip()
