"""The page in a real browser: Debian's Chromium, driven by Playwright (`tools/setup page` gets both)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from http_service import PATIENCE, QUESTION, TOKEN, Service, serving, until
from videos import MakeVideo

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("Chromium is not here: tools/setup page", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not here: tools/setup page")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), timeout=1e3 * PATIENCE)
        yield opened
        opened.close()


class Visit:
    """A page that is open, and what it complained of."""

    def __init__(self, browser: Any, service: Service, size: dict[str, int]) -> None:
        self.page = browser.new_context(viewport=size).new_page()
        self.page.set_default_timeout(1e3 * PATIENCE)
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.url = f"http://127.0.0.1:{service.client.port}/"

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.page.context.close()


@pytest.fixture
def service(make_video: MakeVideo) -> Iterator[Service]:
    video = make_video(times=[i / 2 for i in range(40)])
    with serving(media=video.parent, sources={"<b>door</b>": str(video)}) as opened:
        yield opened


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_question_is_asked_and_its_evidence_is_seen(
    browser: Any, service: Service, size: dict[str, int]
) -> None:
    path = service.client.session(source="clip.mp4")
    until(lambda: not service.client.good("GET", path)["source"]["running"])
    visit = Visit(browser, service, size)
    with visit as page:
        page.goto(visit.url)
        page.fill("#token", TOKEN)  # asked for once
        page.press("#token", "Enter")
        page.wait_for_selector("#live:not([hidden])")
        page.wait_for_function("() => document.querySelector('#live').naturalWidth === 96")
        assert "20 frames" in page.inner_text("#counts")
        page.fill("#question", QUESTION)
        page.click("#send")
        page.wait_for_selector("#answers .how:not(:empty)")
        said = service.client.good("POST", f"{path}/questions", {"question": QUESTION})
        assert page.inner_text("#answers .said") == said["answer"]
        shown = len(said["evidence"][:4])
        page.wait_for_function(
            "count => [...document.querySelectorAll('.evidence img')].filter(i => i.naturalWidth).length"
            " === count",
            arg=shown,
        )
        page.wait_for_function("count => document.querySelectorAll('#marks i').length === count",
                               arg=len(said["evidence"]))  # fmt: skip
        drawn = "document.querySelector('#chart').getContext('2d').getImageData(0, 0, 300, 150).data"
        assert page.evaluate(f"{drawn}.some(Boolean)")
        stats = service.client.good("GET", path)
        assert str(stats["tokens"]["seen"]) in page.inner_text("#tokens").replace(",", "")
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        page.reload()
        page.wait_for_selector("#live:not([hidden])")
        assert not page.is_visible("#token-dialog"), "it is kept in the tab"
        assert TOKEN not in page.url
    assert visit.wrong == []


def test_a_session_is_opened_by_hand_refused_by_name_and_ended(browser: Any, service: Service) -> None:
    visit = Visit(browser, service, PHONE)
    with visit as page:
        page.goto(f"{visit.url}#token={TOKEN}")
        page.wait_for_function("() => location.hash === ''")
        page.click("#first")
        page.select_option("#open-source", "source <b>door</b>")
        page.fill("#open-memory", "1GiB")
        page.click("#open-form button:not([type=button])")
        page.wait_for_selector("#open-trouble:not([hidden])")
        assert "of the server's budget are left" in page.inner_text("#open-trouble")
        page.fill("#open-memory", "1MiB")
        page.click("#open-form button:not([type=button])")
        page.wait_for_function("() => document.querySelector('#counts').textContent === '20 frames'")
        assert page.inner_text("#source") == "<b>door</b>: ended", "a name is text"
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#end")
        page.wait_for_selector("#empty:not([hidden])")
    assert service.sessions.budget.drawn_bytes == 0
    assert [line for line in visit.wrong if "507" not in line] == []


def test_the_camera_of_the_device_feeds_a_session(browser: Any, service: Service) -> None:
    visit = Visit(browser, service, PHONE)
    with visit as page:
        page.goto(f"{visit.url}#token={TOKEN}")
        page.click("#first")
        page.select_option("#open-source", "camera")
        page.fill("#open-fps", "20")
        page.click("#open-form button:not([type=button])")
        page.wait_for_selector("#live:not([hidden])")
        until(lambda: service.client.good("GET", "/v1/sessions")["data"][0]["frames"] >= 3)
        assert service.client.good("GET", "/v1/sessions")["data"][0]["refused"] == 0
    assert visit.wrong == []


def test_the_page_holds_nothing_of_others_and_no_data(service: Service, tmp_path: Path) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/drawn.js", "text/javascript")):
        service.client.token = None
        with service.client.open("GET", path) as response:
            assert response.status == 200 and response.headers["content-type"].startswith(kind)
            assert "script-src 'self'" in response.headers["content-security-policy"]
            text = response.read().decode()
        assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
        assert (
            "innerHTML" not in text and " style=" not in text and "onclick=" not in text.split("<script")[0]
        )
