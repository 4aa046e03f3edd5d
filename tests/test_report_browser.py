"""The report in a real browser: hostile texts stay texts."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from rankmill import markers, runs
from rankmill.report import draw_report
from reported_runs import commit_report_run, pairs

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no chromium and chromedriver (apt-get install chromium-driver)",
)

# Each would run in a page that forgot to escape it, and say so in one of three ways.
DEED = "window.pwned=1;fetch('{server}/stolen');alert(1)"
HOSTILE = (
    "<script>" + DEED + "</script>",
    '"><img src={server}/stolen onerror="' + DEED + '">',
    "</title></style></textarea></svg><script>" + DEED + "</script>",
    '<svg onload="' + DEED + '"><a href="javascript:' + DEED + '">x</a>',
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe><base href={server}/stolen>",
    "]]><link rel=stylesheet href={server}/stolen><meta http-equiv=refresh content='0;{server}/x'>",
    "{{{{ 7*7 }}}}{{% for x in y %}}<style>@import '{server}/stolen'</style>",
    "\u2028</script\u2029><SCRIPT>" + DEED + "</SCRIPT>\x00\x1b[31m\u202e",
)


@dataclass
class Web:
    """A server on loopback; everything that it was asked for."""

    url: str
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    found = Web("")

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


def asked_for(browser: webdriver.Chrome) -> list[str]:
    """Every address that a page has asked for since the last look."""
    messages = [json.loads(entry["message"]) for entry in browser.get_log("performance")]
    return [
        message["message"]["params"]["request"]["url"]
        for message in messages
        if message["message"]["method"] == "Network.requestWillBeSent"
    ]


def open_hostile(browser: webdriver.Chrome, web: Web, path: str) -> list[str]:
    """Open a page, open all its folded parts; what was asked for besides itself."""
    asked_for(browser)
    browser.get(f"{web.url}/{path}")
    with_dialog = True
    try:
        browser.switch_to.alert.dismiss()
    except NoAlertPresentException:
        with_dialog = False
    assert not with_dialog, "the page has opened a dialog"
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    return [url for url in asked_for(browser) if url != f"{web.url}/{path}"]


@pytest.fixture
def hostile_report(tmp_path: Path, web: Web) -> Callable[[], list[str]]:
    """Draw a report with something hostile in every place; the texts."""

    def draw() -> list[str]:
        texts = [text.format(server=web.url) for text in HOSTILE]
        escaped = [text.replace("{", "{{").replace("}", "}}") for text in texts]
        tables = [
            pairs(
                [9, 9], **dict.fromkeys(("query_id", "query", "doc_id", "document"), text + "{c}")
            )
            for text in escaped
        ]
        name = texts[0]
        tables = [table.append_column(name, table["doc_id"]) for table in tables]
        store = commit_report_run(
            str(tmp_path / "out"),
            tables,
            settings={"model.name": texts[1], "input.columns.instruction": texts[2]},
            model={"name": texts[3], "architecture": texts[4], "revision": texts[5]},
            missing=[len(tables) - 1],
        )
        note = {"shard": len(tables) - 1, "error": texts[0]}
        store.write(markers.failure_name(len(tables) - 1), json.dumps(note).encode())
        draw_report(store.url, texts=True)
        return texts

    return draw


def test_hostile_texts_do_nothing(
    browser: webdriver.Chrome, web: Web, hostile_report: Callable[[], list[str]]
) -> None:
    texts = hostile_report()
    others = open_hostile(browser, web, f"out/{runs.REPORT}")
    assert browser.execute_script("return window.pwned === undefined")
    assert others == []
    assert [path for path in web.asked if "report.html" not in path] == []
    shown = browser.execute_script("return document.body.textContent")
    for text in texts[:5]:
        assert text in shown, "what was planted is there, as text"
    assert browser.get_log("browser") == [], "nothing was tried that the page forbids itself"


def test_the_texts_would_act_on_a_page_that_does_not_escape_them(
    browser: webdriver.Chrome, web: Web, tmp_path: Path
) -> None:
    (tmp_path / "bare.html").write_text(
        f"<!DOCTYPE html><body><script>window.pwned=1</script><img src='{web.url}/stolen'>"
    )
    others = open_hostile(browser, web, "bare.html")
    assert browser.execute_script("return window.pwned === 1")
    assert f"{web.url}/stolen" in others


@pytest.mark.parametrize("width", [360, 1280])
def test_no_window_has_to_be_scrolled_sideways(
    browser: webdriver.Chrome, web: Web, hostile_report: Callable[[], list[str]], width: int
) -> None:
    hostile_report()
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    open_hostile(browser, web, f"out/{runs.REPORT}")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
