"""The simulated world: what devices there are, who owns them, and every parameter of how they behave.

One table, `Parameters`: a line each, with its source; docs/simulator.md names the sources. simulator.py makes the
reports. Seeded: the same seed and sizes give the same fleet, and ids do not depend on the seed at all.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from faker import Faker

from contracts import DEVICES, HOUSEHOLDS, time_zones


@dataclass(frozen=True)
class Model:
    device_type: str
    name: str
    firmware: tuple[str, ...]
    battery_months: float | None  # None: on the mains, reports no battery


MODELS = (  # battery life: docs/simulator.md; garage doors and gates report their wireless sensor's cells
    Model("lock", "Bolt Z2", ("2.8.1", "2.9.0", "2.9.4"), 9),
    Model("lock", "Bolt WiFi", ("1.4.2", "1.5.0"), 4.5),
    Model("garage_door", "Lift 300", ("5.0.3", "5.1.0"), 12),
    Model("garage_door", "Lift 500", ("6.2.0", "6.2.1"), 12),
    Model("gate", "Swing S", ("3.3.7", "3.4.0"), 9),
    Model("gate", "Slide Pro", ("3.4.0", "4.0.1"), None),
)


@dataclass(frozen=True)
class Parameters:
    """What the simulated world is like; docs/simulator.md has the sources. "Assumed" means that none was found."""

    device_types: tuple[tuple[str, float], ...] = (("lock", 0.6), ("garage_door", 0.3), ("gate", 0.1))  # assumed
    places: int = 24  # regions a fleet lives in; assumed
    sessions_per_day: float = 4.9  # published: garage doors 3-5 cycles a day, locks about 5; makes about 10 events
    sessions_spread: float = 4.0  # shape of the gamma distribution over devices; assumed
    # Weight of each local hour. Commuting peaks as in the US National Household Travel Survey; the values are assumed.
    weekday_hours: tuple[float, ...] = (
        1, 1, 1, 1, 2, 6, 12, 18, 16, 9, 8, 9,
        10, 9, 10, 14, 17, 20, 17, 13, 10, 7, 4, 2,
    )  # fmt: skip
    weekend_hours: tuple[float, ...] = (
        2, 1, 1, 1, 1, 2, 4, 7, 11, 14, 16, 17,
        17, 16, 15, 15, 15, 14, 13, 11, 9, 7, 5, 3,
    )  # fmt: skip
    open_median: float = 25.0  # seconds a door stays open; assumed
    open_sigma: float = 1.0  # of its logarithm; assumed
    left_open_after: float = 600.0  # seconds from which a door counts as left open: this project's threshold
    left_open_share: float = 0.02  # of sessions; assumed
    left_open_mean: float = 1200.0  # further seconds; assumed
    fail_share: float = 0.015  # single failures, of events; assumed
    burst_share: float = 0.0005  # of events that start a burst of failures; assumed
    burst_size: tuple[int, int] = (5, 9)  # failures within ten minutes; this project's threshold is 5
    burst_gap: tuple[float, float] = (5.0, 60.0)  # seconds between them: nine stay within ten minutes
    outage_share: float = 0.005  # of events after which the device falls silent; assumed
    outage_median: float = 300.0  # seconds; assumed
    outage_range: tuple[float, float] = (60.0, 7200.0)  # seconds; assumed
    outage_buffered: float = 0.5  # of outages: the device goes on and sends later; else its hub reports it offline
    buffer_size: int = 64  # events a silent device keeps; assumed
    replay_gap: float = 0.2  # seconds between replayed events; assumed
    duplicate_delay: tuple[float, float] = (0.05, 30.0)  # seconds until an event is sent again; assumed
    operations_drain: float = 0.5  # of the battery's drain is the motor's, at sessions_per_day; assumed
    battery_replace: tuple[float, float] = (3.0, 15.0)  # percent at which people change batteries; assumed
    signal_mean: tuple[float, float] = (-82.0, -45.0)  # dBm; published: -50 excellent, -67 good, under -85 unusable
    signal_memory: float = 0.9  # AR(1) coefficient from report to report; assumed
    signal_noise: float = 1.8  # dBm of the innovation: 4 dBm of spread; assumed
    skew: float = 1.5  # seconds, standard deviation of a device's clock; assumed
    skew_limit: float = 30.0  # seconds; assumed
    busy_fleet: float = 0.05  # share of the fleet that one kind of anomaly may hold at a time, whatever the rate


TRIGGER_SOURCES = {  # (source, weight) for opening and for closing; assumed
    "lock": (
        (("keypad", 40), ("app", 25), ("manual", 25), ("remote", 10)),
        (("auto_close", 45), ("manual", 30), ("app", 15), ("schedule", 10)),
    ),
    "garage_door": (
        (("remote", 55), ("app", 20), ("keypad", 15), ("manual", 10)),
        (("remote", 50), ("app", 20), ("auto_close", 20), ("schedule", 10)),
    ),
    "gate": (
        (("remote", 55), ("app", 20), ("keypad", 15), ("schedule", 10)),
        (("auto_close", 60), ("remote", 25), ("app", 10), ("schedule", 5)),
    ),
}


class Fleet:
    """Households and devices: who they are, where they live, how far their clocks are off."""

    def __init__(self, households: int, devices_per_household: int, seed: int, world: Parameters) -> None:
        rng = random.Random(f"fleet {seed}")
        fake = Faker("en_US")
        fake.seed_instance(seed)
        places: list[tuple[str, str]] = []
        while len(places) < world.places:  # a pool: asking faker for each of 100,000 households takes long
            _, _, town, country, zone = fake.location_on_land()
            if zone in time_zones():
                places.append((f"{town}, {country}", zone))
        self.households = [(f"hh-{h:05d}", *rng.choice(places)) for h in range(1, households + 1)]
        types = [name for name, _ in world.device_types]
        shares = [share for _, share in world.device_types]
        models = {name: [model for model in MODELS if model.device_type == name] for name in types}
        count = households * devices_per_household
        self.models = [rng.choice(models[name]) for name in rng.choices(types, shares, k=count)]
        self.homes = [home for home in self.households for _ in range(devices_per_household)]
        self.ids = [f"{home[0]}-d{d % devices_per_household + 1}" for d, home in enumerate(self.homes)]
        self.keys = [device_id.encode() for device_id in self.ids]
        self.firmware = [rng.choice(model.firmware) for model in self.models]
        self.installed = [str(date(2022, 1, 1) + timedelta(days=rng.randrange(1400))) for _ in range(count)]
        limit = world.skew_limit
        self.skew_ms = [int(1000 * max(-limit, min(limit, rng.gauss(0, world.skew)))) for _ in range(count)]

    def registry(self, updated_at: str) -> Iterator[tuple[str, bytes, bytes]]:
        for household_id, region, zone in self.households:
            value = {"household_id": household_id, "region": region, "timezone": zone, "updated_at": updated_at}
            yield HOUSEHOLDS.topic, household_id.encode(), json.dumps(value).encode()
        for d, device_id in enumerate(self.ids):
            value = {
                "device_id": device_id,
                "household_id": self.homes[d][0],
                "device_type": self.models[d].device_type,
                "model": self.models[d].name,
                "firmware_version": self.firmware[d],
                "installed_at": self.installed[d],
                "updated_at": updated_at,
            }
            yield DEVICES.topic, self.keys[d], json.dumps(value).encode()
