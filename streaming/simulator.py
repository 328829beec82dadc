"""A simulated fleet of locks, garage doors and gates, and every report it would send.

Pure: no Kafka, no wall clock, no files. The same seed and arguments give the same bytes, event ids included (UUIDv7:
the time part is the device's clock, the random part the seeded generator). Iterating takes no real time, so the same
class paces a live stream (kafka_producer.py) and writes months of history as fast as it can be read.

    for due, topic, key, value, truths in Simulator(100, 3, 0.1, 30, seed=7, start=datetime.now(UTC)):

`due` counts seconds from `start` and never goes back; the registry of households and devices comes first, at 0.
`truths` is None, or the list of what was injected and ended with this report. docs/simulator.md explains the fields.
"""

from __future__ import annotations

import heapq
import math
import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import contracts
from fleet import TRIGGER_SOURCES, Fleet, Parameters

EVENTS, HEALTH = contracts.EVENTS.topic, contracts.HEALTH.topic
PROFILES = ("load", "realistic")

Truth = dict[str, Any]
Record = tuple[str, bytes, bytes, list[Truth] | None]
Report = tuple[float, str, bytes, bytes, list[Truth] | None]


# How a report is spoilt; each way fails the contract by another rule. (text of the valid report) -> bytes
EVENT_MISTAKES: dict[str, Callable[[str], bytes]] = {
    "cut off": lambda text: text[: len(text) // 2].encode(),
    "not UTF-8": lambda text: text.replace('"event_type":"', '"event_type":"\udcff').encode(errors="surrogateescape"),
    "byte-order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "an array": lambda text: f"[{text}]".encode(),
    "empty": lambda text: b"",
    "no device": lambda text: text.replace('"device_id"', '"device"').encode(),
    "no time": lambda text: text.replace('"event_ts"', '"time"').encode(),
    "no such day": lambda text: re.sub(r'(_ts":"\d{4})-\d\d-\d\d', r"\1-02-31", text).encode(),
    "local time format": lambda text: re.sub(r'_ts":"(\d{4})-(\d\d)-(\d\d)T', r'_ts":"\3.\2.\1 ', text).encode(),
    "clock never set": lambda text: re.sub(r'_ts":"\d{4}-\d\d-\d\d', '_ts":"1970-01-01', text).encode(),
    "far future": lambda text: re.sub(r'_ts":"\d{4}', '_ts":"2199', text).encode(),
    "unknown event type": lambda text: re.sub(r'"event_type":"\w+"', '"event_type":"opened"', text).encode(),
    "event type a number": lambda text: re.sub(r'"event_type":"\w+"', '"event_type":1', text).encode(),
    "event id a fraction": lambda text: re.sub(r'"event_id":"[^"]+"', '"event_id":1.5', text).encode(),
    "NUL in a text": lambda text: re.sub(r'"trigger_source":"', r'"trigger_source":"\\u0000', text).encode(),
}
HEALTH_MISTAKES: dict[str, Callable[[str], bytes]] = {
    "cut off": lambda text: text[: len(text) // 2].encode(),
    "battery over 100": lambda text: re.sub(r'"battery_pct":[^,]+', '"battery_pct":255', text).encode(),
    "positive signal": lambda text: re.sub(r'"signal_strength_dbm":[^,]+', '"signal_strength_dbm":67', text).encode(),
    "not a number": lambda text: re.sub(r'"battery_pct":[^,]+', '"battery_pct":NaN', text).encode(),
    "online a word": lambda text: re.sub(r'"is_online":\w+', '"is_online":"yes"', text).encode(),
    "blank in the id": lambda text: text.replace('"device_id":"', '"device_id":" ').encode(),
}


def _endless(draw: Callable[[], list[Any]]) -> Iterator[Any]:
    """One random value at a time, drawn in batches: that is several times cheaper."""
    while True:
        yield from draw()


class Simulator:
    """Iterate it once. `event_rate` is events per device and second (profile `load` only); `health_interval` seconds
    between two health reports of a device. 0 turns either off. `start` must be aware of its time zone."""

    def __init__(
        self,
        households: int,
        devices_per_household: int,
        event_rate: float,
        health_interval: float,
        profile: str = "load",
        seed: int = 0,
        *,
        start: datetime,
        duplicate_share: float = 0.01,
        malformed_share: float = 0.005,
        world: Parameters = Parameters(),  # noqa: B008 - frozen
    ) -> None:
        if start.tzinfo is None:
            raise ValueError("start needs a time zone")
        if profile not in PROFILES:
            raise ValueError(f"profile {profile!r} is not one of {', '.join(PROFILES)}")
        self.fleet = fleet = Fleet(households, devices_per_household, seed, world)
        self._ids, self._keys, self._skew_ms = fleet.ids, fleet.keys, fleet.skew_ms
        self.world, self._profile = world, profile
        self._rng = rng = random.Random(f"stream {seed}")
        self._start_ms = int(start.timestamp() * 1000)
        self._count = count = len(self.fleet.ids)
        self._rate = event_rate * count  # of the fleet
        self._interval = health_interval
        self._order = rng.sample(range(count), count)
        device_rate = event_rate if profile == "load" else 2 * world.sessions_per_day / 86_400
        # a device's own next event is never nearer than this
        self._least_gap = 1 / event_rate if profile == "load" and event_rate else 1.0
        specials, weights = zip(*self._special_shares(device_rate, duplicate_share, malformed_share), strict=True)
        self._special_share, self._malformed_share = sum(weights), malformed_share
        self._special_events = _endless(lambda: rng.choices(specials, weights, k=256))
        self._events_until_special = self._gap(self._special_share)
        self._health_until_malformed = self._gap(malformed_share)

        # A door that is open or silent has no event before this. A third starts late, or the doors would move in step.
        self._hold = [max(0.0, rng.uniform(-2, 1) * self._least_gap) for _ in range(count)]
        self._opened = [-1.0] * count  # since when a door is open; negative: closed
        self._open_id = [""] * count
        self._outages: dict[int, tuple[float, float, bool]] = {}  # device: start, end, events are buffered
        self._repeats: dict[int, float] = {}  # device: until when an event of its waits to be sent again
        self._bursts: dict[int, list[tuple[float, str]]] = {}  # device: due and id of each failure
        self._queue: list[tuple[float, int, int, Record | None]] = []  # due, tie-breaker, device, record or "next step"
        self._queued = self._slot = self._turn = self._health_turn = 0
        self._seconds: dict[int, str] = {}
        self._rhythms: dict[tuple[str, int], float] = {}
        self._draw_devices(count)
        self._draw_streams(device_rate)

    def _special_shares(
        self, device_rate: float, duplicates: float, malformed: float
    ) -> list[tuple[Callable[[int, float], Record], float]]:
        """How often an event is out of the ordinary. What silences a device must stay rare per hour, not per event."""
        world = self.world

        def capped(share: float, seconds: float) -> float:
            return min(share, world.busy_fleet / (device_rate * seconds)) if device_rate else 0.0

        self._left_open_share = capped(world.left_open_share, (world.left_open_after + world.left_open_mean) / 2)
        return [
            (self._duplicate, duplicates),
            (self._malformed, malformed),
            (self._fail, world.fail_share),
            (self._burst, capped(world.burst_share, sum(world.burst_gap) / 2 * sum(world.burst_size) / 2)),
            (self._outage, capped(world.outage_share, world.outage_median * 1.65)),
        ]

    def _draw_devices(self, count: int) -> None:
        rng, world, models = self._rng, self.world, self.fleet.models
        self._signal_mean = [rng.uniform(*world.signal_mean) for _ in range(count)]
        self._signal = list(self._signal_mean)
        self._replace_at = [rng.uniform(*world.battery_replace) for _ in range(count)]
        self._battery = [rng.uniform(low + 1, 100) for low in self._replace_at]
        self._operations = [0] * count
        drain_per_day = [100 / (model.battery_months * 30.4) if model.battery_months else 0.0 for model in models]
        motor = world.operations_drain
        self._drain_operation = [drain * motor / (2 * world.sessions_per_day) for drain in drain_per_day]
        self._drain_report = [drain * (1 - motor) * self._interval / 86_400 for drain in drain_per_day]
        shape = world.sessions_spread
        self._openings = [
            world.sessions_per_day / 86_400 * rng.gammavariate(shape, 1 / shape)
            if self._profile == "realistic"
            else 0.0
            for _ in range(count)
        ]
        week = 5 * sum(world.weekday_hours) + 2 * sum(world.weekend_hours)
        self._rhythm_scale = 168 / week  # the mean over a week is 1
        self._rhythm_peak = max(*world.weekday_hours, *world.weekend_hours) * self._rhythm_scale

    def _draw_streams(self, device_rate: float) -> None:
        rng, world = self._rng, self.world
        median = world.open_median
        if self._profile == "load" and device_rate:  # a door that moves ten times a second is not open for 25 s
            median = min(median, 0.3 / device_rate)
        mu = math.log(median)

        def durations() -> list[float]:
            return [
                world.left_open_after + rng.expovariate(1 / world.left_open_mean)
                if rng.random() < self._left_open_share
                else rng.lognormvariate(mu, world.open_sigma)
                for _ in range(1024)
            ]

        def id_tails() -> list[str]:
            digits = rng.randbytes(9 * 1024).hex()
            parts = (digits[i : i + 18] for i in range(0, len(digits), 18))
            return [f"7{part[:3]}-{'89ab'[i & 3]}{part[3:6]}-{part[6:]}" for i, part in enumerate(parts)]

        def sources(choices: tuple[tuple[str, int], ...]) -> Iterator[str]:
            names, weights = zip(*choices, strict=True)
            return _endless(lambda: rng.choices(names, weights, k=1024))

        by_type = {name: (sources(opening), sources(closing)) for name, (opening, closing) in TRIGGER_SOURCES.items()}
        self._durations, self._id_tails = _endless(durations), _endless(id_tails)
        self._noise = _endless(lambda: [rng.gauss(0, world.signal_noise) for _ in range(1024)])
        self._opening_sources = [by_type[model.device_type][0] for model in self.fleet.models]
        self._closing_sources = [by_type[model.device_type][1] for model in self.fleet.models]
        self._mistakes = _endless(lambda: rng.sample(list(EVENT_MISTAKES), len(EVENT_MISTAKES)))
        self._health_mistakes = _endless(lambda: rng.sample(list(HEALTH_MISTAKES), len(HEALTH_MISTAKES)))

    def _gap(self, share: float) -> float:
        """Records until the next one that is drawn with this probability: one draw instead of one per record."""
        if share <= 0:
            return math.inf
        return 1 if share >= 1 else 1 + int(math.log(1 - self._rng.random()) / math.log1p(-share))

    # The stream: the earlier of the next event and the next health report.

    def __iter__(self) -> Iterator[Report]:
        for record in self.fleet.registry(self._clock(self._start_ms)):
            yield 0.0, *record, None
        if self._profile == "load":
            event_due, next_event = self._slot_due, self._slot_event
        else:
            event_due, next_event = self._queue_due, self._queue_event
            for d in range(self._count):
                self._push(self._until_opening(d, 0.0), d, None)
        reports = self._count / self._interval if self._interval else 0.0
        health_due = 0.0 if reports else math.inf
        while True:
            due = event_due()
            if due < health_due:
                report = next_event(due)
            elif health_due < math.inf:
                due = health_due
                report = self._health(due)
                health_due = self._health_turn / reports
            else:
                return
            if report:
                yield due, *report

    def _slot_due(self) -> float:
        return self._slot / self._rate if self._rate else math.inf

    def _slot_event(self, t: float) -> Record | None:
        """`load`: slots at even distances, each filled by what is due in the queue, else by the next device in turn.

        So the rate of the fleet is exact whatever a single device does.
        """
        self._slot += 1
        if self._queue and self._queue[0][0] <= t:
            return heapq.heappop(self._queue)[3]
        hold, order, turn, count = self._hold, self._order, self._turn, self._count
        for _ in range(count):
            d = order[turn]
            turn = turn + 1 if turn + 1 < count else 0
            if hold[d] <= t:
                self._turn = turn
                return self._device_event(d, t)
        # The whole fleet is held: the door that was to close first does so now; nobody speaks for a silent device.
        awake = [d for d in order if not self._is_busy(d, t)]
        return self._device_event(min(awake, key=hold.__getitem__), t) if awake else None

    def _queue_due(self) -> float:
        return self._queue[0][0] if self._queue else math.inf

    def _queue_event(self, t: float) -> Record | None:
        """`realistic`: every device has its own next step in the queue."""
        _, _, d, record = heapq.heappop(self._queue)
        if record is None:
            record = self._device_event(d, t)
            self._push(max(self._hold[d], t + self._least_gap), d, None)
        return record

    def _push(self, due: float, d: int, record: Record | None) -> None:
        self._queued += 1
        heapq.heappush(self._queue, (due, self._queued, d, record))

    def _is_busy(self, d: int, t: float) -> bool:
        return (d in self._outages and t < self._outages[d][1]) or (d in self._bursts and t < self._bursts[d][-1][0])

    # Events

    def _device_event(self, d: int, t: float) -> Record:
        self._events_until_special -= 1
        if self._events_until_special > 0:
            return self._step(d, t)
        self._events_until_special = self._gap(self._special_share)
        return next(self._special_events)(d, t)

    def _step(self, d: int, t: float) -> Record:
        """Opens a closed door, closes an open one."""
        self._operations[d] += 1
        opened = self._opened[d]
        if opened < 0:
            event_id, value = self._event(d, t, "open", next(self._opening_sources[d]))
            self._opened[d], self._open_id[d] = t, event_id
            self._hold[d] = t + next(self._durations)
            return EVENTS, self._keys[d], value, None
        event_id, value = self._event(d, t, "close", next(self._closing_sources[d]))
        truths = None
        if t - opened > self.world.left_open_after:
            truths = [self._truth("left_open", d, opened, t, event_ids=[self._open_id[d], event_id])]
        self._opened[d] = -1.0
        if self._profile == "realistic":
            self._hold[d] = t + self._until_opening(d, t)
        return EVENTS, self._keys[d], value, truths

    def _event(self, d: int, t: float, event_type: str, source: str) -> tuple[str, bytes]:
        ms = self._start_ms + int(t * 1000) + self._skew_ms[d]
        event_id = f"{ms >> 16:08x}-{ms & 65535:04x}-{next(self._id_tails)}"
        second = self._seconds.get(ms // 1000) or self._second(ms // 1000)
        return event_id, (
            f'{{"event_id":"{event_id}","device_id":"{self._ids[d]}","event_ts":"{second}{ms % 1000:03d}Z",'
            f'"event_type":"{event_type}","trigger_source":"{source}"}}'
        ).encode()

    def _fail(self, d: int, t: float) -> Record:
        return EVENTS, self._keys[d], self._event(d, t, "fail", next(self._opening_sources[d]))[1], None

    def _burst(self, d: int, t: float) -> Record:
        """Failures in a row; nothing else comes from the device meanwhile."""
        rng, world, key = self._rng, self.world, self._keys[d]
        dues = [t]
        for _ in range(rng.randint(*world.burst_size) - 1):
            dues.append(dues[-1] + rng.uniform(*world.burst_gap))
        events = [self._event(d, due, "fail", next(self._opening_sources[d])) for due in dues]
        self._bursts[d] = [(due, event_id) for due, (event_id, _) in zip(dues, events, strict=True)]
        self._hold[d] = max(self._hold[d], dues[-1] + 1)
        truth = self._truth("burst", d, t, dues[-1], event_ids=[event_id for event_id, _ in events])
        for due, (_, value) in zip(dues[1:], events[1:], strict=True):
            self._push(due, d, (EVENTS, key, value, [truth] if due == dues[-1] else None))
        return EVENTS, key, events[0][1], None

    def _duplicate(self, d: int, t: float) -> Record:
        """An event whose acknowledgement got lost: the same bytes come again."""
        topic, key, value, truths = self._step(d, t)
        again = t + self._rng.uniform(*self.world.duplicate_delay)
        truth = self._truth("duplicate", d, t, again, event_ids=[_event_id(value)])
        self._repeats[d] = max(self._repeats.get(d, 0.0), again)
        self._push(again, d, (topic, key, value, [truth]))
        return topic, key, value, truths

    def _malformed(self, d: int, t: float) -> Record:
        """A report more, spoilt; the door itself does not move."""
        mistake = next(self._mistakes)
        event_id, value = self._event(d, t, "open", next(self._opening_sources[d]))
        truth = self._truth("malformed", d, t, t, event_ids=[event_id], topic=EVENTS, mistake=mistake)
        return EVENTS, self._keys[d], EVENT_MISTAKES[mistake](value.decode()), [truth]

    def _outage(self, d: int, t: float) -> Record:
        """A last event, then silence. Of a device that buffers, what happens meanwhile comes late, in order."""
        record, world = self._step(d, t), self.world
        if d in self._outages or self._repeats.get(d, 0.0) > t:
            return record
        low, high = world.outage_range
        end = t + min(high, max(low, self._rng.lognormvariate(math.log(world.outage_median), 1)))
        buffers = self._rng.random() < world.outage_buffered
        self._outages[d] = (t, end, buffers)
        if buffers:
            end = self._buffer_events(d, t, end)
        self._hold[d] = max(self._hold[d], end)
        return record

    def _buffer_events(self, d: int, t: float, end: float) -> float:
        """Queues the events that happen in t..end to be sent after end; returns when the last one is."""
        happens, sent = max(self._hold[d], t + self._least_gap), end
        for _ in range(self.world.buffer_size):
            if happens >= end:
                break
            topic, key, value, truths = self._step(d, happens)
            late = self._truth("late", d, happens, sent, event_ids=[_event_id(value)])
            self._push(sent, d, (topic, key, value, [*(truths or []), late]))
            happens, sent = max(self._hold[d], happens + self._least_gap), sent + self.world.replay_gap
        return sent

    # Health

    def _health(self, t: float) -> Record | None:
        d = self._order[self._health_turn % self._count]
        self._health_turn += 1
        truths: list[Truth] = []
        online = True
        if d in self._outages:
            start, end, buffers = self._outages[d]
            if t >= end:
                del self._outages[d]
                truths.append(self._truth("outage", d, start, end, buffered=buffers))
            elif buffers or t - start < 2 * self._interval:
                return None
            else:
                online = False  # so says its hub, after two reports in a row stayed away
        battery, signal = self._measure(d, t, truths)
        ms = self._start_ms + int(t * 1000) + self._skew_ms[d]
        second = self._seconds.get(ms // 1000) or self._second(ms // 1000)
        value = (
            f'{{"device_id":"{self._ids[d]}","reported_at":"{second}{ms % 1000:03d}Z",'
            f'"battery_pct":{battery if online else "null"},"signal_strength_dbm":{signal if online else "null"},'
            f'"is_online":{"true" if online else "false"}}}'
        )
        self._health_until_malformed -= 1
        if self._health_until_malformed > 0 or truths:  # what the ground truth tells of stays readable
            return HEALTH, self._keys[d], value.encode(), truths or None
        self._health_until_malformed = self._gap(self._malformed_share)
        mistake = next(self._health_mistakes)
        truths.append(self._truth("malformed", d, t, t, event_ids=[], topic=HEALTH, mistake=mistake))
        return HEALTH, self._keys[d], HEALTH_MISTAKES[mistake](value), truths

    def _measure(self, d: int, t: float, truths: list[Truth]) -> tuple[str, int]:
        world = self.world
        self._signal[d] = signal = (
            self._signal_mean[d] + world.signal_memory * (self._signal[d] - self._signal_mean[d]) + next(self._noise)
        )
        if self.fleet.models[d].battery_months is None:
            return "null", round(signal)
        battery = self._battery[d] - self._drain_report[d] - self._drain_operation[d] * self._operations[d]
        self._operations[d] = 0
        if battery <= self._replace_at[d]:
            truths.append(self._truth("battery_replacement", d, t, t, before=round(max(battery, 0), 1), after=100.0))
            battery = 100.0
        self._battery[d] = battery
        return f"{battery:.1f}", round(signal)

    # Times

    def _until_opening(self, d: int, t: float) -> float:
        """Seconds until a closed door opens: a Poisson process whose rate follows the household's clock (thinning)."""
        rng, peak, zone, at = self._rng, self._rhythm_peak, self.fleet.homes[d][2], t
        while True:
            at += rng.expovariate(self._openings[d] * peak)
            if rng.random() * peak < self._rhythm(zone, self._start_ms // 1000 + int(at)):
                return at - t

    def _rhythm(self, zone: str, second: int) -> float:
        """How busy this hour is, the mean over a week being 1. Offsets of time zones are whole quarters of an hour."""
        quarter = second // 900
        rhythm = self._rhythms.get((zone, quarter))
        if rhythm is None:
            if len(self._rhythms) > 100_000:
                self._rhythms.clear()
            local = datetime.fromtimestamp(quarter * 900, ZoneInfo(zone))
            hours = self.world.weekend_hours if local.weekday() >= 5 else self.world.weekday_hours
            rhythm = self._rhythms[zone, quarter] = hours[local.hour] * self._rhythm_scale
        return rhythm

    def _second(self, second: int) -> str:
        """The text of a second up to its fraction's point; kept, since events of one second come together."""
        if len(self._seconds) > 10_000:
            self._seconds.clear()
        text = self._seconds[second] = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        return text

    def _clock(self, ms: int) -> str:
        return f"{self._second(ms // 1000)}{ms % 1000:03d}Z"

    # Ground truth

    def _truth(self, kind: str, d: int, start: float, end: float | None, **more: Any) -> Truth:
        """Times are by the device's own clock, as its reports have them."""
        zero = self._start_ms + self._skew_ms[d]
        by = None if end is None else self._clock(zero + int(end * 1000))
        entry = {
            "kind": kind,
            "device_id": self._ids[d],
            "start": self._clock(zero + int(start * 1000)),
            "end": by,
        }
        return entry | more

    def unfinished(self, due: float) -> list[Truth]:
        """What is under way at `due`, where the reader of the stream stopped: `end` is None unless it is past."""
        truths = []
        for d, opened in enumerate(self._opened):
            if opened >= 0 and due - opened > self.world.left_open_after:
                truths.append(self._truth("left_open", d, opened, None, event_ids=[self._open_id[d]]))
        for d, (start, end, buffers) in self._outages.items():
            truths.append(self._truth("outage", d, start, end if end <= due else None, buffered=buffers))
        for d, failures in self._bursts.items():
            sent = [event_id for at, event_id in failures if at <= due]
            if self.world.burst_size[0] <= len(sent) < len(failures):
                truths.append(self._truth("burst", d, failures[0][0], None, event_ids=sent))
        return truths


def _event_id(value: bytes) -> str:
    return value[13:49].decode()
