"""The page over HTTP: who gets in, what it says, what it refuses; then as a browser shows it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from tests.service.browser import CHROMIUM, Browser
from tests.service.running_server import RunningServer, image_tar

WIDTHS = {"desktop": 1100, "phone": 390}


@dataclass(frozen=True)
class Page:
    """A server's page and its key."""

    server: RunningServer
    address: str
    key: str
    job: str

    def ask(
        self, path: str = "/", *, method: str = "GET", body: str | None = None, **headers: str
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=20)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        answer.text = answer.read().decode("utf-8", "replace") if "events" not in path else ""  # type: ignore[attr-defined]
        connection.close()
        return answer

    def get(self, path: str = "/") -> http.client.HTTPResponse:
        return self.ask(path, Authorization=f"Bearer {self.key}")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A server with one finished ingest."""
    folder = Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    server = RunningServer(folder, options=("--page", "127.0.0.1:0")).start()
    job = server.ingest("tiny", server.upload(image_tar(3)))
    server.ended(job.id)
    ready = json.loads((server.data / "server.json").read_text())
    yield Page(server=server, address=ready["page"], key=ready["page_key"], job=job.id)
    server.close()
    shutil.rmtree(folder)


def text(answer: http.client.HTTPResponse) -> str:
    return str(answer.text)  # type: ignore[attr-defined]


def cookie_of(answer: http.client.HTTPResponse) -> str:
    return (answer.getheader("set-cookie") or "").partition(";")[0]


def test_nothing_but_the_way_in_is_shown_without_a_token(page: Page) -> None:
    paths = ("/", f"/jobs/{page.job}", f"/jobs/{page.job}/report", f"/jobs/{page.job}/files/pool.json", "/nothing")
    for path in paths:
        answer = page.ask(path)
        assert answer.status == 401
        assert page.job not in text(answer)
    assert page.ask(f"/jobs/{page.job}/events").status == 401
    assert page.ask("/", Authorization="Bearer wrong").status == 401
    assert page.ask("/", Cookie="punnet_session=wrong").status == 401


def test_the_key_opens_a_session_that_leaving_ends(page: Page) -> None:
    entered = page.ask("/enter", method="POST", body=urlencode({"token": page.key}))
    assert entered.status == 303
    attributes = (entered.getheader("set-cookie") or "").lower()
    assert "httponly" in attributes
    assert "samesite=strict" in attributes
    assert page.key not in attributes
    cookie = cookie_of(entered)
    assert "tiny" in text(page.ask("/", Cookie=cookie))
    page.ask("/leave", method="POST", Cookie=cookie)
    assert page.ask("/", Cookie=cookie).status == 401


def test_a_form_of_another_site_opens_no_session(page: Page) -> None:
    body = urlencode({"token": page.key})
    assert page.ask("/enter", method="POST", body=body, Origin="https://elsewhere.example").status == 401


def test_every_answer_carries_the_strict_policy(page: Page) -> None:
    for answer in (page.ask("/"), page.get("/"), page.get(f"/jobs/{page.job}"), page.ask("/static/page.js")):
        policy = answer.getheader("content-security-policy") or ""
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.getheader("x-content-type-options") == "nosniff"
        assert answer.getheader("cache-control") == "no-store"


def test_a_file_comes_as_it_is_and_only_as_a_download(page: Page) -> None:
    answer = page.get(f"/jobs/{page.job}/files/pool.json")
    assert answer.status == 200
    assert (answer.getheader("content-disposition") or "").startswith("attachment")
    assert json.loads(text(answer))["images"] == 3


@pytest.mark.parametrize("path", ["../../../punnet.sqlite3", "%2e%2e/%2e%2e/lock", "/etc/passwd", "missing", ""])
def test_only_files_of_the_job_can_be_had(page: Page, path: str) -> None:
    assert page.get(f"/jobs/{page.job}/files/{path}").status == 404


def test_an_unknown_job_and_a_false_page_are_refused_in_words(page: Page) -> None:
    assert page.get(f"/jobs/{'0' * 32}").status == 404
    assert page.get("/?page=nonsense").status == 400


def test_nothing_can_be_changed(page: Page) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = page.ask(f"/jobs/{page.job}", method=method, Authorization=f"Bearer {page.key}")
        assert answer.status == 405


def test_guessing_ends_after_ten_wrong_tokens(folder: Path) -> None:
    server = RunningServer(folder, options=("--page", "127.0.0.1:0")).start()
    ready = json.loads((server.data / "server.json").read_text())
    guessed = Page(server=server, address=ready["page"], key=ready["page_key"], job="")
    statuses = [guessed.ask("/", Authorization="Bearer no").status for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    assert guessed.get("/").status == 429
    server.close()


def test_the_key_is_kept_from_other_users_and_from_the_log(page: Page) -> None:
    assert (page.server.data / "server.json").stat().st_mode & 0o077 == 0
    assert page.key not in (page.server.data / "server.log").read_text()


def test_a_taken_address_is_refused_at_the_start(page: Page, folder: Path) -> None:
    taken = RunningServer(folder, options=("--page", urlsplit(page.address).netloc))
    with pytest.raises(AssertionError, match="can't be bound"):
        taken.start()
    taken.end()


def test_an_address_of_other_machines_is_refused(folder: Path) -> None:
    reachable = RunningServer(folder, options=("--page", "0.0.0.0:0"))
    with pytest.raises(AssertionError, match="reached from other machines"):
        reachable.start()
    reachable.end()


@pytest.fixture(params=list(WIDTHS))
def browser(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    opened = Browser(tmp_path / "profile", width=WIDTHS[request.param], height=800)
    yield opened
    opened.close()


def test_a_browser_shows_the_list_and_a_job_that_runs(page: Page, browser: Browser, slow_tar: bytes) -> None:
    name = f"slow-{os.urandom(3).hex()}"
    job = page.server.ingest(name, page.server.upload(slow_tar))
    page.server.pause_stages()
    browser.open(f"{page.address}#{page.key}")  # what `punnet page` prints
    browser.wait(f"document.body.innerText.includes('{name}')")
    assert page.key not in browser.value("location.href")
    fits = "document.documentElement.scrollWidth <= window.innerWidth"
    assert browser.value(fits), "the page is wider than the window"
    browser.value(f"document.querySelector('a[href=\"/jobs/{job.id}\"]').focus()")
    browser.press("Enter", 13)  # the keyboard is enough
    browser.wait("document.querySelector('#live')?.innerText.includes('running')")
    page.server.resume_stages()
    browser.wait("document.querySelector('#live')?.innerText.includes('succeeded')", 60.0)
    browser.wait("document.querySelectorAll('a[download]').length >= 1")  # the whole page, once the job has ended
    assert browser.value(fits)
    assert [p for p in browser.problems if "401" not in p] == []


def test_every_control_can_be_reached_by_the_tab_key(page: Page, browser: Browser) -> None:
    browser.open(f"{page.address}#{page.key}")
    browser.wait("document.querySelector('#jobs')")
    controls = browser.value("document.querySelectorAll('a[href], button').length")
    reached = set()
    for _ in range(controls):
        browser.press("Tab", 9)
        reached.add(browser.value("[...document.querySelectorAll('a[href], button')].indexOf(document.activeElement)"))
    assert reached == set(range(controls))
