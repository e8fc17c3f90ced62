"""The built pages: nothing is loaded from outside, formulas are rendered, pages fit a phone."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""Elements that make a browser load something, and the attribute that names it; `link` by its rel, below."""


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_hook", ROOT / "docs" / ".hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_page_has_every_cell_and_its_output() -> None:
    page = hook("notebook").on_page_markdown((ROOT / "docs" / "notebook.md").read_text())
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(f"```python\n{text}\n```" in page for text in code)
    assert page.count("<table>") >= 3
    assert "certified UAP" in page


def test_outputs_of_another_notebook_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = hook("notebook")
    changed = tmp_path / "changed.ipynb"
    changed.write_text(module.NOTEBOOK.read_text().replace("eps = 0.05", "eps = 0.06"))
    monkeypatch.setattr(module, "NOTEBOOK", changed)
    with pytest.raises(ValueError, match="of another notebook"):
        module.parts()


def test_katex_comes_with_its_licence_and_asks_for_its_own_fonts_only() -> None:
    folder = ROOT / "docs" / "assets" / "katex"
    assert "MIT License" in (folder / "LICENSE").read_text()
    wanted = set(re.findall(r"url\(([^)]*)\)", (folder / "katex.min.css").read_text()))
    assert wanted == {f"fonts/{path.name}" for path in (folder / "fonts").iterdir()}


class Loads(HTMLParser):
    """Collects what a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in LOADED and given.get(LOADED[tag]):
            self.found.append(given[LOADED[tag]] or "")
        if tag == "link" and given.get("rel") not in {"canonical", "prev", "next", "alternate"}:
            self.found.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_nothing_is_loaded_from_outside(site: Path) -> None:
    seen = 0
    for path in site.rglob("*.html"):
        loads = Loads()
        loads.feed(path.read_text())
        outside = [name for name in loads.found if re.match(r"(https?:)?//", name)]
        assert not outside, (path.name, outside)
        seen += len(loads.found)
    assert seen > len(PAGES)
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text()), path.name


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    found = [
        name for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable") if shutil.which(name)
    ]
    if not found:
        pytest.skip("needs Chromium or Chrome on the PATH, which is absent")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which(found[0]), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.slow
def test_pages_in_a_browser(site: Path, browser: object) -> None:
    """On a phone: formulas are drawn without an error, nothing is wider than the page, all that is loaded are files."""
    from playwright.sync_api import Browser

    assert isinstance(browser, Browser)
    asked, wrong = [], []
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    formulas = 0
    for name in PAGES:
        page.goto((site / f"{name}.html").as_uri(), wait_until="load")
        marked = page.evaluate("document.querySelectorAll('.arithmatex').length")
        drawn = page.evaluate(
            "[...document.querySelectorAll('.arithmatex')].filter(e => e.querySelector('.katex')).length"
        )
        assert drawn == marked, name
        assert page.evaluate("document.querySelectorAll('.katex-error').length") == 0, name
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        assert page.evaluate("[...document.images].every(i => i.loading === 'lazy' || i.naturalWidth > 0)"), name
        formulas += marked
    assert formulas > 100
    assert not wrong
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
