"""Backup and restore of PostgreSQL together with the fleet registry's topics: docs/backup.md.

backup.py and restore.py are what scripts/backup and scripts/restore run; the rest is what they share.
"""

from __future__ import annotations

import local_servers  # noqa: F401 - so that the scripts of streaming/ are found
