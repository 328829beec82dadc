"""A disk that can be full: a tmpfs for PostgreSQL's tables, made smaller than what it holds plus nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOMY = "8g"  # of memory, and only as much as the tables take
SLACK = 256 * 1024
UNAVAILABLE = "disk full needs root on Linux, to mount a tmpfs"


def can_mount() -> bool:
    """Whether this user may mount a tmpfs here: a container's root often may not."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        return False
    with tempfile.TemporaryDirectory(prefix="smart-access-") as place:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, check=False)
        if mounted.returncode == 0:
            subprocess.run(["umount", place], check=True)
    return mounted.returncode == 0


class SmallDisk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, owner: int) -> None:
        """owner: the uid of the account that PostgreSQL runs as."""
        self.folder.mkdir()
        options = f"size={ROOMY},mode=0700,uid={owner}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder], check=True)

    def unmount(self, keep: bool) -> None:
        """keep: what is on it stays in its place, on the disk beneath."""
        if not self.folder.is_mount():
            return
        kept = self.folder.with_name("kept")
        if keep:
            subprocess.run(["cp", "-a", self.folder, kept], check=True)
        subprocess.run(["umount", self.folder], check=True)
        self.folder.rmdir()
        if keep:
            kept.rename(self.folder)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte is free within the block."""
        used = shutil.disk_usage(self.folder).used
        self._resize(str(used + SLACK))
        ballast = self.folder / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):  # "no space left on device" is what is wanted
            while file.write(bytes(4096)):
                pass
        yield
        self._resize(ROOMY)
        ballast.unlink()

    def _resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.folder], check=True)
