"""What the marts must say after sweeps: of what was swept, what they said before; of all else, what they would say had
nothing ever been swept (recomputation.py on every row that there ever was).

For a registry that does not change after the first sweep: the local hours of what was swept do not follow it.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from mart_comparison import mart_rows
from recomputation import DAY, HOUR, KEYS, Marts, Row, midnight, read, read_inputs

Rows = dict[str, list[Row]]
FOREVER = datetime.max.replace(tzinfo=UTC)
INSTANT = timedelta(microseconds=1)
EVENT_RULES = {"failed_burst", "unusual_hour", "left_open"}
HOURS = {"fct_access_hourly": "events", "fct_device_health_hourly": "health"}


class Memory:
    """Every raw row that there ever was, and the marts as they were when last looked at."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[Any, Row]] = {"events": {}, "reports": {}}
        # what was swept may be delivered once more, and is a row then
        self._arrivals: dict[str, dict[Any, Row]] = {"events": {}, "reports": {}}
        self._came_late: set[Any] = (
            set()
        )  # into what had been swept by then: of no account for hours, days and sequences
        self._horizons: dict[tuple[str, str], Row] = {}
        self._aggregates_cutoff = datetime.min.replace(tzinfo=UTC)
        self._before: Rows = {mart: [] for mart in KEYS}

    def expected(self, warehouse: Any) -> Rows:
        """The marts as they must be after the run of the models or the sweep that has just been."""
        inputs = read_inputs(warehouse)
        self._take_in(inputs)
        self._look_at_horizons(warehouse)
        there = _Marts(inputs)
        counted = {name: self._counted(name) for name in self._rows}
        all_marts = Marts({**inputs, **{name: list(rows.values()) for name, rows in self._arrivals.items()}})
        unswept = Marts({**inputs, **counted})
        unswept.clock = all_marts.clock
        expected: Rows = {"dim_devices": there.dim_devices, "dim_households": there.dim_households}
        expected |= {"fct_access_events": there.fct_access_events}
        expected["rpt_pipeline_health"] = [
            row for row in all_marts.rpt_pipeline_health if row["minute_starts_at"] >= self._aggregates_cutoff
        ]
        expected |= {"fct_fleet_hourly": self._fleet(unswept)}
        for mart in FROZEN:
            expected[mart] = self._with_what_was_swept(mart, unswept, there)
            if mart not in HOURS:  # what follows is made from it
                unswept.__dict__[mart] = expected[mart]
        unswept.__dict__["fct_device_health_hourly"] = expected["fct_device_health_hourly"]
        return expected | {mart: unswept[mart] for mart in ("fct_battery_forecast", "rpt_device_current")}

    def look(self, warehouse: Any) -> Rows:
        """The marts as they are, to be remembered."""
        self._before = mart_rows(warehouse)
        return self._before

    def _take_in(self, inputs: Rows) -> None:
        for name, known in self._rows.items():
            for row in inputs[name]:
                key = _identity(row)
                self._arrivals[name][key, row["ingested_at"]] = row
                if key not in known:
                    known[key] = row
                    horizon = self._horizons.get((STREAMS[name], row["device_id"]))
                    if horizon and horizon["swept_from"] <= row["at"] < horizon["horizon"]:
                        self._came_late.add(key)

    def _look_at_horizons(self, warehouse: Any) -> None:
        lines = read(warehouse, "SELECT * FROM device_horizons")
        self._horizons = {(line["stream"], line["device_id"]): line for line in lines}
        self._cutoff_before = self._aggregates_cutoff
        [sweeps] = read(warehouse, "SELECT max(aggregates_cutoff) AS cutoff FROM sweeps")
        self._aggregates_cutoff = sweeps["cutoff"] or self._aggregates_cutoff

    def _counted(self, name: str) -> list[Row]:
        rows = [row for key, row in self._rows[name].items() if key not in self._came_late]
        return sorted(rows, key=lambda row: (row["device_id"], row["at"], str(row.get("event_id"))))

    # What was swept

    def _with_what_was_swept(self, mart: str, unswept: Marts, there: _Marts) -> list[Row]:
        kept = [
            row
            for row in self._before[mart]
            if self._is_frozen(mart, row, unswept) and not self._goes(mart, row, unswept, there)
        ]
        keys = {_key(mart, row) for row in kept}
        return kept + [
            row for row in unswept[mart] if not self._is_frozen(mart, row, unswept) and _key(mart, row) not in keys
        ]

    def _spans(self, mart: str, row: Row, unswept: Marts) -> list[tuple[datetime, datetime, Row]]:
        """The row's span of time, with each horizon of which it may be on the far side."""
        if mart == "fct_triggers_daily":
            versions = [each for each in unswept.dim_devices if each["household_id"] == row["household_id"]]
            zone = unswept.zones.get(row["household_id"], "UTC")
            devices = [("events", version["device_id"]) for version in versions]
        else:
            zone = str(unswept.zone_now(row["device_id"]))
            devices = [(stream, row["device_id"]) for stream in _streams(mart, row)]
        start, end = _span(mart, row, ZoneInfo(zone))
        return [(start, end, self._horizons[each]) for each in devices if each in self._horizons]

    def _is_frozen(self, mart: str, row: Row, unswept: Marts) -> bool:
        spans = self._spans(mart, row, unswept)
        if any(start < line["horizon"] and end > line["swept_from"] for start, end, line in spans):
            return True
        rests_on = {"unusual_hour": 30 * DAY, "battery_cliff": 2 * DAY}.get(row.get("rule", ""))
        return rests_on is not None and any(
            start - rests_on < min(line["horizon"], self._aggregates_cutoff) and end > line["swept_from"]
            for start, end, line in spans
        )

    def _goes(self, mart: str, row: Row, unswept: Marts, there: _Marts) -> bool:
        spans = self._spans(mart, row, unswept)
        if mart in AGGREGATES:
            return any(
                end <= line["horizon"] and end > line["swept_from"] and self._is_aged(mart, row)
                for _, end, line in spans
            )
        return any(start < line["horizon"] for start, _, line in spans) and not there.has_beginning(mart, row)

    def _is_aged(self, mart: str, row: Row) -> bool:
        if mart in HOURS:
            return bool(row["hour_starts_at"] < self._aggregates_cutoff)
        return bool(row["local_date"] < self._aggregates_cutoff.date())

    def _fleet(self, unswept: Marts) -> list[Row]:
        rows = [row for row in unswept.fct_fleet_hourly if row["hour_starts_at"] >= self._aggregates_cutoff]
        households: dict[Any, set[str]] = {}
        for mart in HOURS:
            for hour in self._before[mart]:
                version = _version_at(unswept, hour)
                if version and version["household_id"]:
                    households.setdefault(_key("fct_fleet_hourly", hour), set()).add(version["household_id"])
        for row in self._before["fct_fleet_hourly"]:
            at = row["hour_starts_at"]
            is_judged = self._cutoff_before <= at < self._aggregates_cutoff
            is_small = len(households.get(_key("fct_fleet_hourly", row), ())) < 5
            if at < self._aggregates_cutoff and not (is_judged and is_small):
                rows.append(row)
        return rows


