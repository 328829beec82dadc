"""The suppression list, written: by an erasure, behind a barrier to all writers, and when a device is given back."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from psycopg2.extras import execute_values

from erased_tables import Household
from suppression import DEVICE, HOUSEHOLD, digest

BARRIER_WAIT_S = 90  # for open transactions of writers; they end within 60 s

# Whoever writes rows or letters begins by writing to, or locking a row of, one of these
BARRIER = "LOCK TABLE ingest_offsets, file_loads, dead_letters IN EXCLUSIVE MODE"

UNFINISHED = """
SELECT erasure_id FROM suppressions JOIN erasures USING (erasure_id)
WHERE digest = %s AND erasures.ended_at IS NULL"""


def hold_writers(cursor: Any) -> None:
    """Until the transaction ends. What they had under way is in the tables then, and what comes after sees the list.

    Raises psycopg2.errors.LockNotAvailable when one of them does not come to an end.
    """
    cursor.execute("SET LOCAL lock_timeout = %s", (f"{BARRIER_WAIT_S}s",))
    cursor.execute(BARRIER)


def suppress(cursor: Any, household: Household, tombstones: bool) -> int:
    """Lays down the list, while writers are held; the audit's number, of an erasure that was begun before if so."""
    salt = _salt(cursor, make=True)
    erasure = unfinished(cursor, household.name)
    if erasure is None:
        cursor.execute("INSERT INTO erasures DEFAULT VALUES RETURNING erasure_id")
        [erasure] = cursor.fetchone()
    cursor.execute(
        "UPDATE erasures SET tombstones = greatest(tombstones, %s), recompute_all = recompute_all OR %s"
        " WHERE erasure_id = %s",
        (len(household.tombstones) + 1 if tombstones else None, bool(household.moved), erasure),
    )
    spans = [(HOUSEHOLD, household.name, "-infinity", "infinity")]
    spans += [(DEVICE, device, "-infinity", "infinity") for device in household.whole]
    spans += [(DEVICE, device, *span) for device, times in household.moved.items() for span in times]
    execute_values(
        cursor,
        "INSERT INTO suppressions AS s (kind, digest, valid_from, valid_to, erasure_id) VALUES %s"
        " ON CONFLICT (digest, valid_from) DO UPDATE"
        " SET valid_to = greatest(s.valid_to, excluded.valid_to), erasure_id = excluded.erasure_id",
        [(kind, digest(salt, kind, name), since, until, erasure) for kind, name, since, until in spans],
    )
    cursor.execute("UPDATE suppression_list SET version = version + 1")
    return int(erasure)


def _salt(cursor: Any, make: bool = False) -> bytes:
    """Empty where there is no list."""
    if make:
        statement = "INSERT INTO suppression_list (salt, version) VALUES (%s, 0) ON CONFLICT DO NOTHING"
        cursor.execute(statement, (secrets.token_bytes(32),))
    cursor.execute("SELECT salt FROM suppression_list")
    found = cursor.fetchone()
    return bytes(found[0]) if found else b""


def unfinished(cursor: Any, name: str) -> int | None:
    """The number of an erasure of this household that was begun and not ended."""
    cursor.execute(UNFINISHED, (digest(_salt(cursor), HOUSEHOLD, name),))
    found = cursor.fetchone()
    return found and int(found[0])


def erased_at(cursor: Any, name: str) -> datetime | None:
    """When this household was erased; None if its records are taken."""
    cursor.execute(
        "SELECT ended_at FROM suppressions JOIN erasures USING (erasure_id)"
        " WHERE digest = %s AND valid_to = 'infinity'",
        (digest(_salt(cursor), HOUSEHOLD, name),),
    )
    found = cursor.fetchone()
    return found and found[0]


def release(cursor: Any, name: str) -> bool:
    """From now on records of this device or household are taken again; False if it is not on the list."""
    salt = _salt(cursor)
    digests = [digest(salt, kind, name) for kind in (DEVICE, HOUSEHOLD)]
    cursor.execute(
        "UPDATE suppressions SET valid_to = now() WHERE digest = ANY(%s) AND valid_to = 'infinity'", (digests,)
    )
    is_listed = bool(cursor.rowcount)
    cursor.execute("UPDATE suppression_list SET version = version + 1")
    return is_listed
