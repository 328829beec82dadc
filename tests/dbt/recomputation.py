"""Every mart once more, in plain Python, from the marts' definitions and from nothing that the models' SQL does.

Simple before fast: all of the raw rows and of the snapshots' are read, and every mart is made anew from them. The order
of a row's fields is that of the mart's columns.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from itertools import pairwise
from math import sqrt
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

Row = dict[str, Any]
Key = tuple[Any, ...]

KEYS = {
    "dim_devices": ("device_version_id",),
    "dim_households": ("household_id",),
    "fct_access_events": ("event_id",),
    "fct_access_hourly": ("device_id", "hour_starts_at"),
    "fct_fleet_hourly": ("hour_starts_at", "local_date", "local_hour"),
    "fct_triggers_daily": ("household_id", "local_date", "trigger_source", "event_type"),
    "fct_open_sessions": ("session_id",),
    "fct_offline_sessions": ("device_id", "started_at"),
    "fct_device_health_hourly": ("device_id", "hour_starts_at"),
    "fct_device_daily_summary": ("device_id", "local_date"),
    "fct_battery_forecast": ("device_id",),
    "fct_anomalies": ("anomaly_id",),
    "rpt_device_current": ("device_id",),
    "rpt_pipeline_health": ("stream", "minute_starts_at"),
}

HEALTH_INTERVAL_S = 30
SILENT_AFTER = timedelta(seconds=2.5 * HEALTH_INTERVAL_S)
LATE_AFTER_S = 120
WARN_AFTER_S = 120
ALERT_AFTER_S = 600
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
BEGINNING = datetime.min.replace(tzinfo=UTC)
TOPICS = {"events": "smart-access.events", "health": "smart-access.health"}

# PostgreSQL's real is widened to double precision as it is, where the driver would give its shortest decimal
INPUTS = {
    "events": "SELECT event_id, device_id, event_ts AS at, event_type, trigger_source, ingested_at"
    " FROM raw_access_events ORDER BY device_id, event_ts, event_id",
    "reports": "SELECT device_id, reported_at AS at, battery_pct::float8, signal_strength_dbm::float8, is_online,"
    " ingested_at FROM raw_device_health ORDER BY device_id, reported_at",
    "devices": "SELECT * FROM raw_devices",
    "households": "SELECT * FROM raw_households",
    "versions": "SELECT * FROM snapshots.devices_history ORDER BY device_id, dbt_valid_from",
    "minutes": "SELECT * FROM ingest_minutes",
    "horizons": "SELECT * FROM device_horizons WHERE stream = 'events'",
}


def read_inputs(connection: Any) -> dict[str, list[Row]]:
    return {name: read(connection, query) for name, query in INPUTS.items()}


def read(connection: Any, query: str) -> list[Row]:
    """The query's rows, every time in UTC."""
    with connection.cursor() as cursor:
        cursor.execute(query)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, map(in_utc, row), strict=True)) for row in cursor.fetchall()]


