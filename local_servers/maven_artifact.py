"""Files of Maven Central: downloaded by jgo once, and used only if they are the expected ones, byte for byte.

jgo compares what it downloads with the digest that the same server gives, which proves only that nothing broke on the
way. The digests committed here say that it is the file we tested with.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from pathlib import Path
from typing import Any

from local_servers import ServerError, state_dir

log = logging.getLogger("maven")

TIMEOUT_S = 60


def verified_artifact(coordinates: str, sha256: str) -> Path:
    """The file, kept in STACK_DIR; downloaded if it is not there yet. Raises ServerError.

    coordinates: as Maven writes them, group:name[:packaging[:classifier]]:version; without packaging a jar.
    """
    folder = state_dir() / "maven"
    group, name, *kind, version = coordinates.split(":")
    packaging, classifier = [*kind, "", ""][:2]
    kept = folder / f"{name}-{version}{classifier and '-'}{classifier}.{packaging or 'jar'}"
    if kept.exists():
        _verify(kept, sha256, f"Remove {kept} to download it again")
        return kept
    log.info("downloading %s from Maven Central …", coordinates)
    folder.mkdir(parents=True, exist_ok=True)
    # beside its place and then renamed, so that a download that was interrupted or is a wrong one leaves nothing behind
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
        component = maven_context(Path(scratch)).project(group, name).at_version(version)
        try:
            fresh: Path = component.artifact(classifier, packaging or "jar").resolve()
        except (OSError, RuntimeError) as error:
            raise ServerError(f"cannot download {coordinates} from Maven Central: {error}") from error
        _verify(fresh, sha256, "That is what Maven Central has given")
        fresh.replace(kept)
    return kept


def resolved_jars(coordinates: str, scratch: Path) -> list[Path]:
    """Everything that runs of these, with what they depend on, downloaded into the folder. Raises ServerError.

    coordinates: group:name:version, several joined by +.
    """
    # Imported here: only a first start needs it
    from jgo.env import EnvironmentBuilder, LinkStrategy

    context = maven_context(scratch)
    builder = EnvironmentBuilder(context=context, cache_dir=scratch / "envs", link_strategy=LinkStrategy.COPY)
    try:
        environment = builder.from_endpoint(coordinates)
    except (OSError, RuntimeError) as error:
        raise ServerError(f"cannot download {coordinates} from Maven Central: {error}") from error
    return list(environment.all_jars)


def maven_context(scratch: Path) -> Any:
    """jgo's access to Maven Central, with no part in what this machine's user may have of Maven."""
    # Imported here: only a first start needs it
    from jgo.maven import MavenContext

    return MavenContext(repo_cache=scratch / "maven", timeout=TIMEOUT_S)


def sha256_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _verify(file: Path, sha256: str, remedy: str) -> None:
    found = sha256_of(file)
    if found != sha256:
        raise ServerError(f"{file.name} is not the file that was tested: its sha256 is {found}, not {sha256}. {remedy}")
