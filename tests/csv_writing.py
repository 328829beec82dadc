"""Records as a CSV file that says all that they say: null is an empty cell, the empty text one in quotes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from contracts import Contract


def as_csv(contract: Contract, records: Iterable[dict[str, Any]]) -> bytes:
    names = [field.name for field in contract.fields]
    lines = [",".join([*names, "extra"])]
    for record in records:
        extra = {name: value for name, value in record.items() if name not in names}
        cells = [*map(record.get, names), json.dumps(extra, ensure_ascii=False) if extra else None]
        lines.append(",".join(map(_cell, cells)))
    return "".join(line + "\r\n" for line in lines).encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = json.dumps(value) if isinstance(value, bool | float) else str(value)
    return '"' + text.replace('"', '""') + '"'
