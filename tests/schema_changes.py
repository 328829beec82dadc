"""Changes of a contract's JSON Schema: those that break a released producer or its readers, and those that do not.

Our own judge of them (tests/unit/test_schemas.py) and a real registry's (tests/integration/test_real_registry.py) are
held against the same list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contracts import DEVICES, EVENTS, HEALTH, Contract

Schema = dict[str, Any]
Change = Callable[[Schema], object]


def put(name: str, **keywords: Any) -> Change:
    return lambda schema: schema["properties"][name].update(keywords)


def drop(name: str, keyword: str) -> Change:
    return lambda schema: schema["properties"][name].pop(keyword)


def _closed(schema: Schema) -> None:
    schema["properties"]["device_type"] = {"enum": ["lock", "gate"]}


def _new_required(schema: Schema) -> None:
    schema["properties"]["site_id"] = {"type": "string"}
    schema["required"].append("site_id")


BREAKING: dict[str, tuple[Contract, Change, str]] = {
    "a_new_required_field": (EVENTS, _new_required, "site_id is newly required"),
    "an_optional_field_becomes_required": (
        DEVICES,
        lambda schema: schema["required"].append("model"),
        "model is newly required",
    ),
    "a_field_goes": (EVENTS, lambda schema: schema["properties"].pop("trigger_source"), "trigger_source is no field"),
    "an_optional_field_goes": (DEVICES, lambda schema: schema["properties"].pop("model"), "model is no field any more"),
    "an_enum_value_goes": (EVENTS, put("event_type", enum=["open", "close", "fail"]), "takes 'command_failed'"),
    "an_open_vocabulary_closes": (DEVICES, _closed, "device_type: became a closed list"),
    "a_text_must_be_longer": (EVENTS, put("trigger_source", minLength=2), "minLength rose to 2"),
    "a_text_must_be_shorter": (EVENTS, put("trigger_source", maxLength=63), "maxLength fell to 63"),
    "a_free_text_gets_a_least_length": (DEVICES, put("model", minLength=1), "minLength rose to 1"),
    "a_range_narrows_from_below": (HEALTH, put("battery_pct", minimum=1), "minimum rose"),
    "a_range_narrows_from_above": (HEALTH, put("battery_pct", maximum=99.5), "maximum fell"),
    "null_is_no_longer_taken": (DEVICES, put("model", type="string"), "no longer takes type null"),
    "integers_are_no_longer_taken": (EVENTS, put("device_id", type="string"), "no longer takes type integer"),
    "a_number_becomes_an_integer": (
        HEALTH,
        put("battery_pct", type=["integer", "null"]),
        "no longer takes type number",
    ),
    "a_type_becomes_another": (EVENTS, put("event_ts", type="integer"), "no longer takes type string"),
    "a_pattern_changes": (EVENTS, put("event_ts", pattern="^x$"), "event_ts: pattern changed"),
    "a_format_is_asked_for": (EVENTS, put("event_ts", format="date-time"), "format changed"),
    "a_keyword_nobody_has_judged": (EVENTS, put("event_id", multipleOf=2), "multipleOf changed"),
    "unknown_fields_are_forbidden": (
        EVENTS,
        lambda schema: schema.update(additionalProperties=False),
        "unknown fields are no longer free",
    ),
    "unknown_fields_get_a_type": (
        EVENTS,
        lambda schema: schema.update(additionalProperties={"type": "string"}),
        "unknown fields are no longer free",
    ),
    "the_number_of_fields_is_limited": (EVENTS, lambda schema: schema.update(maxProperties=9), "maxProperties changed"),
    "the_topic_is_another": (EVENTS, lambda schema: schema.update(title="events"), "smart-access.events became events"),
}
HARMLESS: dict[str, tuple[Contract, Change]] = {
    "nothing": (EVENTS, lambda schema: None),
    "a_new_optional_field": (EVENTS, lambda schema: schema["properties"].update(site_id={"type": ["string", "null"]})),
    "a_required_field_becomes_optional": (EVENTS, lambda schema: schema["required"].remove("trigger_source")),
    "an_enum_value_more": (EVENTS, put("event_type", enum=["fail", "close", "open", "command_failed", "jammed"])),
    "a_closed_list_opens": (EVENTS, lambda schema: schema["properties"].update(event_type={"type": "string"})),
    "a_text_may_be_shorter": (EVENTS, put("trigger_source", minLength=0)),
    "a_text_may_be_longer": (EVENTS, put("trigger_source", maxLength=200)),
    "a_text_may_have_any_length": (EVENTS, drop("trigger_source", "maxLength")),
    "a_range_widens": (HEALTH, put("signal_strength_dbm", minimum=-200, maximum=10)),
    "a_range_goes": (HEALTH, drop("battery_pct", "maximum")),
    "a_type_more": (EVENTS, put("trigger_source", type=["string", "integer", "null"])),
    "an_integer_becomes_a_number": (EVENTS, put("device_id", type=["string", "number"])),
    "a_boolean_may_be_null": (HEALTH, put("is_online", type=["boolean", "null"])),
    "any_type": (EVENTS, drop("trigger_source", "type")),
    "a_pattern_goes": (EVENTS, drop("event_ts", "pattern")),
    "another_description": (EVENTS, put("event_ts", description="when")),
}
