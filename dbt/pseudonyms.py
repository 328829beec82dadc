"""A pseudonym for each device and household of the marts, for the views that analysts read.

It is HMAC-SHA256 of `device:ID` or `household:ID` under the key in PSEUDONYM_KEY, or in the file that
PSEUDONYM_KEY_FILE names. The key stays in this process: PostgreSQL gets the results, in a table that analysts may not
read. So whoever has the views can neither look an id up nor try out the ids that he knows.
"""

from __future__ import annotations

import hmac
import os
from typing import Any

from psycopg2 import sql
from psycopg2.extras import execute_values

SHORTEST_KEY = 32  # characters; as hexadecimal digits they are 128 bits

WITHOUT = """
SELECT 'device', device_id FROM intermediate.int_device_activity
UNION SELECT 'device', device_id FROM {marts}.dim_devices
UNION SELECT 'household', household_id FROM {marts}.dim_devices WHERE household_id IS NOT NULL
UNION SELECT 'household', household_id FROM {marts}.dim_households
EXCEPT SELECT kind, id FROM public.pseudonyms"""


def pseudonym(key: str, kind: str, name: str) -> str:
    return hmac.digest(key.encode(), f"{kind}:{name}".encode(), "sha256").hex()


def add_missing(connection: Any, key: str) -> int:
    """Returns how many were missing. Raises SystemExit when those that are there were made with another key."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT kind, id, pseudonym FROM public.pseudonyms LIMIT 1")
        for kind, name, known in cursor.fetchall():
            if not hmac.compare_digest(pseudonym(key, kind, name), known):
                raise SystemExit(
                    "PSEUDONYM_KEY is not the key that the pseudonyms were made with. To give everyone a new one:"
                    " truncate pseudonyms, as its owner"
                )
        marts = sql.Identifier(os.environ.get("DBT_SCHEMA") or "marts")
        cursor.execute(sql.SQL(WITHOUT).format(marts=marts))
        lines = [(kind, name, pseudonym(key, kind, name)) for kind, name in cursor.fetchall()]
        execute_values(cursor, "INSERT INTO public.pseudonyms (kind, id, pseudonym) VALUES %s", lines)
        return len(lines)
