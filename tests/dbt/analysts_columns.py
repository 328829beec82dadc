"""What analysts are to see of each mart."""

from __future__ import annotations

import re

from pipeline_settings import ROOT


def shown_and_left_out() -> dict[str, tuple[list[str], list[str]]]:
    """What dbt/macros/analysts.sql says, by mart."""
    text = (ROOT / "dbt/macros/analysts.sql").read_text(encoding="utf-8")
    found = {}
    for mart, body in re.findall(r"^        '(\w+)': \{(.*?)^        \}", text, re.MULTILINE | re.DOTALL):
        lists = dict(re.findall(r"'(shown|left_out)': \[(.*?)\]", body, re.DOTALL))
        found[mart] = tuple(re.findall(r"'(\w+)'", lists.get(name, "")) for name in ("shown", "left_out"))
    return found  # type: ignore[return-value]
