"""What every model keeps to, read from dbt's manifest; and for each rule a copy of the project that breaks it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analytics.data_dictionary import models_in, primary_key, read_manifest
from dashboard_queries import HOURS_OF_DEVICES, HOURS_OF_THE_FLEET
from pipeline_settings import ROOT

Manifest = dict[str, Any]
Rule = Callable[[Manifest], Iterator[str]]

PREFIXES = {"staging": ("stg_",), "intermediate": ("int_",), "marts": ("dim_", "fct_", "rpt_")}
GRAIN = "One row per "


def models(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Each model with its folder."""
    for folder in PREFIXES:
        for model in models_in(manifest, folder):
            yield folder, model


def snapshots(manifest: Manifest) -> list[Manifest]:
    return [node for node in manifest["nodes"].values() if node["resource_type"] == "snapshot"]


def every_model_lies_in_a_folder_of_its_kind(manifest: Manifest) -> Iterator[str]:
    known = {model["name"] for _, model in models(manifest)}
    for node in manifest["nodes"].values():
        if node["resource_type"] == "model" and node["name"] not in known:
            yield f"{node['original_file_path']} is in none of {', '.join(PREFIXES)}"
    for folder, model in models(manifest):
        if not model["name"].startswith(PREFIXES[folder]):
            yield f"{model['name']} in {folder} has another prefix than {', '.join(PREFIXES[folder])}"


def every_model_is_built_into_the_schema_of_its_folder(manifest: Manifest) -> Iterator[str]:
    for folder, model in models(manifest):
        if model["schema"] != folder:
            yield f"{model['name']} goes to {model['schema']}, not to {folder}"
    for snapshot in snapshots(manifest):
        if snapshot["schema"] != "snapshots":
            yield f"{snapshot['name']} goes to {snapshot['schema']}, not to snapshots"


def only_staging_models_read_the_raw_tables(manifest: Manifest) -> Iterator[str]:
    for node in [*(model for _, model in models(manifest)), *snapshots(manifest)]:
        for above in node["depends_on"]["nodes"]:
            if above.startswith("source.") != node["name"].startswith("stg_"):
                yield f"{node['name']} reads {above}"
    # what ref() and source() do not show: a table by its name
    tables = [source["identifier"] for source in manifest["sources"].values()]
    for node in [*(model for _, model in models(manifest)), *snapshots(manifest)]:
        code = re.sub(r"\{\{ *source\(.*?\) *\}\}|--.*", "", node["raw_code"])
        for table in tables:
            if re.search(rf"\b{table}\b", code):
                yield f"{node['name']} names {table} without source()"


def snapshots_read_staging_models_only(manifest: Manifest) -> Iterator[str]:
    for snapshot in snapshots(manifest):
        for above in snapshot["depends_on"]["nodes"]:
            if not above.rpartition(".")[2].startswith("stg_"):
                yield f"{snapshot['name']} reads {above}"


def every_model_source_and_snapshot_begins_with_its_grain(manifest: Manifest) -> Iterator[str]:
    for node in [*(model for _, model in models(manifest)), *snapshots(manifest), *manifest["sources"].values()]:
        if not node["description"].startswith(GRAIN):
            yield f"{node['name']} does not begin with {GRAIN!r}"


def every_column_has_a_type_and_a_description(manifest: Manifest) -> Iterator[str]:
    for _, model in models(manifest):
        if not model["columns"]:
            yield f"{model['name']} declares no column"
        for column in model["columns"].values():
            for what in ("data_type", "description"):
                if not (column[what] or "").strip():
                    yield f"{model['name']}.{column['name']} has no {what}"


def every_model_has_an_enforced_contract(manifest: Manifest) -> Iterator[str]:
    """So its declared columns are all that it has, in their order."""
    for _, model in models(manifest):
        if not model["config"]["contract"]["enforced"]:
            yield f"{model['name']} has no enforced contract"


def every_mart_has_a_primary_key_that_is_checked(manifest: Manifest) -> Iterator[str]:
    for mart in models_in(manifest, "marts"):
        if not primary_key(manifest, mart):
            yield f"{mart['name']} has neither a primary key nor a unique test"


