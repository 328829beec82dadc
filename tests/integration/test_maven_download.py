"""One small file from Maven Central itself: kept if it is the expected one, and no trace of it if it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from local_servers import ServerError
from local_servers.kafka_jars import DIGESTS_FILE
from local_servers.maven_artifact import sha256_of, verified_artifact

COORDINATES = "org.slf4j:slf4j-api:1.7.36"  # 41 kB, and one of Kafka's
DIGESTS = {name: digest for digest, name in map(str.split, DIGESTS_FILE.read_text().splitlines())}


def download(digest: str, coordinates: str = COORDINATES) -> Path:
    try:
        return verified_artifact(coordinates, digest)
    except ServerError as error:
        if isinstance(error.__cause__, requests.ConnectionError | requests.Timeout):
            pytest.skip(f"Maven Central cannot be reached: {error}")
        raise


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STACK_DIR", str(tmp_path))
    return tmp_path


def test_the_expected_file_is_kept(state: Path) -> None:
    kept = download(DIGESTS["slf4j-api-1.7.36.jar"])
    assert sha256_of(kept) == DIGESTS["slf4j-api-1.7.36.jar"]
    assert list(state.rglob("*")) == [kept.parent, kept]


def test_another_file_is_refused_and_leaves_nothing(state: Path) -> None:
    with pytest.raises(ServerError, match=r"is not the file that was tested: .* That is what Maven Central has given"):
        download("0" * 64)
    assert [path for path in state.rglob("*") if path.is_file()] == []


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(ServerError, match=r"cannot download org\.slf4j:slf4j-api:0\.0\.0 from Maven Central"):
        download("0" * 64, "org.slf4j:slf4j-api:0.0.0")
