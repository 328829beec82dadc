"""The simulated stream: reproducible, at the asked rate, true to its own ground truth and to the contracts."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest

from contracts import CONTRACTS, InvalidRecord
from fleet import Parameters
from simulator import EVENTS, HEALTH, Report, Simulator

START = datetime(2026, 5, 4, tzinfo=UTC)  # a Monday
CLEAN: dict[str, Any] = {"duplicate_share": 0.0, "malformed_share": 0.0}
CALM = Parameters(fail_share=0, burst_share=0, outage_share=0, left_open_share=0)


def stream(seconds: float, *sizes: Any, **options: Any) -> tuple[Simulator, list[Report]]:
    defaults: dict[str, Any] = {"seed": 1, "start": START}
    simulator = Simulator(*sizes, **(defaults | options))
    return simulator, list(takewhile(lambda report: report[0] < seconds, simulator))


def values(reports: Iterable[Report], topic: str = EVENTS) -> list[tuple[float, dict[str, Any]]]:
    """(due, decoded value) of the well-formed reports of a topic."""
    return [
        (due, msgspec.json.decode(value))
        for due, at, _, value, truths in reports
        if at == topic and not is_spoilt(truths)
    ]


def is_spoilt(truths: list[dict[str, Any]] | None) -> bool:
    return any(truth["kind"] == "malformed" for truth in truths or [])


def truths_of(reports: Iterable[Report], kind: str) -> list[dict[str, Any]]:
    return [truth for *_, truths in reports for truth in truths or [] if truth["kind"] == kind]


def due_of(text: str) -> float:
    return (datetime.fromisoformat(text) - START).total_seconds()


@pytest.fixture(scope="module")
def half_hour() -> tuple[Simulator, list[Report]]:
    """Half an hour of the default fleet, 54,000 events."""
    return stream(1800, 100, 3, 0.1, 30)


@pytest.fixture(scope="module")
def four_weeks() -> list[Report]:
    return stream(28 * 86_400, 50, 3, 0, 21_600, "realistic")[1]


@pytest.mark.parametrize("profile", ["load", "realistic"])
def test_same_seed_same_bytes(profile: str) -> None:
    def make(seed: int, start: datetime = START) -> list[Report]:
        return list(islice(Simulator(20, 3, 0.5, 30, profile, seed, start=start), 20_000))

    assert make(3) == make(3)
    assert make(3) != make(4)
    later = make(3, START + timedelta(days=7))  # the same week day and hours, so the same course of things
    assert [(due, topic, key) for due, topic, key, *_ in later] == [
        (due, topic, key) for due, topic, key, *_ in make(3)
    ]


def test_dues_never_go_back_and_the_registry_comes_first(half_hour: tuple[Simulator, list[Report]]) -> None:
    dues = [report[0] for report in half_hour[1]]
    assert dues == sorted(dues)
    topics = [report[1] for report in half_hour[1]]
    assert topics[:400] == ["smart-access.households"] * 100 + ["smart-access.devices"] * 300
    assert set(topics[400:]) == {EVENTS, HEALTH}


@pytest.mark.parametrize("profile", ["load", "realistic"])
def test_only_malformed_records_fail_the_contract(
    profile: str, half_hour: tuple[Simulator, list[Report]], four_weeks: list[Report]
) -> None:
    mistakes = set()
    for due, topic, key, value, truths in half_hour[1] if profile == "load" else four_weeks:
        sent_at = int((START.timestamp() + due) * 1000)
        if is_spoilt(truths):
            mistakes.add((topic, next(truth["mistake"] for truth in truths or [] if truth["kind"] == "malformed")))
            with pytest.raises(InvalidRecord):
                CONTRACTS[topic].decode(value, key, sent_at)
        else:
            CONTRACTS[topic].decode(value, key, sent_at)
            name = "household_id" if topic.endswith("households") else "device_id"
            assert json.loads(value)[name].encode() == key
    assert len(mistakes) == 21 or profile == "realistic"


@pytest.mark.parametrize(("households", "devices", "rate"), [(100, 3, 0.1), (10, 3, 20), (7, 1, 3.3), (1000, 10, 0.5)])
def test_the_rate_holds_within_a_percent_in_every_stretch(households: int, devices: int, rate: float) -> None:
    _, reports = stream(20_000 / (households * devices * rate), households, devices, rate, 0)
    dues = [due for due, topic, *_ in reports if topic == EVENTS]
    asked = households * devices * rate
    for first in range(0, len(dues) - 2000, 1000):
        assert 2000 / (dues[first + 2000] - dues[first]) == pytest.approx(asked, rel=0.01)


def test_load_spreads_over_the_fleet() -> None:
    _, reports = stream(2000, 10, 3, 1.0, 0, world=CALM, **CLEAN)
    counts = Counter(key for _, topic, key, *_ in reports if topic == EVENTS)
    assert len(counts) == 30
    assert min(counts.values()) > 1600
    assert max(counts.values()) < 2400


def test_each_device_reports_its_health_once_per_interval() -> None:
    _, reports = stream(3000, 10, 3, 0, 30, world=CALM, **CLEAN)
    by_device = defaultdict(list)
    for due, topic, key, *_ in reports:
        if topic == HEALTH:
            by_device[key].append(due)
    assert len(by_device) == 30
    for dues in by_device.values():
        assert len(dues) == 100
        assert all(b - a == pytest.approx(30) for a, b in pairwise(dues))


def test_rate_and_interval_zero_leave_only_the_registry() -> None:
    assert [report[1].rsplit(".")[-1] for report in Simulator(1, 2, 0, 0, start=START)] == [
        "households",
        "devices",
        "devices",
    ]


def test_an_open_door_closes_before_it_opens_again(half_hour: tuple[Simulator, list[Report]]) -> None:
    sessions = defaultdict(list)
    seen = set()
    for _, event in sorted(values(half_hour[1]), key=lambda item: item[1]["event_ts"]):
        if event["event_type"] != "fail" and event["event_id"] not in seen:
            seen.add(event["event_id"])
            sessions[event["device_id"]].append(event["event_type"])
    # a device in an outage at the end still keeps some of its events, but from no device's middle
    for types in sessions.values():
        assert types == [("open", "close")[i % 2] for i in range(len(types))]


def test_event_ids_are_uuid7_of_the_device_clock(half_hour: tuple[Simulator, list[Report]]) -> None:
    ids = set()
    for _, event in values(half_hour[1]):
        parsed = UUID(event["event_id"])
        assert (parsed.version, parsed.variant) == (7, "specified in RFC 4122")
        assert parsed.int >> 80 == round(datetime.fromisoformat(event["event_ts"]).timestamp() * 1000)
        ids.add(parsed)
    assert len(ids) == len(values(half_hour[1])) - len(truths_of(half_hour[1], "duplicate"))


def test_shares_of_duplicates_and_malformed_records(half_hour: tuple[Simulator, list[Report]]) -> None:
    events = sum(report[1] == EVENTS for report in half_hour[1])
    assert len(truths_of(half_hour[1], "duplicate")) / events == pytest.approx(0.01, rel=0.15)
    assert len(truths_of(half_hour[1], "malformed")) / len(half_hour[1]) == pytest.approx(0.005, rel=0.2)
    _, clean = stream(600, 100, 3, 0.1, 30, **CLEAN)
    assert not truths_of(clean, "duplicate")
    assert not truths_of(clean, "malformed")


def test_duplicates_are_the_same_bytes_again(half_hour: tuple[Simulator, list[Report]]) -> None:
    sent: defaultdict[str, list[bytes]] = defaultdict(list)
    for _, topic, _, value, truths in half_hour[1]:
        if topic == EVENTS and not is_spoilt(truths):
            sent[json.loads(value)["event_id"]].append(value)
    twice = {event_id for event_id, copies in sent.items() if len(copies) > 1}
    assert twice == {truth["event_ids"][0] for truth in truths_of(half_hour[1], "duplicate")}
    assert all(len(set(copies)) == 1 for copies in sent.values())


def test_late_events_happened_before_they_were_sent(half_hour: tuple[Simulator, list[Report]]) -> None:
    late = {truth["event_ids"][0]: truth for truth in truths_of(half_hour[1], "late")}
    assert len(late) > 100
    delays: dict[str, float] = {}
    for due, event in values(half_hour[1]):
        delays.setdefault(event["event_id"], due - due_of(event["event_ts"]))
    for event_id in late:
        assert delays[event_id] > -31
    assert sum(delay > 10 for event_id, delay in delays.items() if event_id in late) > 0.8 * len(late)
    # and nothing else is late, beyond the clocks' skew and the wait for a slot
    assert all(delay < 35 for event_id, delay in delays.items() if event_id not in late)


def test_a_device_is_silent_or_offline_during_an_outage(half_hour: tuple[Simulator, list[Report]]) -> None:
    simulator, reports = half_hour
    outages = truths_of(reports, "outage") + [t for t in simulator.unfinished(1800) if t["kind"] == "outage"]
    assert len(outages) > 25
    assert {outage["buffered"] for outage in outages} == {True, False}
    skews = dict(zip(simulator.fleet.ids, simulator.fleet.skew_ms, strict=True))
    by_device = defaultdict(list)
    for due, topic, key, value, truths in reports:
        by_device[key.decode()].append((due, topic, value, truths))
    offline = 0
    for outage in outages:
        device = outage["device_id"]
        start = due_of(outage["start"]) - skews[device] / 1000 + 0.01
        end = due_of(outage["end"]) - skews[device] / 1000 - 0.01 if outage["end"] else 1800
        for due, topic, value, truths in by_device[device]:
            if start < due < end:
                assert topic == HEALTH
                assert not outage["buffered"]
                if not is_spoilt(truths):
                    assert json.loads(value)["is_online"] is False
                    offline += 1
    assert offline > 25
    assert offline >= sum(not report["is_online"] for _, report in values(reports, HEALTH))


def test_bursts_are_five_failures_within_ten_minutes(half_hour: tuple[Simulator, list[Report]]) -> None:
    events = {event["event_id"]: event for _, event in values(half_hour[1])}
    bursts = truths_of(half_hour[1], "burst")
    assert len(bursts) > 10
    for burst in bursts:
        failures = [events[event_id] for event_id in burst["event_ids"]]
        assert 5 <= len(failures) <= 9
        assert {(event["device_id"], event["event_type"]) for event in failures} == {(burst["device_id"], "fail")}
        assert (failures[0]["event_ts"], failures[-1]["event_ts"]) == (burst["start"], burst["end"])
        assert due_of(burst["end"]) - due_of(burst["start"]) <= 600


def test_every_session_over_ten_minutes_is_in_the_ground_truth(half_hour: tuple[Simulator, list[Report]]) -> None:
    simulator, reports = half_hour
    left_open = truths_of(reports, "left_open")
    assert len(left_open) > 3
    expected: dict[tuple[str, ...], tuple[str, str]] = {}
    opened: dict[str, dict[str, Any]] = {}
    for _, event in sorted(values(reports), key=lambda item: item[1]["event_ts"]):
        device = event["device_id"]
        if event["event_type"] == "open":
            opened.setdefault(device, event)
        elif event["event_type"] == "close" and device in opened:
            first = opened.pop(device)
            if due_of(event["event_ts"]) - due_of(first["event_ts"]) > 600:
                expected[first["event_id"], event["event_id"]] = (first["event_ts"], event["event_ts"])
    assert {tuple(t["event_ids"]): (t["start"], t["end"]) for t in left_open} == expected
    still = {t["device_id"] for t in simulator.unfinished(1800) if t["kind"] == "left_open"}
    silent = {t["device_id"] for t in simulator.unfinished(1800) if t["kind"] == "outage"}
    assert still | silent >= {d for d, event in opened.items() if 1800 - due_of(event["event_ts"]) > 640}


def test_batteries_drain_and_are_replaced(half_hour: tuple[Simulator, list[Report]]) -> None:
    simulator, reports = half_hour
    replaced = {(t["device_id"], t["start"]): t for t in truths_of(reports, "battery_replacement")}
    assert replaced
    mains = {d for d, m in zip(simulator.fleet.ids, simulator.fleet.models, strict=True) if m.battery_months is None}
    previous: dict[str, float] = {}
    for _, report in values(reports, HEALTH):
        device, battery = report["device_id"], report["battery_pct"]
        assert (battery is None) == (device in mains or not report["is_online"])
        if battery is not None:
            if battery > previous.get(device, 100):
                truth = replaced.pop((device, report["reported_at"]))
                assert battery == truth["after"] == 100
                assert 0 <= truth["before"] <= 15
            previous[device] = battery
    assert not replaced


def test_signal_walks_in_small_steps_around_a_device_mean() -> None:
    _, reports = stream(30 * 400, 5, 2, 0, 30, world=CALM, **CLEAN)
    walks = defaultdict(list)
    for _, report in values(reports, HEALTH):
        walks[report["device_id"]].append(report["signal_strength_dbm"])
    for walk in walks.values():
        steps = [abs(b - a) for a, b in pairwise(walk)]
        assert sum(steps) / len(steps) < 3
        assert 5 < max(walk) - min(walk) < 40
        assert -120 < min(walk) <= max(walk) < -20


def test_realistic_is_about_ten_events_a_day(four_weeks: list[Report]) -> None:
    assert sum(report[1] == EVENTS for report in four_weeks) / 150 / 28 == pytest.approx(10, rel=0.15)


def test_realistic_follows_the_household_clock(four_weeks: list[Report]) -> None:
    homes = {r["household_id"]: ZoneInfo(r["timezone"]) for _, r in values(four_weeks, "smart-access.households")}
    assert len({zone.key for zone in homes.values()}) > 5
    hours: Counter[tuple[bool, int]] = Counter()
    for _, event in values(four_weeks):
        if event["event_type"] == "open":
            local = datetime.fromisoformat(event["event_ts"]).astimezone(homes[event["device_id"].rsplit("-", 1)[0]])
            hours[local.weekday() >= 5, local.hour] += 1
    assert hours[False, 17] > 8 * hours[False, 3]
    assert hours[False, 7] > 3 * hours[False, 10] / 2
    assert hours[True, 7] / 8 < hours[False, 7] / 20 / 1.5  # 8 days of weekend, 20 others: people sleep longer


def test_left_open_share_of_realistic_sessions(four_weeks: list[Report]) -> None:
    opens = sum(event["event_type"] == "open" for _, event in values(four_weeks))
    assert 0.01 < len(truths_of(four_weeks, "left_open")) / opens < 0.06


def test_history_with_a_world_of_ones_own() -> None:
    world = replace(Parameters(), burst_share=1.0, outage_share=0)
    _, reports = stream(86_400, 3, 1, 0, 0, "realistic", world=world, **CLEAN)
    assert {event["event_type"] for _, event in values(reports)} == {"fail"}


def test_refuses_a_naive_start_and_an_unknown_profile() -> None:
    with pytest.raises(ValueError, match="time zone"):
        Simulator(1, 1, 1, 1, start=datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="load, realistic"):
        Simulator(1, 1, 1, 1, "heavy", start=START)
