"""What a viewer chooses is in the URL, so that a link, a bookmark or a reload shows the same.

A widget takes its first value from the URL (`in_url`), and the URL follows the widgets (`write_url`). Streamlit's own
bind="query-params" would do, but it leaves out what is set by a click on a chart, and forbids to switch pages.
"""

from __future__ import annotations

from collections.abc import Container
from datetime import datetime
from typing import Any

import streamlit as st

_YES = "yes"


def begin() -> None:
    """To be called first in every run: gives the widgets what `choose` or `go` said, before they are shown."""
    st.session_state["in_url"] = {}
    st.session_state.update(st.session_state.pop("next", {}))


def in_url(key: str, default: Any = None, allowed: Container[Any] | None = None) -> str:
    """The key of a widget that the URL is to name; the widget itself must be given no default.

    default: a text, a list of texts, a bool or None; the URL leaves it out. allowed: any other value is ignored.
    """
    st.session_state["in_url"][key] = default
    if key not in st.session_state:
        named = [value for value in st.query_params.get_all(key) if allowed is None or value in allowed]
        st.session_state[key] = _read(named, default) if named else default
    return key


def _read(named: list[str], default: Any) -> Any:
    if isinstance(default, list):
        return named
    if isinstance(default, bool):
        return named[0] == _YES
    return named[0]


def moment_in_url(key: str, otherwise: datetime) -> str:
    """The same for a time without a zone. It is always named: what stands in its place differs from day to day."""
    st.session_state["in_url"][key] = None
    if key not in st.session_state:
        try:
            st.session_state[key] = datetime.fromisoformat(st.query_params.get(key, "")).replace(tzinfo=None)
        except ValueError:
            st.session_state[key] = otherwise
    return key


def write_url() -> None:
    """To be called last: the URL says what differs from the defaults, and nothing else."""
    wanted = {}
    for key, default in st.session_state["in_url"].items():
        value = st.session_state.get(key)
        if value != default and value is not None:
            wanted[key] = _written(value)
    if wanted != {key: st.query_params.get_all(key) for key in st.query_params}:
        st.query_params.from_dict(wanted)


def _written(value: Any) -> list[str]:
    if isinstance(value, list):
        return value
    if isinstance(value, bool):
        return [_YES if value else "no"]
    return [value.isoformat(timespec="minutes") if isinstance(value, datetime) else str(value)]


def choose(**choices: Any) -> None:
    """In a callback: the widgets of these keys have these values from the next run of the page on.

    Not at once: it may be a fragment's timer that brings the news of a click. The run of the page comes after it, and
    takes for the widgets what the browser says of them, which does not know better yet.
    """
    st.session_state["next"] = st.session_state.get("next", {}) | choices


def go(page: str | None = None, **choices: Any) -> None:
    """Shows another page, or this one anew, with these values in the widgets of these keys."""
    choose(**choices)
    if page:
        st.switch_page(page)
    st.rerun()
