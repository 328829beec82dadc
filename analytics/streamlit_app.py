"""The Smart Access dashboard: is the fleet well, does the data flow, does the ledger balance.

    streamlit run analytics/streamlit_app.py          http://127.0.0.1:8501

This file is the frame: navigation, freshness, the choice of time and devices. Each page is a file of dashboard_pages,
with its SQL beside it. Live tiles tick every 2 seconds, what comes from the marts every minute; all viewers share each
answer. It reads by libpq's variables (PGHOST …), and changes nothing. Where something is missing (no server, no tables,
no rows, no marts) it says what to do next.
"""

from __future__ import annotations

import streamlit as st

import dashboard_queries as queries
from dashboard_parts import START_CONSUMER, live, next_step_instead_of_a_traceback, pill, recent, stored
from dashboard_url import begin, write_url
from dashboard_view import chosen, show_controls, show_filters

PAGES = {
    "overview": ("Overview", "monitoring"),
    "anomalies": ("Anomalies", "warning"),
    "devices": ("Devices", "door_front"),
    "households": ("Households", "home"),
    "access": ("Access", "key"),
    "batteries": ("Batteries", "battery_alert"),
    "connectivity": ("Connectivity", "wifi"),
    "pipeline": ("Pipeline", "valve"),
}
REFRESH_S = 60
# Streamlit leaves a hand's breadth above the first line and sets titles for a document: the overview is to fit a screen
TIGHTER = """<style>
[data-testid="stMainBlockContainer"] { padding-top: 4rem; padding-bottom: 1rem; }
[data-testid="stMainBlockContainer"] h1 { font-size: 1.6rem; padding: 0; }
@media (max-width: 640px) { .st-key-head > :nth-child(-n+2) { flex-basis: 100%; } }
</style>"""


@st.fragment(run_every=2)
def freshness() -> None:
    """One pill for the stream and one for the marts."""
    with next_step_instead_of_a_traceback(), st.container(horizontal=True, width="content"):
        for span in queries.SPANS:
            found = (live if span == queries.SPANS[0] else recent)(queries.FRESHNESS, span=span)
            if len(found):
                pill("Live", found)
                break
        else:
            st.badge("No data yet", color="gray", icon=":material/hourglass_empty:")
            st.info(
                "**Nothing has been stored yet.** Start the consumer and the producer, each in a terminal:\n\n"
                f"{START_CONSUMER}\n    python streaming/kafka_producer.py"
            )
            return
        mart_pill()


def mart_pill() -> None:
    """Marts that have not been built yet are told of by the page that needs them."""
    with next_step_instead_of_a_traceback(said_above=True, marts_said_below=True):
        marts = recent(queries.MART_FRESHNESS)
        if marts.newest_at.isna().all():
            st.badge("Marts: empty until dbt's next run", color="gray", icon=":material/hourglass_empty:")
        else:
            pill("Marts", marts, green_s=20 * 60, amber_s=35 * 60)  # dbt runs every 15 minutes: one run may be missed


@st.fragment(run_every=REFRESH_S)
def keep_up() -> None:
    """Draws the whole page anew for a visitor who only looks: its range ends at the present, and dbt has run since."""
    if not st.session_state.pop("drawn_now", False):
        st.rerun()


st.set_page_config(page_title="Smart Access", page_icon="🔐", layout="wide")
begin()
page = st.navigation(
    [
        st.Page(f"dashboard_pages/{name}.py", title=title, icon=f":material/{icon}:", default=name == "overview")
        for name, (title, icon) in PAGES.items()
    ],
    position="top",
)
st.html(TIGHTER)
st.session_state["drawn_now"] = True
keep_up()
head = st.container(key="head", horizontal=True, vertical_alignment="center")
with head:
    st.title(page.title, anchor=False, width="content")
    freshness()
with next_step_instead_of_a_traceback(said_above=True):
    choices = stored(queries.CHOICES)
    view = chosen()
    with next_step_instead_of_a_traceback(said_above=True):
        if view is None:
            st.warning("**The range is empty**: From must be before To.")
        else:
            show_filters(view)
            st.session_state["view"] = view
            page.run()
    # after the page, as the numbers come first; and whatever became of it, as another choice may mend it
    show_controls(head, choices)
write_url()
