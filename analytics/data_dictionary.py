"""Writes docs/data_dictionary.md from what is declared elsewhere: python -m analytics.data_dictionary

Topics and their tables from streaming/contracts.py and streaming/sql/schema.sql; the models from dbt's manifest, which
`dbt parse` makes without a database. The text around them stands here. A test fails when the file is not what this
would write.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill
from typing import Any

from dbt.cli.main import dbtRunner

sys.path.append(str(Path(__file__).resolve().parent.parent / "streaming"))
from contracts import CONTRACTS, Contract

ROOT = Path(__file__).resolve().parent.parent
DICTIONARY = ROOT / "docs/data_dictionary.md"
PREFIXES = {"dim": "Dimension", "fct": "Facts", "rpt": "Report"}

BEGINNING = """\
# Data dictionary

What every topic, table and mart holds. `scripts/data-dictionary` writes this file from
[streaming/contracts.py](../streaming/contracts.py), [streaming/sql/schema.sql](../streaming/sql/schema.sql) and the
descriptions in [dbt/models](../dbt/models): change those, then run it. All times are UTC unless a column is called
local; devices have clocks of their own, so a time by the device's clock may be wrong.

From Kafka to a page: topic → raw table (schema `public`) → staging view → marts. What a mart says of "now" is as of the
data clock, the arrival of the newest event or health report, and not of the machine's clock.
"""

AFTER_TOPICS = """\
Every raw table also has `extra` (jsonb: the record's fields that the contract does not know; NULL if none),
`kafka_partition` and `kafka_offset` (where the record was read; NULL for a row from elsewhere) and `ingested_at`
(start of the transaction that stored the row); those of events and health reports have `file_load_id` (the file that
a row came from, in `file_loads`; NULL for the stream's). How long rows stay: [retention.md](retention.md). The
registry's tables have `deleted_at` too, the time of the tombstone. The ledger, its minutes and the dead letters are
told of in the [README](../README.md#tables) and in [operations.md](operations.md).
"""

ENDING = """\
## How to add a model

1. Write down its grain first: "One row per …". `stg_` renames one source, `int_` serves other models; `dim_`, `fct_`
   and `rpt_` are for readers: what things are, what happened, how it stands.
2. Put the SQL into `dbt/models/<staging|intermediate|marts>/<name>.sql`. Only staging models say `source()`; all others
   `ref()`. Columns in the order ids, texts, numbers, booleans, dates, times.
3. Put `<name>.yml` beside it: the grain as the first sentence, each column with `data_type` and `description`, a
   primary key (of a view: a `unique` test), `not_null`, `accepted_values` and `relationships` where they hold.
4. Never ask for `now()`: what depends on the present takes `int_data_clock`, so that a rerun gives the same rows.
5. If it grows with the history, make it incremental as `fct_access_hourly` is: `replace_touched`, the hooks `begin_run`
   and `remember_run`, a column `source_ingested_at`, and `with_vanished` with what of it cannot be computed any more
   once retention has removed the raw rows (`dbt/macros/retention.sql`). Else a table, or a view where it only puts rows
   together.
6. Compute it a second time in Python in `tests/dbt/recomputation.py`: the tests hold the two equal, row for row, after
   late events, after changes of the registry, and after a full refresh.
7. If the dashboard reads it, add it to `dbt/models/marts/_exposures.yml`.
8. Decide in `dbt/macros/analysts.sql` which of a mart's columns analysts see ([security.md](security.md#analysts)).
9. Build it: `python dbt/one_at_a_time.py build --select +<name>`.
10. `scripts/data-dictionary` brings this file up to date.
11. `scripts/check`, then `scripts/test dbt`: the conventions above are tests there.
"""


def read_manifest(project: Path) -> dict[str, Any]:
    """dbt's manifest of the project. Raises RuntimeError with dbt's words where it cannot be parsed."""
    with TemporaryDirectory() as target:
        options = ["--project-dir", str(project), "--profiles-dir", str(project), "--target-path", target]
        parsed = dbtRunner().invoke(["--quiet", "--log-level-file", "none", "--no-partial-parse", "parse", *options])
        if not parsed.success:
            raise RuntimeError(f"dbt cannot parse {project}: {parsed.exception}")
        return json.loads((Path(target) / "manifest.json").read_text(encoding="utf-8"))


def models_in(manifest: dict[str, Any], folder: str) -> list[dict[str, Any]]:
    """The models of one folder of dbt/models, by name."""
    models = (node for node in manifest["nodes"].values() if node["resource_type"] == "model")
    return sorted((model for model in models if model["fqn"][1] == folder), key=lambda model: model["name"])


def tests_of(manifest: dict[str, Any], model: dict[str, Any]) -> list[dict[str, Any]]:
    """Its data tests: each with `column` (None: of the whole model), `name` and `arguments`."""
    return [
        {
            "column": node.get("column_name"),
            "name": node["test_metadata"]["name"],
            "arguments": node["test_metadata"]["kwargs"],
        }
        for node in manifest["nodes"].values()
        if node["resource_type"] == "test" and node.get("attached_node") == model["unique_id"]
    ]


def primary_key(manifest: dict[str, Any], model: dict[str, Any]) -> list[str]:
    """The columns of the key that PostgreSQL holds or a test checks; none: there is neither.

    A constraint on a view is only declared: PostgreSQL knows none there.
    """
    if model["config"]["materialized"] != "view":
        for constraint in model["constraints"]:
            if constraint["type"] == "primary_key":
                return constraint["columns"]
    for test in tests_of(manifest, model):
        if test["name"] == "unique":
            return [test["column"]]
        if test["name"] == "unique_combination":
            return test["arguments"]["columns"]
    return []


def text_of(manifest: dict[str, Any]) -> str:
    topics = [BEGINNING, "## Topics and raw tables\n", *map(_topic, CONTRACTS.values()), AFTER_TOPICS]
    marts = models_in(manifest, "marts")
    overview = [
        (f"[`{mart['name']}`](#marts{mart['name']})", _grain(mart), _names(primary_key(manifest, mart)))
        for mart in marts
    ]
    marts_part = ["## Marts\n", _table(("mart", "one row per", "key"), overview)]
    marts_part += [_mart(manifest, mart) for mart in marts]
    below = [
        (f"`{model['schema']}.{model['name']}`", _one_line(model["description"]))
        for model in [*models_in(manifest, "staging"), *models_in(manifest, "intermediate"), *_snapshots(manifest)]
    ]
    below_part = ["## Below the marts\n", _table(("model", "what it holds"), below)]
    return "\n".join([*topics, *marts_part, *below_part, ENDING])


def _topic(contract: Contract) -> str:
    types = _column_types(contract.table)
    rows = [
        (f"`{field.name}`", types[field.name], "yes" if field.required else "", field.description)
        for field in contract.fields
    ]
    facts = f"""{contract.description} Key of the table: {_names(contract.key)}. The topic
        {"is compacted: the newest of a key stays" if contract.compacted else "keeps its records for 7 days"}.
        A record as JSON Schema: [{contract.topic}.json](../streaming/schemas/{contract.topic}.json)."""
    heading = f"### `{contract.topic}` → `{contract.table}`\n"
    return "\n".join([heading, _paragraph(facts), _table(("field and column", "type", "required", "what"), rows)])


def _column_types(table: str) -> dict[str, str]:
    schema = (ROOT / "streaming/sql/schema.sql").read_text(encoding="utf-8")
    [body] = re.findall(rf"CREATE TABLE IF NOT EXISTS {table} \((.*?)\n\)", schema, re.DOTALL)
    return dict(re.findall(r"^    (\w+) +([a-z]+)", body, re.MULTILINE))


def _mart(manifest: dict[str, Any], mart: dict[str, Any]) -> str:
    tests = tests_of(manifest, mart)
    key = primary_key(manifest, mart)
    rows = []
    for column in mart["columns"].values():
        of_column = {test["name"]: test["arguments"] for test in tests if test["column"] == column["name"]}
        constraints = {constraint["type"] for constraint in column["constraints"]}
        never_null = "not_null" in constraints or "not_null" in of_column or column["name"] in key
        what = _one_line(column["description"])
        for check in (each["expression"] for each in column["constraints"] if each["type"] == "check"):
            what += f" Checked: `{check}`."
        if "accepted_values" in of_column:
            what += f" One of {_names(of_column['accepted_values']['values'])}."
        if "relationships" in of_column:
            [other] = re.findall(r"ref\('(\w+)'\)", of_column["relationships"]["to"])
            what += f" See [`{other}`](#marts{other})."
        rows.append((f"`{column['name']}`", column["data_type"], "" if never_null else "yes", what))
    facts = f"""{PREFIXES[mart["name"].partition("_")[0]]}, {_kind(mart)}. Key: {_names(key)}.
        Made from {_names(sorted(node.rpartition(".")[2] for node in mart["depends_on"]["nodes"]))}."""
    pages = (page for page in manifest["exposures"].values() if mart["unique_id"] in page["depends_on"]["nodes"])
    readers = ", ".join(sorted(page["label"] for page in pages))
    if readers:
        facts += f" Read by: {readers}."
    parts = [f"### marts.{mart['name']}\n", _paragraph(mart["description"]), _paragraph(facts)]
    return "\n".join([*parts, _table(("column", "type", "may be NULL", "what"), rows)])


def _snapshots(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    found = [node for node in manifest["nodes"].values() if node["resource_type"] == "snapshot"]
    return sorted(found, key=lambda node: node["name"])


def _kind(model: dict[str, Any]) -> str:
    materialized = model["config"]["materialized"]
    return "an incremental table" if materialized == "incremental" else f"a {materialized}"


def _grain(model: dict[str, Any]) -> str:
    """What follows "One row per", up to the first stop."""
    return re.split(r"[.:]( |$)", _one_line(model["description"]))[0].removeprefix("One row per ")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _paragraph(text: str) -> str:
    return fill(_one_line(text), 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def main() -> None:
    os.environ["DBT_SCHEMA"] = "marts"  # the file is the same wherever one's own marts lie
    DICTIONARY.write_text(text_of(read_manifest(ROOT / "dbt")), encoding="utf-8")


if __name__ == "__main__":
    main()
