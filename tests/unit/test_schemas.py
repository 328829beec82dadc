"""The committed JSON Schemas are what the contracts say, agree with the decoder, and break no released producer.

streaming/schemas/released/<version>/ holds the schemas that producers in the field were built on. They are copies that
never change; a new release is a new folder. `breaking_changes` says what of a released producer's records the current
contract would no longer take, or no longer take for what they were.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from contract_cases import ACCEPTED, REFUSED, VALID, Accepted, Refused, record
from contract_strategies import valid_records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schema_changes import BREAKING, HARMLESS, Schema

from contracts import CONTRACTS, DEVICES, EVENTS, SCHEMAS, Contract

VALIDATORS = {
    topic: Draft202012Validator(contract.json_schema(), format_checker=Draft202012Validator.FORMAT_CHECKER)
    for topic, contract in CONTRACTS.items()
}
RELEASED = sorted(SCHEMAS.glob("released/*/*.json"))
LOWER_BOUNDS = ("minLength", "minimum")
UPPER_BOUNDS = ("maxLength", "maximum")
ANNOTATIONS = {"$schema", "title", "description"}


def breaking_changes(released: Schema, current: Schema) -> list[str]:
    """What of a released producer's records the current schema would refuse or misread, a sentence each.

    Knows the keywords that the contracts use; a change in any other counts as breaking until somebody has judged it.
    """
    changes = []
    if released["title"] != current["title"]:
        changes.append(f"the topic {released['title']} became {current['title']}")
    for name in sorted(set(current["required"]) - set(released["required"])):
        changes.append(f"{name} is newly required")
    for name, field in released["properties"].items():
        if name in current["properties"]:
            changes += [f"{name}: {change}" for change in _narrowed(field, current["properties"][name])]
        else:
            changes.append(f"{name} is no field any more")
    if released["additionalProperties"] and current["additionalProperties"] is not True:
        changes.append("unknown fields are no longer free")
    known = {"properties", "required", "additionalProperties"}
    return changes + _other_changes(released, current, known)


def _narrowed(released: Schema, current: Schema) -> list[str]:
    changes = []
    if "enum" not in released and "enum" not in current:
        changes += [f"no longer takes type {lost}" for lost in sorted(_types(released) - _types(current))]
    for keyword in LOWER_BOUNDS:
        if keyword in current and current[keyword] > released.get(keyword, float("-inf")):
            changes.append(f"{keyword} rose to {current[keyword]}")
    for keyword in UPPER_BOUNDS:
        if keyword in current and current[keyword] < released.get(keyword, float("inf")):
            changes.append(f"{keyword} fell to {current[keyword]}")
    if "enum" in released:
        validator = Draft202012Validator(current)
        changes += [f"no longer takes {value!r}" for value in released["enum"] if not validator.is_valid(value)]
    elif "enum" in current:
        changes.append("became a closed list")
    return changes + _other_changes(released, current, {"type", "enum", *LOWER_BOUNDS, *UPPER_BOUNDS})


def _types(field: Schema) -> set[str]:
    """The JSON types that a field takes; an integer is a number too."""
    everything = ["array", "boolean", "null", "number", "object", "string"]
    said = field.get("type", everything)
    types = {said} if isinstance(said, str) else set(said)
    return types | {"integer"} if "number" in types else types


def _other_changes(released: Schema, current: Schema, known: set[str]) -> list[str]:
    """Constraints that are new or not the same, of the keywords not compared elsewhere."""
    return [
        f"{keyword} changed to {current[keyword]!r}"
        for keyword in sorted(current.keys() - known - ANNOTATIONS)
        if released.get(keyword) != current[keyword]
    ]


@pytest.mark.parametrize("topic", CONTRACTS)
def test_the_committed_schema_is_what_the_contract_says(topic: str) -> None:
    committed = json.loads((SCHEMAS / f"{topic}.json").read_text(encoding="utf-8"))
    assert committed == CONTRACTS[topic].json_schema(), "stale: run `python streaming/contracts.py` and commit"


def test_no_schema_is_left_of_a_topic_that_went() -> None:
    assert {path.stem for path in SCHEMAS.glob("*.json")} == set(CONTRACTS)


@pytest.mark.parametrize("topic", CONTRACTS)
def test_the_schema_is_a_json_schema(topic: str) -> None:
    Draft202012Validator.check_schema(CONTRACTS[topic].json_schema())


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED)
def test_the_schema_takes_what_the_decoder_takes(case: Accepted) -> None:
    VALIDATORS[case.contract.topic].validate(record(case.contract, case.changes))


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_the_schema_is_never_stricter_than_the_decoder(contract: Contract, data: st.DataObject) -> None:
    VALIDATORS[contract.topic].validate(data.draw(valid_records(contract)))


IN_SCHEMA = {name: case for name, case in REFUSED.items() if case.in_schema}
BEYOND_SCHEMA = {name: case for name, case in REFUSED.items() if not case.in_schema}


@pytest.mark.parametrize("case", IN_SCHEMA.values(), ids=IN_SCHEMA)
def test_the_schema_refuses_what_it_can(case: Refused) -> None:
    assert not VALIDATORS[case.contract.topic].is_valid(record(case.contract, case.changes))


@pytest.mark.parametrize("case", BEYOND_SCHEMA.values(), ids=BEYOND_SCHEMA)
def test_what_is_said_to_be_beyond_the_schema_is(case: Refused) -> None:
    assert VALIDATORS[case.contract.topic].is_valid(record(case.contract, case.changes))


def test_the_blanks_of_the_id_pattern_are_those_of_the_decoder() -> None:
    device_id = Draft202012Validator(EVENTS.json_schema()["properties"]["device_id"])
    characters = [chr(code) for code in range(1, 0x3100)]
    refused = [character for character in characters if not device_id.is_valid(f"{character}a")]
    assert refused == [character for character in characters if not character.strip()]


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_current_contract_breaks_no_released_producer(path: Any) -> None:
    assert path.stem in CONTRACTS, "a released topic is gone"
    assert breaking_changes(json.loads(path.read_text(encoding="utf-8")), CONTRACTS[path.stem].json_schema()) == []


def test_every_topic_is_in_the_first_release() -> None:
    assert {path.stem for path in RELEASED if path.parent.name == "v1"} >= set(CONTRACTS)


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_released_schema_takes_the_records_of_its_day(path: Any) -> None:
    Draft202012Validator(json.loads(path.read_text(encoding="utf-8"))).validate(VALID[path.stem])


def changed(contract: Contract, change: Callable[[Schema], object]) -> list[str]:
    released = contract.json_schema()
    current = copy.deepcopy(released)
    change(current)
    return breaking_changes(released, current)


@pytest.mark.parametrize(("contract", "change", "said"), BREAKING.values(), ids=BREAKING)
def test_a_breaking_change_is_named(contract: Contract, change: Callable[[Schema], object], said: str) -> None:
    changes = changed(contract, change)
    assert len(changes) == 1
    assert said in changes[0]


@pytest.mark.parametrize(("contract", "change"), HARMLESS.values(), ids=HARMLESS)
def test_a_harmless_change_is_none(contract: Contract, change: Callable[[Schema], object]) -> None:
    assert changed(contract, change) == []


def test_every_breaking_change_is_named_at_once() -> None:
    released = EVENTS.json_schema()
    assert len(breaking_changes(released, {**DEVICES.json_schema(), "additionalProperties": False})) > 5
