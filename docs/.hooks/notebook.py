"""Puts the cells of examples/quickstart.ipynb, with their outputs, in place of `<!-- notebook -->` in a page.

The notebook is kept without outputs. They stand in docs/assets/quickstart.json, by cell, with a digest of all code:

    python docs/.hooks/notebook.py    # runs the notebook (half a minute) and writes them; needs the extra `dev`

The build itself runs nothing and needs no package for it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

MARK = "<!-- notebook -->"
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
OUTPUTS = ROOT / "docs" / "assets" / "quickstart.json"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """MkDocs calls this for every page."""
    return markdown.replace(MARK, "\n\n".join(parts())) if MARK in markdown else markdown


def digest(cells: list[dict[str, Any]]) -> str:
    """Of all code cells, since a cell's output depends on those before it."""
    code = "\0".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def parts() -> list[str]:
    """The notebook as Markdown, one text a cell or output."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    kept = json.loads(OUTPUTS.read_text())
    if kept["digest"] != digest(cells):
        raise ValueError(f"{OUTPUTS.name} is of another notebook: run python docs/.hooks/notebook.py")
    found = []
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            found.append(text.removeprefix("# Hardening a digits network\n").strip())
        else:
            found.append(f"```python\n{text}\n```")
            found += [_shown(one) for one in kept["outputs"][cell["id"]]]
    return found


def _shown(output: dict[str, str]) -> str:
    if "html" in output:
        return f'<div class="output" markdown="0">\n{output["html"]}\n</div>'
    return f"```text\n{output['text'].rstrip()}\n```"


def run() -> None:
    """Runs the notebook in an empty folder beside a link to the networks, and keeps what it shows."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "examples").mkdir()
        (Path(name) / "models").symlink_to(ROOT / "models")
        NotebookClient(notebook, resources={"metadata": {"path": str(Path(name) / "examples")}}).execute()
    kept = {
        cell["id"]: [_kept(one) for one in cell["outputs"]] for cell in notebook.cells if cell["cell_type"] == "code"
    }
    text = {"digest": digest(notebook.cells), "outputs": {name: [o for o in each if o] for name, each in kept.items()}}
    OUTPUTS.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n")


def _kept(output: dict[str, Any]) -> dict[str, str]:
    if output["output_type"] == "stream":
        return {"text": output["text"]} if output["name"] == "stdout" else {}
    if output["output_type"] == "error":
        raise ValueError(output["evalue"])
    data = output["data"]
    return {"html": data["text/html"]} if "text/html" in data else {"text": data["text/plain"]}


if __name__ == "__main__":
    run()