def marts_read_by(page: str) -> set[str]:
    """Those that it names itself, and those of the fragments that it uses."""
    shared = (*HOURS_OF_THE_FLEET.items(), *HOURS_OF_DEVICES.items())
    texts = [page, *(text for name, text in shared if f"FROM {name}" in page)]
    return {mart for text in texts for mart in re.findall(r"\bmarts\.(\w+)", text)}


def every_page_is_an_exposure_of_the_marts_that_it_reads(manifest: Manifest) -> Iterator[str]:
    named = set()
    for exposure in manifest["exposures"].values():
        files = re.findall(r"analytics/[\w/]+\.py", exposure["description"])
        if len(files) != 1 or not (ROOT / files[0]).is_file():
            yield f"{exposure['name']} does not name the file of the dashboard that it is"
            continue
        named.add(files[0])
        declared = {above.rpartition(".")[2] for above in exposure["depends_on"]["nodes"]}
        read = marts_read_by((ROOT / files[0]).read_text(encoding="utf-8"))
        for name in sorted(read - declared):
            yield f"{files[0]} reads {name}, and its exposure does not say so"
        for name in sorted(declared - read):
            yield f"the exposure of {files[0]} names {name}, which it does not read"
    for path in sorted((ROOT / "analytics").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if "FROM marts." in path.read_text(encoding="utf-8") and name not in named:
            yield f"{name} reads marts and is no exposure"


def every_relation_is_in_the_selector_that_airflow_builds(manifest: Manifest) -> Iterator[str]:
    types = {each["value"] for each in manifest["selectors"]["models"]["definition"]["union"]}
    for node in manifest["nodes"].values():
        if node["resource_type"] in ("model", "snapshot", "seed") and node["resource_type"] not in types:
            yield f"{node['name']} is a {node['resource_type']}: the selector `models` leaves it out"


RULES: list[Rule] = [
    every_model_lies_in_a_folder_of_its_kind,
    every_model_is_built_into_the_schema_of_its_folder,
    only_staging_models_read_the_raw_tables,
    snapshots_read_staging_models_only,
    every_model_source_and_snapshot_begins_with_its_grain,
    every_column_has_a_type_and_a_description,
    every_model_has_an_enforced_contract,
    every_mart_has_a_primary_key_that_is_checked,
    every_page_is_an_exposure_of_the_marts_that_it_reads,
    every_relation_is_in_the_selector_that_airflow_builds,
]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DBT_SCHEMA", "marts")
        return read_manifest(ROOT / "dbt")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_convention(rule: Rule, manifest: Manifest) -> None:
    assert list(rule(manifest)) == []


# rule, what it must say, file, what is replaced there (the first one), and by what; all in one copy
BREAKS: list[tuple[Rule, str, str, str, str]] = [
    (
        every_model_lies_in_a_folder_of_its_kind,
        "devices_by_type in marts has another prefix",
        "models/marts/devices_by_type.sql",
        "",
        "select 1 as one",
    ),
    (
        every_model_lies_in_a_folder_of_its_kind,
        "loose.sql is in none of",
        "models/loose.sql",
        "",
        "select 1 as one",
    ),
    (
        every_model_is_built_into_the_schema_of_its_folder,
        "stg_access_events goes to marts, not to staging",
        "dbt_project.yml",
        "      +schema: staging\n",
        "",
    ),
    (
        every_model_is_built_into_the_schema_of_its_folder,
        "devices_history goes to marts, not to snapshots",
        "snapshots/devices_history.sql",
        "schema='snapshots',",
        "",
    ),
    (
        only_staging_models_read_the_raw_tables,
        "fct_anomalies reads source.smart_access.raw.raw_devices",
        "models/marts/fct_anomalies.sql",
        "ref('int_failed_bursts')",
        "source('raw', 'raw_devices')",
    ),
    (
        only_staging_models_read_the_raw_tables,
        "fct_anomalies names raw_devices without source()",
        "models/marts/fct_anomalies.sql",
        "{{ ref('int_flapping') }}",
        "public.raw_devices",
    ),
    (
        only_staging_models_read_the_raw_tables,
        "stg_devices reads model.smart_access.stg_households",
        "models/staging/stg_devices.sql",
        "source('raw', 'raw_devices')",
        "ref('stg_households')",
    ),
    (
        snapshots_read_staging_models_only,
        "devices_history reads model.smart_access.int_device_activity",
        "snapshots/devices_history.sql",
        "ref('stg_devices')",
        "ref('int_device_activity')",
    ),
    (
        every_model_source_and_snapshot_begins_with_its_grain,
        "stg_devices does not begin with 'One row per '",
        "models/staging/stg_devices.yml",
        "One row per device",
        "Devices",
    ),
    (
        every_model_source_and_snapshot_begins_with_its_grain,
        "raw_devices does not begin with",
        "models/staging/_sources.yml",
        "One row per device, ",
        "Devices, ",
    ),
    (
        every_column_has_a_type_and_a_description,
        "stg_devices.device_id has no description",
        "models/staging/stg_devices.yml",
        "        description: The device.\n",
        "",
    ),
    (
        every_column_has_a_type_and_a_description,
        "stg_bare declares no column",
        "models/staging/stg_bare.sql",
        "",
        "select 1 as one",
    ),
    (
        every_model_has_an_enforced_contract,
        "stg_devices has no enforced contract",
        "dbt_project.yml",
        "    +contract: {enforced: true}\n",
        "",
    ),
    (
        every_mart_has_a_primary_key_that_is_checked,
        "dim_households has neither a primary key nor a unique test",
        "models/marts/dim_households.yml",
        "type: primary_key",
        "type: unique",
    ),
    (
        every_mart_has_a_primary_key_that_is_checked,
        "fct_anomalies has neither a primary key nor a unique test",
        "models/marts/fct_anomalies.yml",
        "          - unique\n",
        "",
    ),
    (
        every_page_is_an_exposure_of_the_marts_that_it_reads,
        "analytics/dashboard_pages/access.py reads dim_devices, and its exposure does not say so",
        "models/marts/_exposures.yml",
        "      - ref('dim_devices')\n",
        "",
    ),
    (
        every_page_is_an_exposure_of_the_marts_that_it_reads,
        "overview_page does not name the file of the dashboard that it is",
        "models/marts/_exposures.yml",
        "analytics/dashboard_pages/overview.py",
        "analytics/dashboard_pages/gone.py",
    ),
    (
        every_relation_is_in_the_selector_that_airflow_builds,
        "devices_history is a snapshot: the selector `models` leaves it out",
        "selectors.yml",
        "value: snapshot",
        "value: seed",
    ),
]


def broken(folder: Path, breaks: list[tuple[Rule, str, str, str, str]]) -> Manifest:
    copy = folder / "dbt"
    shutil.copytree(ROOT / "dbt", copy, ignore=shutil.ignore_patterns("target", "logs"))
    for *_, file, old, new in breaks:
        text = (copy / file).read_text(encoding="utf-8") if old else ""
        assert old in text
        (copy / file).write_text(text.replace(old, new, 1) if old else new, encoding="utf-8")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DBT_SCHEMA", "marts")
        return read_manifest(copy)


@pytest.fixture(scope="module")
def breached(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return broken(tmp_path_factory.mktemp("breached"), BREAKS)


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule for rule, *_ in BREAKS} == set(RULES)


@pytest.mark.parametrize(("rule", "said"), [(rule, said) for rule, said, *_ in BREAKS])
def test_a_breach_is_found(rule: Rule, said: str, breached: Manifest) -> None:
    found = list(rule(breached))
    assert any(said in breach for breach in found), found


def test_a_page_without_an_exposure_is_found(tmp_path: Path) -> None:
    rule = every_page_is_an_exposure_of_the_marts_that_it_reads
    edit = (
        rule,
        "",
        "models/marts/_exposures.yml",
        "analytics/dashboard_pages/access.py",
        "analytics/dashboard_pages/devices.py",
    )
    assert "analytics/dashboard_pages/access.py reads marts and is no exposure" in list(rule(broken(tmp_path, [edit])))
