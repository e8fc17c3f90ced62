"""A headless Chromium, and the screenshots that docs/reports.md shows.

`python -m tests.reports.browser REPORT.html docs/images` takes them from a report; the tests take the same ones.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESK = 390, 1280


def executable() -> str | None:
    """The browser of this machine; None where there is none."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser without a sandbox, for containers have none to give."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass(kw_only=True)
class Opened:
    """A report in a browser window, and everything that went wrong in it."""

    page: Page
    wrong: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def opened(
    browser: Browser, report: Path, *, width: int = DESK, scheme: Literal["light", "dark"] = "light", csp: bool = True
) -> Iterator[Opened]:
    """The report in a window of `width` pixels; `csp` off lets a test add a script of its own."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, bypass_csp=not csp)
    try:
        found = Opened(page=context.new_page())
        found.page.on("console", lambda message: found.wrong.append(message.text))
        found.page.on("pageerror", lambda error: found.wrong.append(str(error)))
        found.page.on("requestfailed", lambda request: found.wrong.append(request.url[:100]))
        found.page.on("request", lambda request: found.asked.append(request.url[:100]))
        found.page.goto(report.resolve().as_uri(), wait_until="load")
        yield found
    finally:
        context.close()


def screenshots(browser: Browser, report: Path, folder: Path) -> list[Path]:
    """The pictures of docs/reports.md, each below 200 kB."""
    taken = []

    def take(page: Page, name: str, *, part: str | None = None) -> None:
        path = folder / f"report-{name}.png"
        if part is None:
            page.screenshot(path=path)
        else:
            block = page.locator(part).first
            block.evaluate("element => { element.style.padding = '14px'; }")  # air around the picture
            block.screenshot(path=path)
        with Image.open(path) as image:
            image.convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
                path, optimize=True
            )
        taken.append(path)

    for scheme in ("light", "dark"):
        with opened(browser, report, scheme=scheme) as window:  # type: ignore[arg-type]
            take(window.page, f"desktop-{scheme}")
            if scheme == "light":
                for name in ("training", "classes", "worst", "groups"):
                    block = window.page.locator(f".block[data-part={name}]:visible")
                    if block.count():
                        if name == "groups":
                            tile = block.first.locator(".map a:not(.tint-exact)")
                            (tile if tile.count() else block.first.locator(".map a")).first.click()
                        take(window.page, name, part=f".block[data-part={name}]:visible")
    with opened(browser, report, width=PHONE, scheme="dark") as window:
        take(window.page, "phone-dark")
    return taken


if __name__ == "__main__":
    with chromium() as one:
        for picture in screenshots(one, Path(sys.argv[1]), Path(sys.argv[2])):
            sys.stdout.write(f"{picture} {picture.stat().st_size} bytes\n")
