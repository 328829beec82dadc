"""A backup on disk: one folder with database.dump, registry.jsonl and manifest.json, which says what must be in them.

It is written under a hidden name and renamed when everything in it is on the disk: what has its final name is complete.
Only the owner may read it, for it holds personal data.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from local_servers import ServerError

DATABASE_FILE = "database.dump"
REGISTRY_FILE = "registry.jsonl"
MANIFEST_FILE = "manifest.json"
PREFIX, PARTIAL = "smart-access-", ".partial"
FORMAT = 1


class Position(msgspec.Struct, frozen=True):
    """One line of the ledger: where the consumer goes on."""

    cluster_id: str
    consumer_group: str
    topic: str
    partition: int
    next_offset: int


class Role(msgspec.Struct, frozen=True):
    """A role that the database's objects belong to or are granted to, or a login that is a member of one."""

    name: str
    can_login: bool
    settings: list[str]  # name=value
    member_of: list[str]


class DatabasePart(msgspec.Struct):
    name: str
    server_version: int
    dump_version: int
    rows: dict[str, int]  # by schema.table, of the very snapshot that was dumped
    ledger: list[Position]
    roles: list[Role]


class RegistryPart(msgspec.Struct):
    cluster_id: str
    records: dict[str, int]  # by topic


class File(msgspec.Struct):
    bytes: int
    sha256: str


class Manifest(msgspec.Struct):
    created_at: datetime
    database: DatabasePart | None = None
    registry: RegistryPart | None = None
    files: dict[str, File] = {}
    format: int = FORMAT


@contextmanager
def new_backup(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """A folder to write the files into; at the block's end it is completed and takes its final name.

    Whatever goes wrong within the block: nothing is left. Raises ServerError when `folder` is missing.
    """
    if not folder.is_dir():
        raise ServerError(f"{folder} is no folder: is the disk mounted? If it is to be a new one, make it first")
    final = final_path(folder, manifest)
    if final.exists():
        raise ServerError(f"{final} is there already: another backup of this very second")
    partial = folder / f".{final.name}{PARTIAL}"
    partial.mkdir(mode=0o700)
    try:
        yield partial
        manifest.files = {path.name: _digest(path) for path in sorted(partial.iterdir())}
        text = msgspec.json.format(msgspec.json.encode(manifest))
        (partial / MANIFEST_FILE).write_bytes(text + b"\n")
        for path in (*partial.iterdir(), partial):
            _to_disk(path)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial)
        raise
    _to_disk(folder)


def final_path(folder: Path, manifest: Manifest) -> Path:
    """Where the backup lies once it is complete."""
    return folder / f"{PREFIX}{manifest.created_at:%Y%m%dT%H%M%SZ}"


def read_manifest(backup: Path) -> Manifest:
    """Raises ServerError when this is no complete backup, or one that this version cannot read."""
    try:
        manifest = msgspec.json.decode((backup / MANIFEST_FILE).read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise ServerError(f"{backup} is no backup: it has no {MANIFEST_FILE}{_nearby(backup)}") from None
    except msgspec.MsgspecError as error:
        raise ServerError(f"{backup / MANIFEST_FILE} is damaged: {error}. Take another backup") from None
    if manifest.format != FORMAT:
        raise ServerError(f"{backup} has format {manifest.format}, this version reads {FORMAT}")
    return manifest


def _nearby(folder: Path) -> str:
    found = backups_in(folder)
    return f". The newest in it is {found[-1]}" if found else ""


def verify_files(backup: Path, manifest: Manifest) -> None:
    """Raises ServerError unless each file is what was written."""
    for name, expected in manifest.files.items():
        if not (backup / name).exists():
            raise ServerError(f"{backup / name} is missing: take another backup. Nothing was changed")
        found = _digest(backup / name)
        if found != expected:
            raise ServerError(
                f"{backup / name} is damaged: {found.bytes} bytes with sha256 {found.sha256[:12]}…, and it was"
                f" {expected.bytes} with {expected.sha256[:12]}…. Take another backup. Nothing was changed"
            )


def backups_in(folder: Path) -> list[Path]:
    """The complete ones, the oldest first."""
    return sorted(path.parent for path in folder.glob(f"{PREFIX}*/{MANIFEST_FILE}"))


def unfinished_in(folder: Path) -> list[Path]:
    """What a backup that was killed has left behind, or one that is being written now."""
    return sorted(folder.glob(f".{PREFIX}*{PARTIAL}"))


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def size(path: Path) -> int:
    """Of a file, or of all that is in a folder, in bytes."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def in_units(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _digest(path: Path) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return File(file.tell(), digest)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
