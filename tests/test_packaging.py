"""What a wheel and an sdist hold, that extras are explained and pinned, and that help comes at once."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from citrus_tool import __version__
from citrus_tool.cli import citrus

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(TEXT)["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an sdist of this checkout, and the wheel that is built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT], check=True, capture_output=True
    )
    return out


def test_wheel_holds_the_package_and_what_the_demo_needs(built: Path, tmp_path: Path) -> None:
    wheel = built / f"citrus_tool-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path)
    package = ROOT / "citrus_tool"
    own = {p.relative_to(ROOT).as_posix() for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    models = {f"citrus_tool/models/{path.name}" for path in (ROOT / "models").glob("*.onnx")}
    assert names == own | models
    assert any("templates" in name for name in names)
    assert "citrus_tool/py.typed" in names
    code = "from citrus_tool.workflow.demo import shipped_model as s; print(s('digits_convtiny.onnx'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == tmp_path / "citrus_tool" / "models" / "digits_convtiny.onnx"


def test_sdist_holds_what_a_wheel_the_tests_and_the_pages_need(built: Path) -> None:
    with tarfile.open(built / f"citrus_tool-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "Makefile",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "mkdocs.yml",
        "docs/index.md",
        "docs/.hooks/commands.py",
    } <= names
    assert {"models/digits_convtiny.onnx", "examples/quickstart.py", "tests/test_packaging.py"} <= names
    assert not any(name.startswith(("runs/", "results/", "site/", ".ci")) for name in names)


def test_what_is_built_says_whose_it_is_and_under_which_licence(built: Path) -> None:
    with zipfile.ZipFile(built / f"citrus_tool-{__version__}-py3-none-any.whl") as archive:
        info = f"citrus_tool-{__version__}.dist-info"
        about = Metadata.from_email(archive.read(f"{info}/METADATA"))
        for path in PROJECT["license-files"]:
            assert archive.read(f"{info}/licenses/{path}") == (ROOT / path).read_bytes()
    assert (about.name, about.license_expression, about.author) == ("citrus-tool", "MIT", "citrus contributors")
    assert about.license_files == PROJECT["license-files"]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_versions_and_dates_agree() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__
    headings = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == [("Unreleased", ""), (__version__, str(cited["date-released"]))]
    assert (cited["license"], cited["authors"]) == (PROJECT["license"], PROJECT["authors"])
    assert cited["references"][0]["url"] == PROJECT["urls"]["Paper"]


def test_continuous_integration_covers_the_pythons_that_are_claimed() -> None:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["ci"]
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"
    assert job["steps"][-1] == {"run": "bash .ci/run", "env": {"PYTHON": "python${{ matrix.python }}"}}


def planned(*targets: str) -> str:
    """What `make` would run in a checkout without .venv."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make, which is absent")
    command = [make, "--dry-run", "--always-make", "--no-print-directory", *targets]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout


def test_the_demo_needs_no_developers_tools() -> None:
    demo, test = planned("demo"), planned("test")
    assert "--editable . " in demo
    assert demo.endswith("citrus demo\n")
    assert "[" not in demo.partition("--editable")[2]
    assert '--editable ".[dev,docs]"' in test
    assert "--no-deps vnnlib-satisfactory --constraint constraints.txt" in test
    assert "vnnlib-satisfactory==" in (ROOT / "constraints.txt").read_text()


def test_hooks_before_a_commit_run_the_linters_of_make_lint() -> None:
    (own,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["entry"].replace(" --force-exclude", "") for hook in own["hooks"]}
    lint = {line.removesuffix(" .") for line in planned("lint").splitlines() if line.startswith(".venv/bin/")}
    assert own["repo"] == "local"
    assert hooks == {line for line in lint if " -m pip " not in line and " -c " not in line}


def test_every_extra_is_explained() -> None:
    section = TEXT.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    for extra in EXTRAS:
        assert re.search(rf"^# .+\n{extra} = \[", section, re.MULTILINE), f"say above {extra} what it is for"


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_every_extra_is_pinned(extra: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    for requirement in map(Requirement, EXTRAS[extra]):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement.name


# --- help comes at once -----------------------------------------------------------------------------------------------

HEAVY = ("torch", "onnx", "onnxruntime", "onnx2torch", "numpy", "scipy", "matplotlib", "pulp")


def paths(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield prefix
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from paths(command, (*prefix, name))
        else:
            yield (*prefix, name)


def test_help_of_every_command_loads_nothing_heavy() -> None:
    """One process for all: what any of them loads stays loaded."""
    calls = [[*path, "--help"] for path in paths(citrus)]
    code = (
        "import sys; from citrus_tool.cli import main\n"
        f"for call in {calls!r}:\n"
        "    assert main(call) == 0, call\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not heavy, (call, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(calls) > 12


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    """Processor time, not wall time: a busy machine must not fail this."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "from citrus_tool.cli import main; main(['--help'])"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, citrus_tool; dir(citrus_tool); sys.exit(any(name in sys.modules for name in {HEAVY!r}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