def in_utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """The rows by key, each group in the order in which its rows came."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def newest(rows: Iterable[Row], field: str = "ingested_at") -> datetime:
    return max(row[field] for row in rows)


def percentile(values: Iterable[float], fraction: float) -> float | None:
    """As percentile_cont: between the two nearest values, in proportion."""
    ordered = sorted(values)
    if not ordered:
        return None
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def present(rows: Iterable[Row], field: str) -> list[Any]:
    return [row[field] for row in rows if row[field] is not None]


def overlap(start: datetime, end: datetime, other_start: datetime, other_end: datetime) -> float:
    """Seconds that two spans share."""
    return max(0.0, (min(end, other_end) - max(start, other_start)).total_seconds())


class Marts:
    """All marts of what `inputs` holds; each property is one, or a step on the way to several."""

    def __init__(self, inputs: dict[str, list[Row]]):
        self.inputs = inputs
        self.zones = {
            row["household_id"]: row["timezone"] if row["timezone"] in available_timezones() else "UTC"
            for row in inputs["households"]
        }
        arrivals = [row["ingested_at"] for row in inputs["events"] + inputs["reports"]]
        self.clock = max(arrivals, default=BEGINNING)
        self.reports_by_device = grouped(inputs["reports"], lambda row: row["device_id"])

    def __getitem__(self, mart: str) -> list[Row]:
        rows: list[Row] = getattr(self, mart)
        return rows

    # Who a device belonged to, and the local time there

    @cached_property
    def dim_devices(self) -> list[Row]:
        regions = {row["household_id"]: row["region"] for row in self.inputs["households"]}
        rows = []
        for device_id, versions in grouped(self.inputs["versions"], lambda row: row["device_id"]).items():
            for number, (version, following) in enumerate(zip(versions, [*versions[1:], None], strict=True), start=1):
                rows.append(
                    {
                        "device_version_id": f"{device_id}#{number}",
                        "device_id": device_id,
                        "household_id": version["household_id"],
                        "device_type": version["device_type"],
                        "model": version["model"],
                        "firmware_version": version["firmware_version"],
                        "region": regions.get(version["household_id"]),
                        "time_zone": self.zones.get(version["household_id"], "UTC"),
                        "version": number,
                        "is_deleted": version["is_deleted"],
                        "is_current": following is None,
                        "installed_at": version["installed_at"],
                        "valid_from": version["updated_at"],
                        "valid_to": following["updated_at"] if following else None,
                        "noticed_at": version["noticed_at"],
                    }
                )
        return rows

    @cached_property
    def versions_by_device(self) -> dict[Any, list[Row]]:
        return grouped(self.dim_devices, lambda row: row["device_id"])

    @cached_property
    def current_versions(self) -> dict[str, Row]:
        return {row["device_id"]: row for row in self.dim_devices if row["is_current"]}

    def zone_now(self, device_id: str) -> ZoneInfo:
        return ZoneInfo(self.current_versions[device_id]["time_zone"] if device_id in self.current_versions else "UTC")

    def attributed(self, row: Row) -> Row:
        """Whose an event or a report is, and the local time there."""
        versions = self.versions_by_device.get(row["device_id"], [])
        version: Row = next((each for each in reversed(versions) if each["valid_from"] <= row["at"]), {})
        if versions and not version:
            version = versions[0]
        zone = version.get("time_zone", "UTC")
        local = row["at"].astimezone(ZoneInfo(zone))
        into_hour = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
        return {
            **row,
            "device_version_id": version.get("device_version_id"),
            "household_id": version.get("household_id"),
            "time_zone": zone,
            "local_hour": local.hour,
            "local_date": local.date(),
            "hour_starts_at": row["at"] - into_hour,
            "seconds_to_row": (row["ingested_at"] - row["at"]).total_seconds(),
        }

    @cached_property
    def events(self) -> list[Row]:
        return [self.attributed(row) for row in self.inputs["events"]]

    @cached_property
    def reports(self) -> list[Row]:
        return [self.attributed(row) for row in self.inputs["reports"]]

    @cached_property
    def dim_households(self) -> list[Row]:
        registry = {row["household_id"]: row for row in self.inputs["households"]}
        named = {row["household_id"] for row in self.dim_devices} - {None}
        rows = []
        for household_id in registry.keys() | named:
            entry = registry.get(household_id, {})
            members = [row for row in self.current_versions.values() if row["household_id"] == household_id]
            rows.append(
                {
                    "household_id": household_id,
                    "region": entry.get("region"),
                    "time_zone": self.zones.get(household_id, "UTC"),
                    "devices": sum(not row["is_deleted"] for row in members),
                    "is_deleted": entry.get("deleted_at") is not None,
                    "updated_at": entry.get("updated_at"),
                }
            )
        return rows

    # Events

    @cached_property
    def fct_access_events(self) -> list[Row]:
        return [
            {
                "event_id": row["event_id"],
                "device_id": row["device_id"],
                "device_version_id": row["device_version_id"],
                "household_id": row["household_id"],
                "event_type": row["event_type"],
                "trigger_source": row["trigger_source"],
                "time_zone": row["time_zone"],
                "local_hour": row["local_hour"],
                "seconds_to_row": row["seconds_to_row"],
                "is_late": row["seconds_to_row"] > LATE_AFTER_S,
                "local_date": row["local_date"],
                "hour_starts_at": row["hour_starts_at"],
                "event_at": row["at"],
                "ingested_at": row["ingested_at"],
            }
            for row in self.events
        ]

    @cached_property
    def fct_access_hourly(self) -> list[Row]:
        rows = []
        for (device_id, hour), events in grouped(
            self.events, lambda row: (row["device_id"], row["hour_starts_at"])
        ).items():
            counts = count_kinds(events)
            fails, attempts = counts["fails"], counts["opens"] + counts["fails"]
            rows.append(
                {
                    "device_id": device_id,
                    **counts,
                    "attempts": attempts,
                    "late_events": sum(row["seconds_to_row"] > LATE_AFTER_S for row in events),
                    "fail_rate": fails / attempts if attempts else None,
                    "fail_rate_lower_bound": wilson_lower_bound(fails, attempts) if attempts else None,
                    **local_time(events),
                    "hour_starts_at": hour,
                    "source_ingested_at": newest(events),
                }
            )
        return rows

    @cached_property
    def fct_triggers_daily(self) -> list[Row]:
        owned = [row for row in self.events if row["household_id"] is not None]
        rows = []
        for (household_id, day), events in grouped(owned, lambda row: (row["household_id"], row["local_date"])).items():
            for (source, kind), some in grouped(events, lambda row: (row["trigger_source"], row["event_type"])).items():
                rows.append(
                    {
                        "household_id": household_id,
                        "trigger_source": source,
                        "event_type": kind,
                        "events": len(some),
                        "share": len(some) / len(events),
                        "local_date": day,
                        "source_ingested_at": newest(some),
                    }
                )
        return rows

    @cached_property
    def fct_open_sessions(self) -> list[Row]:
        rows = []
        silent = {row["device_id"] for row in self.fct_offline_sessions if row["ended_at"] is None}
        for device_id, events in grouped(self.events, lambda row: row["device_id"]).items():
            opens: list[Row] = []
            sessions: list[tuple[list[Row], Row | None]] = []
            for event in events:
                if event["event_type"] == "open":
                    opens.append(event)
                elif event["event_type"] == "close" and opens:
                    sessions.append((opens, event))
                    opens = []
            if opens:
                sessions.append((opens, None))
            for opens, close in sessions:
                first = opens[0]
                seconds = max(0.0, ((close["at"] if close else self.clock) - first["at"]).total_seconds())
                unclosed = "unknown_offline" if device_id in silent else "still_open"
                rows.append(
                    {
                        "session_id": first["event_id"],
                        "device_id": device_id,
                        "household_id": first["household_id"],
                        "closed_event_id": close["event_id"] if close else None,
                        "open_source": first["trigger_source"],
                        "close_source": close["trigger_source"] if close else None,
                        "status": "closed" if close else unclosed,
                        "left_open": "alert" if seconds > ALERT_AFTER_S else "warn" if seconds > WARN_AFTER_S else "no",
                        "reopens": len(opens) - 1,
                        "duration_seconds": seconds,
                        "local_date": first["local_date"],
                        "opened_at": first["at"],
                        "closed_at": close["at"] if close else None,
                        "source_ingested_at": newest([*opens, close] if close else opens),
                    }
                )
        return rows

    # Health

    @cached_property
    def fct_offline_sessions(self) -> list[Row]:
        return [
            silence
            for device_id, reports in self.reports_by_device.items()
            for silence in self.silences(device_id, reports)
        ]

    def silences(self, device_id: str, reports: list[Row]) -> Iterable[Row]:
        online = [place for place, row in enumerate(reports) if row["is_online"]]
        if not online or online[0] > 0:  # offline from its first report on
            yield self.silence(device_id, reports, 0, online[0] if online else None)
        for here, there in zip(online, [*online, None][1:], strict=True):
            if there is not None:
                is_silent = there > here + 1 or reports[there]["at"] - reports[here]["at"] > SILENT_AFTER
            else:
                is_silent = here < len(reports) - 1 or self.clock - reports[here]["at"] > SILENT_AFTER
            if is_silent:
                yield self.silence(device_id, reports, here, there)

    def silence(self, device_id: str, reports: list[Row], first: int, last: int | None) -> Row:
        """The silence from the report at place `first` to the one at `last`; None if it goes on."""
        rest = reports[first:] if last is None else reports[first : last + 1]
        offline = sum(not row["is_online"] for row in rest)
        started_at = rest[0]["at"]
        ended_at = None if last is None else rest[-1]["at"]
        return {
            "device_id": device_id,
            "cause": "reported_offline" if offline else "no_report",
            "offline_reports": offline,
            "duration_seconds": max(0.0, ((ended_at or self.clock) - started_at).total_seconds()),
            "started_at": started_at,
            "ended_at": ended_at,
            "source_ingested_at": newest(rest),
        }

    @cached_property
    def silences_by_device(self) -> dict[Any, list[Row]]:
        return grouped(self.fct_offline_sessions, lambda row: row["device_id"])

    @cached_property
    def fct_device_health_hourly(self) -> list[Row]:
        rows = []
        for (device_id, hour), reports in grouped(
            self.reports, lambda row: (row["device_id"], row["hour_starts_at"])
        ).items():
            batteries = present(reports, "battery_pct")
            signals = present(reports, "signal_strength_dbm")
            first = self.reports_by_device[device_id][0]["at"]
            rows.append(
                {
                    "device_id": device_id,
                    "signal_band": signal_band(percentile(signals, 0.5)),
                    "battery_min_pct": min(batteries, default=None),
                    "battery_last_pct": batteries[-1] if batteries else None,
                    "signal_median_dbm": percentile(signals, 0.5),
                    "signal_p10_dbm": percentile(signals, 0.1),
                    "signal_sd_dbm": statistics.stdev(signals) if len(signals) > 1 else None,
                    "reports": len(reports),
                    "online_reports": sum(row["is_online"] for row in reports),
                    "reports_expected": overlap(hour, hour + HOUR, first, self.clock) / HEALTH_INTERVAL_S,
                    **local_time(reports),
                    "hour_starts_at": hour,
                    "source_ingested_at": newest(reports),
                }
            )
        return rows

    @cached_property
    def fct_fleet_hourly(self) -> list[Row]:
        def key(row: Row) -> Key:
            return row["hour_starts_at"], row["local_date"], row["local_hour"]

        accesses, healths = grouped(self.fct_access_hourly, key), grouped(self.fct_device_health_hourly, key)
        rows = []
        for hour, day, local_hour in accesses.keys() | healths.keys():
            access = accesses.get((hour, day, local_hour), [])
            health = healths.get((hour, day, local_hour), [])
            rows.append(
                {
                    **{
                        name: sum(row[name] for row in access)
                        for name in ("opens", "closes", "fails", "attempts", "late_events")
                    },
                    "reporting_devices": len(health),
                    **{
                        f"{band}_devices": sum(row["signal_band"] == band for row in health)
                        for band in ("excellent", "good", "fair", "weak", "unusable")
                    },
                    "local_hour": local_hour,
                    "local_date": day,
                    "hour_starts_at": hour,
                    "source_ingested_at": newest(access + health, "source_ingested_at"),
                }
            )
        return rows

    # Days

    @cached_property
    def fct_device_daily_summary(self) -> list[Row]:
        events = by_day_of_hour(self.events, self.fct_access_hourly)
        reports = by_day_of_hour(self.reports, self.fct_device_health_hourly)
        sessions = grouped(self.fct_open_sessions, lambda row: (row["device_id"], row["local_date"]))
        silences: dict[Any, list[Row]] = defaultdict(list)
        for silence in self.fct_offline_sessions:
            for day in self.days_of(silence):
                silences[silence["device_id"], day].append(silence)
        return [
            self.day(*key, events.get(key, []), reports.get(key, []), sessions.get(key, []), silences.get(key, []))
            for key in events.keys() | reports.keys() | sessions.keys() | silences.keys()
        ]

    def days_of(self, silence: Row) -> Iterable[date]:
        """The local days, in the zone that the device has now, into which a silence reaches."""
        zone = self.zone_now(silence["device_id"])
        first = silence["started_at"].astimezone(zone).date()
        end = silence["ended_at"] or self.clock
        yield first
        day = first + DAY
        while midnight(day, zone) < end:
            yield day
            day += DAY

    def day(
        self, device_id: str, day: date, events: list[Row], reports: list[Row], sessions: list[Row], silences: list[Row]
    ) -> Row:
        zone = self.zone_now(device_id)
        start, end = midnight(day, zone), midnight(day + DAY, zone)
        observed_s = offline_s = 0.0
        if device_id in self.reports_by_device:
            first = self.reports_by_device[device_id][0]["at"]
            start, end = max(start, first), min(end, self.clock)
            observed_s = max(0.0, (end - start).total_seconds())
            offline_s = sum(
                overlap(start, end, row["started_at"], row["ended_at"] or self.clock)
                for row in self.silences_by_device[device_id]
            )
        counts = count_kinds(events)
        attempts = counts["opens"] + counts["fails"]
        batteries = present(reports, "battery_pct")
        left_open = [row["duration_seconds"] for row in sessions if row["duration_seconds"] > WARN_AFTER_S]
        expected = observed_s / HEALTH_INTERVAL_S
        return {
            "device_id": device_id,
            **counts,
            "fail_rate": counts["fails"] / attempts if attempts else None,
            "left_open_minutes": sum(left_open) / 60.0,
            "health_reports": len(reports),
            "battery_min_pct": min(batteries, default=None),
            "battery_last_pct": batteries[-1] if batteries else None,
            "offline_minutes": offline_s / 60.0,
            "observed_minutes": observed_s / 60.0,
            "uptime": 1 - offline_s / observed_s if observed_s else None,
            "completeness": min(1.0, len(reports) / expected) if expected else None,
            "local_date": day,
            "source_ingested_at": max(
                [row["ingested_at"] for row in events + reports]
                + [row["source_ingested_at"] for row in sessions + silences]
            ),
        }

    @cached_property
    def fct_battery_forecast(self) -> list[Row]:
        rows = []
        days = sorted(self.fct_device_daily_summary, key=lambda row: row["local_date"])
        read_days = [row for row in days if row["battery_last_pct"] is not None]
        for device_id, readings in grouped(read_days, lambda row: row["device_id"]).items():
            last = readings[-1]
            window_starts = last["local_date"] - 13 * DAY
            replaced_on = None
            since = window_starts
            for before, after in pairwise(readings):
                is_replacement = after["battery_last_pct"] - before["battery_last_pct"] >= 20
                if is_replacement and after["local_date"] >= window_starts:
                    replaced_on = since = after["local_date"]
            used = [row for row in readings if row["local_date"] >= since]
            drain = theil_sen_drain(used)
            charge = last["battery_last_pct"]
            days_to_low = days_until(charge, 20, drain)
            rows.append(
                {
                    "device_id": device_id,
                    "band": battery_band(charge, days_to_low),
                    "battery_pct": charge,
                    "readings": len(used),
                    "drain_pct_per_day": drain,
                    "days_to_low": days_to_low,
                    "days_to_empty": days_until(charge, 5, drain),
                    "replaced_on": replaced_on,
                    "last_read_on": last["local_date"],
                }
            )
        return rows

    # Detections

    @cached_property
    def fct_anomalies(self) -> list[Row]:
        detections = [
            *self.failed_bursts(),
            *self.unusual_hours(),
            *self.flapping(),
            *self.battery_cliffs(),
            *self.silent(),
            *self.left_open(),
        ]
        rows = []
        for rule, device_id, severity, evidence, is_open, started_at, ended_at, source_ingested_at in detections:
            name = f"{rule}|{device_id}|{started_at:%Y-%m-%d %H:%M:%S.%f}"
            rows.append(
                {
                    "anomaly_id": hashlib.md5(name.encode()).hexdigest(),  # noqa: S324 - an id, no secret
                    "rule": rule,
                    "device_id": device_id,
                    "severity": severity,
                    "evidence": evidence,
                    "is_open": is_open,
                    "started_at": started_at,
                    "ended_at": ended_at,
                    "source_ingested_at": source_ingested_at,
                }
            )
        return rows

    def failed_bursts(self) -> Iterable[Key]:
        """Windows of five failures within 600 s and no open between; windows that share a failure are one burst."""
        for device_id, events in grouped(self.events, lambda row: row["device_id"]).items():
            runs: list[list[Row]] = [[]]
            for event in events:
                if event["event_type"] == "open":
                    runs.append([])
                elif event["event_type"] == "fail":
                    runs[-1].append(event)
            for run in runs:
                windows = [
                    (place, place + 4)
                    for place in range(len(run) - 4)
                    if (run[place + 4]["at"] - run[place]["at"]).total_seconds() <= 600
                ]
                for first, last in joined(windows):
                    fails = run[first : last + 1]
                    seconds = (fails[-1]["at"] - fails[0]["at"]).total_seconds()
                    severity = "critical" if len(fails) >= 10 else "warning"
                    evidence = {"fails": len(fails), "seconds": seconds}
                    yield (
                        "failed_burst", device_id, severity, evidence, False,
                        fails[0]["at"], fails[-1]["at"], newest(fails),
                    )  # fmt: skip

    def unusual_hours(self) -> Iterable[Key]:
        opened = [row for row in self.fct_access_hourly if row["opens"] > 0]
        for device_id, hours in grouped(opened, lambda row: row["device_id"]).items():
            for row in hours:
                before = [each for each in hours if DAY <= row["local_date"] - each["local_date"] <= 28 * DAY]
                opens_before = sum(each["opens"] for each in before)
                neighbours = {(row["local_hour"] + step) % 24 for step in (-1, 0, 1)}
                if (
                    opens_before >= 50
                    and len({each["local_date"] for each in before}) >= 14
                    and neighbours.isdisjoint(each["local_hour"] for each in before)
                ):
                    start = row["hour_starts_at"]
                    evidence = {"opens": row["opens"], "opens_before": opens_before}
                    yield (
                        "unusual_hour", device_id, "info", evidence, False,
                        start, start + HOUR, row["source_ingested_at"],
                    )  # fmt: skip

    def flapping(self) -> Iterable[Key]:
        for device_id, reports in self.reports_by_device.items():
            changes = [
                place
                for place in range(1, len(reports))
                if reports[place]["is_online"] != reports[place - 1]["is_online"]
            ]
            islands: list[list[int]] = []
            for place in changes:
                if islands and place - islands[-1][-1] <= 20:
                    islands[-1].append(place)
                else:
                    islands.append([place])
            for island in islands:
                starts = [number for number in range(len(island) - 3) if island[number + 3] - island[number] <= 19]
                if not starts:
                    continue
                first, last = island[starts[0]], island[-1]
                end = last + 20 if last + 20 < len(reports) else None
                rest = reports[first:] if end is None else reports[first : end + 1]
                evidence = {"changes": len(island) - starts[0], "reports": last - first + 1}
                yield (
                    "flapping", device_id, "warning", evidence, end is None,
                    reports[first]["at"], None if end is None else reports[end]["at"], newest(rest),
                )  # fmt: skip

    def battery_cliffs(self) -> Iterable[Key]:
        hours = sorted(self.fct_device_health_hourly, key=lambda row: row["hour_starts_at"])
        read_hours = [row for row in hours if row["battery_last_pct"] is not None]
        for device_id, rows in grouped(read_hours, lambda row: row["device_id"]).items():
            for before, after in pairwise(rows):
                start = after["hour_starts_at"]
                low, high = after["battery_last_pct"], before["battery_last_pct"]
                if start - before["hour_starts_at"] <= DAY and high - low >= 10:
                    evidence = {"from_pct": high, "to_pct": low}
                    yield (
                        "battery_cliff", device_id, "warning", evidence, False,
                        start, start + HOUR, newest([before, after], "source_ingested_at"),
                    )  # fmt: skip

    def silent(self) -> Iterable[Key]:
        for row in self.fct_offline_sessions:
            seconds = row["duration_seconds"]
            if seconds >= 900:
                yield (
                    "silent", row["device_id"], "critical" if seconds >= 3600 else "warning",
                    {"cause": row["cause"], "seconds": seconds}, row["ended_at"] is None,
                    row["started_at"], row["ended_at"], row["source_ingested_at"],
                )  # fmt: skip

    def left_open(self) -> Iterable[Key]:
        for row in self.fct_open_sessions:
            seconds = row["duration_seconds"]
            if seconds > ALERT_AFTER_S and row["status"] != "unknown_offline":
                yield (
                    "left_open", row["device_id"], "critical" if seconds >= 3600 else "warning",
                    {"seconds": seconds, "status": row["status"]}, row["closed_at"] is None,
                    row["opened_at"], row["closed_at"], row["source_ingested_at"],
                )  # fmt: skip

    # Reports

    @cached_property
    def rpt_device_current(self) -> list[Row]:
        events = grouped(self.events, lambda row: row["device_id"])
        hours = grouped(self.fct_device_health_hourly, lambda row: row["device_id"])
        bands = {row["device_id"]: row["band"] for row in self.fct_battery_forecast}
        kept = {device_id for device_id, version in self.current_versions.items() if not version["is_deleted"]}
        horizons = {row["device_id"]: row for row in self.inputs["horizons"]}
        rows = []
        for device_id in kept | events.keys() | self.reports_by_device.keys():
            version = self.current_versions.get(device_id, {})
            reports = self.reports_by_device.get(device_id, [])
            is_silent = any(row["ended_at"] is None for row in self.silences_by_device.get(device_id, []))
            moves = [row for row in events.get(device_id, []) if row["event_type"] != "fail"]
            state = (
                "unknown" if is_silent or not moves else {"open": "open", "close": "closed"}[moves[-1]["event_type"]]
            )
            hour = max(hours.get(device_id, []), key=lambda row: row["hour_starts_at"], default={})
            batteries = present(reports, "battery_pct")
            rows.append(
                {
                    "device_id": device_id,
                    "household_id": version.get("household_id"),
                    "device_type": version.get("device_type"),
                    "model": version.get("model"),
                    "firmware_version": version.get("firmware_version"),
                    "region": version.get("region"),
                    "time_zone": version.get("time_zone", "UTC"),
                    "state": state,
                    "battery_band": bands.get(device_id, "unknown"),
                    "signal_band": hour.get("signal_band"),
                    "battery_pct": batteries[-1] if batteries else None,
                    "signal_dbm": hour.get("signal_median_dbm"),
                    "open_anomalies": sum(row["is_open"] for row in self.anomalies_by_device.get(device_id, [])),
                    "is_online": bool(reports) and not is_silent,
                    "state_since": None if state == "unknown" else moves[-1]["at"],
                    "last_seen_at": max((row["at"] for row in events.get(device_id, []) + reports), default=None),
                    "swept_from": horizons.get(device_id, {}).get("swept_from"),
                    "swept_until": horizons.get(device_id, {}).get("horizon"),
                }
            )
        return rows

    @cached_property
    def anomalies_by_device(self) -> dict[Any, list[Row]]:
        return grouped(self.fct_anomalies, lambda row: row["device_id"])

    @cached_property
    def rpt_pipeline_health(self) -> list[Row]:
        rows = []
        for stream, topic in TOPICS.items():
            arrived = grouped(self.inputs_of(stream), lambda row: row["ingested_at"].replace(second=0, microsecond=0))
            counted = grouped(
                (
                    row
                    for row in self.inputs["minutes"]
                    if row["topic"] == topic and row["duplicates"] + row["dead"] > 0
                ),
                lambda row: row["minute_starts_at"],
            )
            for minute in arrived.keys() | counted.keys():
                lags = [(row["ingested_at"] - row["at"]).total_seconds() for row in arrived.get(minute, [])]
                counts = counted.get(minute, [])
                rows.append(
                    {
                        "stream": stream,
                        "rows_in": len(lags),
                        "duplicates": sum(row["duplicates"] for row in counts),
                        "late_rows": sum(lag > LATE_AFTER_S for lag in lags),
                        "dead_letters": sum(row["dead"] for row in counts),
                        "lag_p50_seconds": percentile(lags, 0.5),
                        "lag_p95_seconds": percentile(lags, 0.95),
                        "lag_p99_seconds": percentile(lags, 0.99),
                        "minute_starts_at": minute,
                    }
                )
        return rows

    def inputs_of(self, stream: str) -> list[Row]:
        return self.inputs["events" if stream == "events" else "reports"]


def count_kinds(events: list[Row]) -> Row:
    kinds = {"opens": "open", "closes": "close", "fails": "fail"}
    return {name: sum(row["event_type"] == kind for row in events) for name, kind in kinds.items()}


def local_time(rows: list[Row]) -> Row:
    """Day and hour of an hour's rows: the later ones if the device moved within it."""
    local_date, local_hour = max((row["local_date"], row["local_hour"]) for row in rows)
    return {"local_hour": local_hour, "local_date": local_date}


