"""A file from Maven Central is used only if it is the one whose digest is committed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from local_servers import ServerError
from local_servers.maven_artifact import verified_artifact

CONTENT = b"the tested bytes"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STACK_DIR", str(tmp_path))
    (tmp_path / "maven").mkdir()
    return tmp_path / "maven"


@pytest.mark.parametrize(
    ("coordinates", "name"),
    [
        ("org.example:agent:1.0", "agent-1.0.jar"),
        ("org.example:agent:war:1.0", "agent-1.0.war"),
        ("org.example:agent:tar.gz:all:1.0", "agent-1.0-all.tar.gz"),
    ],
)
def test_a_file_that_is_there_is_taken(kept: Path, coordinates: str, name: str) -> None:
    (kept / name).write_bytes(CONTENT)
    assert verified_artifact(coordinates, DIGEST) == kept / name


def test_a_file_that_has_changed_is_refused(kept: Path) -> None:
    (kept / "agent-1.0.jar").write_bytes(CONTENT + b"!")
    with pytest.raises(ServerError, match=r"is not the file that was tested: .* Remove .*agent-1\.0\.jar"):
        verified_artifact("org.example:agent:1.0", DIGEST)
