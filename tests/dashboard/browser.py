"""A real browser at a real Streamlit server, for the tests, the screenshots and the benchmark."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# what a test waits for: long enough for a busy machine, as it costs nothing where all is well
PATIENCE_S = 60


def browser_path() -> str | None:
    """The machine's Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def dashboard_server(environment: dict[str, str], app: Path = ROOT / "analytics/streamlit_app.py") -> Iterator[str]:
    """Runs the dashboard, or another app, on a free port, and yields its address."""
    from local_servers import free_port, is_listening
    from local_servers.daemon import Daemon

    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(app)]
    options = ["--server.port", str(port), "--server.headless", "true"]
    with tempfile.TemporaryDirectory() as folder:
        server = Daemon("dashboard", Path(folder), Path(folder) / "dashboard.log")
        server.start([*command, *options], environment, cwd=ROOT)
        try:
            server.wait_until(lambda: is_listening(port), PATIENCE_S)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop()


OPTIONS = ["--no-sandbox", "--disable-background-networking"]


@contextmanager
def open_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=OPTIONS)
        yield browser
        browser.close()


@contextmanager
def open_profile(folder: Path) -> Iterator[Any]:
    """A browser whose cache is on disk, compiled programs included, as that of a person who comes again."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        profile = playwright.chromium.launch_persistent_context(
            folder, executable_path=browser_path(), args=OPTIONS, viewport={"width": 1440, "height": 900}
        )
        yield profile
        profile.close()


class Visitor:
    """One window. complaints: what its console said; strangers: addresses of other machines that it asked for.

    browser: whose window it is, with nothing in its cache. profile: in its place, a window of `open_profile`.
    """

    def __init__(self, browser: Any, address: str, width: int = 1440, height: int = 900, scheme: str = "light",
                 profile: Any = None):  # fmt: skip
        self._address = address
        size = {"width": width, "height": height}
        context = profile or browser.new_context(viewport=size, color_scheme=scheme)
        context.set_default_timeout(1000 * PATIENCE_S)
        self.page = context.new_page()
        self.runs = 0
        self.timer = ""  # the fragment whose timer ended last
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        self.failed: list[str] = []
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._note)
        self.page.on("response", lambda answer: answer.status >= 400 and self.failed.append(answer.url))

    def _note(self, request: Any) -> None:
        of_a_network = urlsplit(request.url).scheme in ("http", "https", "ws", "wss")
        if of_a_network and not request.url.startswith(self._address):
            self.strangers.append(request.url)

    def close(self) -> None:
        self.page.context.close()

    @property
    def url(self) -> str:
        return str(self.page.url)

    def open(self, path: str) -> None:
        self.page.goto(self._address + path)
        self.wait_until_drawn()

    def reload(self) -> None:
        self.page.reload()
        self.wait_until_drawn()

    def wait_until_drawn(self) -> None:
        """Until there are numbers and the script has ended."""
        self.page.get_by_test_id("stMetric").first.wait_for()
        self.page.locator('[data-test-script-state="notRunning"]').wait_for(state="attached")
        # fragments run again and again: what is still being drawn is marked as such
        self.page.wait_for_function(
            "document.querySelectorAll('[data-stale=true], [data-testid=stSkeleton]').length === 0"
        )

    def title(self) -> str:
        return str(self.page.get_by_role("heading", level=1).inner_text())

    def metric(self, label: str) -> str:
        tiles = self.page.get_by_test_id("stMetric").filter(has=self.page.get_by_text(label, exact=True))
        return str(tiles.first.get_by_test_id("stMetricValue").inner_text())

    def choose_page(self, name: str) -> None:
        self.page.get_by_role("link", name=name.capitalize(), exact=True).click()
        self.page.get_by_role("heading", level=1, name=name.capitalize()).wait_for()
        self.wait_until_drawn()

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_label(label, exact=True).first.click()
        self.page.get_by_role("option", name=option, exact=True).click()
        self.wait_until_drawn()

    def choose_filter(self, label: str, option: str) -> None:
        self.page.get_by_role("button", name="Filters").click()
        self.page.get_by_label(label, exact=True).first.fill(option)
        self.page.get_by_role("option", name=option, exact=True).click()
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Escape")
        self.wait_until_drawn()

    def choose_clock(self, name: str) -> None:
        self.page.get_by_role("radio", name=name).or_(self.page.get_by_role("button", name=name)).first.click()
        self.wait_until_drawn()

    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.url).query)

    def wait_for_url(self, query: dict[str, list[str]]) -> None:
        self.wait_until(lambda: self.query() == query)

    def wait_for_url_with(self, names: set[str]) -> dict[str, str]:
        """Until the URL names these and nothing else; returns what it says of them, the first of each."""
        self.wait_until(lambda: self.query().keys() == names)
        return {name: values[0] for name, values in self.query().items()}

    def wait_for_other_url(self, query: dict[str, str]) -> None:
        self.wait_until(lambda: {name: values[0] for name, values in self.query().items()} != query)

    def count_runs_of_the_whole_page(self) -> None:
        """Counts in `runs`, from the next load on, how often the server ran the script, not only a fragment of it."""

        def note(message: ForwardMsg) -> None:
            if message.WhichOneof("type") == "script_finished":
                self.runs += message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY  # not: a fragment's run

        self._hear(note)

    def list_elements(self) -> list[str]:
        """Grows, from the next load on, by the kind of each element that the server sends, in Streamlit's own words."""
        kinds: list[str] = []

        def note(message: ForwardMsg) -> None:
            if kind := message.delta.new_element.WhichOneof("type"):
                kinds.append(kind)

        self._hear(note)
        return kinds

    def _hear(self, note: Callable[[ForwardMsg], None]) -> None:
        def parse(frame: bytes) -> None:
            note(ForwardMsg.FromString(frame))

        self.page.on("websocket", lambda socket: socket.on("framereceived", parse))

    def let_a_timer_tell_of_each_click(self) -> None:
        """From the next load on: what is clicked is first told by a fragment's own run, which may happen by itself when
        its timer ends in the milliseconds between Streamlit's noting a click and its asking for a run."""

        def connect(socket: Any) -> None:
            server = socket.connect_to_server()
            held: list[bytes] = []

            def ask(frame: bytes) -> None:
                message = BackMsg.FromString(frame)
                if message.rerun_script.fragment_id:
                    self.timer = message.rerun_script.fragment_id
                elif self.timer and message.WhichOneof("type") == "rerun_script":
                    held.append(frame)
                    message.rerun_script.fragment_id = self.timer
                server.send(message.SerializeToString())

            def answer(frame: bytes) -> None:
                socket.send(frame)
                if held and ForwardMsg.FromString(frame).WhichOneof("type") == "script_finished":
                    server.send(held.pop())

            socket.on_message(ask)
            server.on_message(answer)

        self.page.route_web_socket(lambda url: url.endswith("/stream"), connect)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, self.url
            self.page.wait_for_timeout(100)

    def wait_for_text(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for()

    def wait_for_cell(self, text: str, timeout: float) -> None:
        """Tables are drawn on a canvas, with their cells as a table beneath for those who cannot see it."""
        cells = self.page.locator("[role=gridcell]", has_text=text)
        cells.first.wait_for(state="attached", timeout=1000 * timeout)

    def select_first_row(self, table: str) -> None:
        box = self.page.locator(f'[aria-label="{table}"]').first.bounding_box()
        self.page.mouse.click(box["x"] + 16, box["y"] + 52)

    def click_bar(self, chart: str, at: float = 0) -> str:
        """Clicks the first bar, the last (at=1) or one between; returns what the chart says of it to who cannot see."""
        bars = f'[aria-label^="{chart}"] [role="graphics-symbol"]:is([aria-roledescription="bar"], path)'
        shown = self.page.locator(bars).filter(visible=True)  # not: a bar of no length
        shown.first.wait_for()
        bar = shown.nth(round(at * (shown.count() - 1)))
        described = str(bar.get_attribute("aria-label"))
        bar.click()
        return described

    def download(self) -> Path:
        """Clicks the first table's button, and returns the file that came."""
        with self.page.expect_download() as coming:
            self.page.get_by_test_id("stDownloadButton").first.click()
        return Path(coming.value.path())
