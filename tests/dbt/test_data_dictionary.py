"""docs/data_dictionary.md is what the contracts, the tables and the models' descriptions say now."""

from __future__ import annotations

import re

import pytest

from analytics.data_dictionary import DICTIONARY, ROOT, read_manifest, text_of
from contracts import CONTRACTS


@pytest.fixture(scope="module")
def text() -> str:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DBT_SCHEMA", "marts")
        return text_of(read_manifest(ROOT / "dbt"))


def test_the_file_is_what_the_script_would_write(text: str) -> None:
    assert DICTIONARY.read_text(encoding="utf-8") == text, "stale: run scripts/data-dictionary"


def test_every_field_and_every_mart_is_in_it_with_its_columns(text: str) -> None:
    topics, marts = text.split("\n## Marts\n")
    fields = {field.name for contract in CONTRACTS.values() for field in contract.fields}
    assert {name for name in fields if f"| `{name}` |" not in topics} == set()
    files = sorted(path.stem for path in (ROOT / "dbt/models/marts").glob("*.sql"))
    assert [line.removeprefix("### marts.") for line in marts.splitlines() if line.startswith("### ")] == files
    assert "| `device_version_id` | text | yes | Version in force at event_at" in marts
    assert "See [`dim_devices`](#martsdim_devices)" in marts


def test_every_link_within_it_leads_somewhere(text: str) -> None:
    lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    headings = {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in lines}
    assert set(re.findall(r"\(#([^)]+)\)", text)) - headings == set()
    files = [target.partition("#")[0] for target in re.findall(r"\]\(([^#)][^)]*)\)", text)]
    assert [name for name in files if not (DICTIONARY.parent / name).exists()] == []