class _Marts(Marts):
    """Of the raw rows that are there."""

    def has_beginning(self, mart: str, row: Row) -> bool:
        stream = "events" if "events" in _streams(mart, row) else "reports"
        start = row.get("started_at") or row.get("opened_at")
        end = start + (HOUR if row.get("rule") in ("unusual_hour", "battery_cliff") else INSTANT)
        return any(start <= each["at"] < end for each in self.inputs[stream] if each["device_id"] == row["device_id"])


STREAMS = {"events": "events", "reports": "health"}
AGGREGATES = (*HOURS, "fct_device_daily_summary", "fct_triggers_daily")
FROZEN = ("fct_offline_sessions", "fct_open_sessions", *AGGREGATES, "fct_anomalies")


def _identity(row: Row) -> Any:
    return row.get("event_id") or (row["device_id"], row["at"])


def _key(mart: str, row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEYS[mart])


def _streams(mart: str, row: Row) -> tuple[str, ...]:
    if mart == "fct_device_daily_summary":
        return "events", "health"
    if mart == "fct_anomalies":
        return ("events",) if row["rule"] in EVENT_RULES else ("health",)
    return (HOURS.get(mart, "health" if mart == "fct_offline_sessions" else "events"),)


def _span(mart: str, row: Row, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """From its first moment up to before its end."""
    if mart in HOURS:
        return row["hour_starts_at"], row["hour_starts_at"] + HOUR
    if mart in AGGREGATES:
        day: date = row["local_date"]
        return midnight(day, zone), midnight(day + DAY, zone)
    start = row.get("started_at") or row["opened_at"]
    end = row["closed_at"] if mart == "fct_open_sessions" else row["ended_at"]
    if end is None:
        return start, FOREVER
    if row.get("rule") in ("unusual_hour", "battery_cliff"):
        return start, end
    return start, end + INSTANT + (timedelta(minutes=10) if row.get("rule") == "failed_burst" else timedelta(0))


def _version_at(marts: Marts, hour: Row) -> Row | None:
    versions = marts.versions_by_device.get(hour["device_id"], [])
    at = hour["hour_starts_at"]
    found = [each for each in versions if each["version"] == 1 or each["valid_from"] <= at]
    found = [each for each in found if each["valid_to"] is None or at < each["valid_to"]]
    return found[-1] if found else None
