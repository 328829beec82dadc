"""Apache Kafka's jars: resolved from Maven Central by jgo, and used only if they are the committed ones, byte for byte.

kafka_jars.sha256 lists them as `sha256sum -c` reads it. jgo records digests but does not enforce them, so this does.
To move to another version: change COORDINATES, `python -m local_servers.kafka_jars > local_servers/kafka_jars.sha256`.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path

from local_servers import ServerError, state_dir
from local_servers.maven_artifact import resolved_jars, sha256_of

# Another logging binding than slf4j-simple drags in an older kafka-clients
COORDINATES = "org.apache.kafka:kafka_2.13:4.3.1+org.slf4j:slf4j-simple:1.7.36"
DIGESTS_FILE = Path(__file__).with_name("kafka_jars.sha256")

log = logging.getLogger("kafka-jars")
_verified: set[Path] = set()


def jars_folder() -> Path:
    """The folder with the verified jars; downloads them if there is none. Raises ServerError."""
    folder = state_dir() / "jars"
    if not folder.exists():
        log.info("downloading Apache Kafka (44 MB) …")
        _download(folder)
    if folder not in _verified:
        verify(folder)
        _verified.add(folder)
    return folder


def verify(folder: Path) -> None:
    """Raises ServerError unless the folder's jars are exactly those of the committed list."""
    expected = {name: digest for digest, name in map(str.split, DIGESTS_FILE.read_text().splitlines())}
    found = digests(folder)
    for verdict, names in (
        ("missing", expected.keys() - found.keys()),
        ("not in the list", found.keys() - expected.keys()),
        ("changed", {name for name in expected.keys() & found.keys() if expected[name] != found[name]}),
    ):
        if names:
            raise ServerError(
                f"Kafka's jars are not those of {DIGESTS_FILE.name}: {verdict}: {', '.join(sorted(names))}."
                f" Remove {folder} to download them again"
            )


def digests(folder: Path) -> dict[str, str]:
    return {jar.name: sha256_of(jar) for jar in sorted(folder.glob("*.jar"))}


def _download(folder: Path) -> None:
    """Fills a folder beside the final one and renames it, so that an interrupted download leaves nothing behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="jars-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "jars"
        fresh.mkdir()
        for jar in resolved_jars(COORDINATES, Path(scratch)):
            shutil.copy(jar, fresh)
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.exists():  # else another program was quicker
                raise


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "jars"
        _download(folder)
        for name, digest in digests(folder).items():
            sys.stdout.write(f"{digest}  {name}\n")


if __name__ == "__main__":
    main()
