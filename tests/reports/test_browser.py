"""The page in a browser: it loads nothing, has no word for the console, answers clicks and keys, and is accessible."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from citrus_tool.cli import main
from citrus_tool.reports import parse, read, write_report
from tests.reports.browser import PHONE, chromium, executable, opened, screenshots
from tests.reports.conftest import EVALUATION, GOLD, harden_report
from tests.reports.page import check_numbers, read_page

pytestmark = pytest.mark.skipif(executable() is None, reason="needs Chromium or Chrome on the PATH, which is absent")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A page with every kind of section that a session can meet."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "report.json").write_text(json.dumps(harden_report()))
    (folder / "after.jsonl").write_text((GOLD / "certify" / "journal.jsonl").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        runs = [read(folder), read(GOLD / "certify"), parse(EVALUATION, "evaluation")]
        assert write_report(runs, folder / "page.html") == ()
    return folder / "page.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, 1280])
def test_opens_without_a_word_and_fits(
    browser: Any, report: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    with opened(browser, report, width=width, scheme=scheme) as window:
        page = window.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(i => i.loading === 'lazy' || i.naturalWidth > 0)")
        asked = [url for url in window.asked if not url.startswith("data:")]
        assert asked == [report.resolve().as_uri()[:100]]
        assert window.wrong == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_opens_fast(browser: Any, report: Path) -> None:
    with opened(browser, report) as window:
        assert window.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 2000


def test_theme_toggles(browser: Any, report: Path) -> None:
    with opened(browser, report) as window:
        page = window.page
        button = page.locator("#theme")
        colours = []
        for words in ("Dark theme", "Light theme", "Dark theme"):
            assert button.inner_text() == words
            colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            button.click()
        assert colours[0] == colours[2] != colours[1]
        assert window.wrong == []


def test_a_group_shows_its_details_on_click_and_by_keyboard(browser: Any, report: Path) -> None:
    with opened(browser, report) as window:
        page = window.page
        tiles = page.locator("#r2 .map a")
        tiles.nth(2).click()
        assert page.locator("#r2-g2").is_visible()
        assert tiles.nth(2).get_attribute("aria-current") == "true"
        assert page.locator("#r2 .panel:visible").count() == 1
        pictures = page.locator("#r2-g2 img")
        pictures.first.scroll_into_view_if_needed()
        page.wait_for_function("[...document.querySelectorAll('#r2-g2 img')].every(i => i.naturalWidth > 0)")
        tiles.nth(2).focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert page.locator("#r2-g3").is_visible()
        tiles.nth(3).focus()
        page.keyboard.press("Home")
        assert page.evaluate("document.activeElement.getAttribute('href')") == "#r2-g0"
        page.keyboard.press("End")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.getAttribute('href')") == "#r2-g5"
        page.locator("#r2-g3 a", has_text="Close").click()
        assert page.locator("#r2 .panel:visible").count() == 0
        assert page.evaluate("document.activeElement.getAttribute('href')") == "#r2-g3"
        assert window.wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(browser: Any, report: Path, scheme: Literal["light", "dark"]) -> None:
    """axe-core's rules, WCAG 2 A and AA and best practices, with an open group panel and open tables."""
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, report, scheme=scheme, csp=False) as window:
        window.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        window.page.locator("#r2 .map a").nth(2).click()
        found = Axe().run(window.page)
        assert found.violations_count == 0, found.generate_report()


def test_prints_in_the_light_theme_without_controls(browser: Any, report: Path, tmp_path: Path) -> None:
    with opened(browser, report, scheme="dark") as window:
        page = window.page
        page.locator("#theme").click()
        page.emulate_media(media="print")
        assert not page.locator("#theme").is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        page.pdf(path=tmp_path / "r.pdf", format="A4")
        assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF")


def test_screenshots_for_the_docs(browser: Any, report: Path, tmp_path: Path) -> None:
    taken = screenshots(browser, report, tmp_path)
    names = ("desktop-light", "desktop-dark", "phone-dark", "training", "classes", "worst", "groups")
    assert {path.stem for path in taken} == {f"report-{name}" for name in names}
    for path in taken:
        assert path.stat().st_size < 200_000
        with Image.open(path) as image:
            assert len(set(image.convert("RGB").resize((64, 64)).tobytes())) > 10, path  # not blank


@pytest.mark.slow
def test_a_thousand_mnist_images_are_small_and_open_fast(
    browser: Any, shared_models: Path, data_root: Callable[[str], Path], tmp_path: Path
) -> None:
    """Below 10 MB, open in under two seconds; the certificate is a quick one (IBP and a weak attack)."""
    arguments = ["certify-uap", str(shared_models / "mnist_convSmallRELU__Point.onnx"), "--data", "mnist"]
    arguments += ["--data-root", str(data_root("mnist")), "--eps", "0.1", "--limit", "1000", "--bounds", "ibp"]
    arguments += ["--attack-steps", "5", "--attack-restarts", "1", "--run-dir", str(tmp_path / "run"), "--quiet"]
    assert main(arguments) == 0
    assert write_report([tmp_path / "run"], tmp_path / "page.html") == ()
    assert (tmp_path / "page.html").stat().st_size < 10 * 2**20
    page = read_page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(page.images) > 1000
    assert check_numbers(page) > 1000
    with opened(browser, tmp_path / "page.html") as window:
        assert window.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 2000
        assert window.wrong == []