def by_day_of_hour(rows: list[Row], hours: list[Row]) -> dict[Any, list[Row]]:
    """Events or reports by device and day, where an hour is of one day as a whole."""
    days = {(hour["device_id"], hour["hour_starts_at"]): hour["local_date"] for hour in hours}
    return grouped(rows, lambda row: (row["device_id"], days[row["device_id"], row["hour_starts_at"]]))


def midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(), tzinfo=zone).astimezone(UTC)


def wilson_lower_bound(successes: int, trials: int, z: float = 1.96) -> float:
    """Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927)."""
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    spread = z * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return (centre - spread) / (1 + z * z / trials)


def signal_band(dbm: float | None) -> str | None:
    if dbm is None:
        return None
    floors = {"excellent": -50, "good": -67, "fair": -75, "weak": -85}
    return next((band for band, floor in floors.items() if dbm >= floor), "unusable")


def theil_sen_drain(readings: list[Row]) -> float | None:
    """Points lost a day: the median of the slopes of all pairs of days; None with fewer than two."""
    slopes = [
        (later["battery_last_pct"] - earlier["battery_last_pct"]) / (later["local_date"] - earlier["local_date"]).days
        for place, earlier in enumerate(readings)
        for later in readings[place + 1 :]
    ]
    return -statistics.median(slopes) if slopes else None


def days_until(charge: float, level: float, drain: float | None) -> float | None:
    if charge <= level:
        return 0.0
    if drain is None or drain < 0.02:
        return None
    return (charge - level) / drain


def battery_band(charge: float, days_to_low: float | None) -> str:
    if charge <= 5:
        return "empty"
    if charge <= 20:
        return "low"
    if days_to_low is None:
        return "unknown"
    return next((f"within_{limit}_days" for limit in (7, 14, 30) if days_to_low <= limit), "later")


def joined(windows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of places, in order; those that share a place become one."""
    spans: list[tuple[int, int]] = []
    for first, last in windows:
        if spans and first <= spans[-1][1]:
            spans[-1] = (spans[-1][0], last)
        else:
            spans.append((first, last))
    return spans
