"""The house rules that no linter checks: packaging, the container recipe, the public API, who imports what."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import networkx as nx
import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import citrus_tool
from citrus_tool.cli import citrus

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(line) for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])]
ONNXRUNTIME = {"onnxruntime", "onnxruntime-gpu"}
PINS = {
    canonicalize_name(line.partition("==")[0]): line.partition("==")[2]
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def modules() -> list[Path]:
    return sorted((ROOT / "citrus_tool").rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_no_imports_go_in_a_circle() -> None:
    """Neither between modules nor between rooms; imports inside functions and for type checkers count, too."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in modules()}
    graph, rooms = nx.DiGraph(), nx.DiGraph()
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in names and node.module != "citrus_tool":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    graph.add_edge(name, inner if inner in names else node.module)
    room_of = {name: name.split(".")[1] for name in names if "." in name}
    rooms.add_edges_from((room_of[a], room_of[b]) for a, b in graph.edges if a in room_of and room_of[a] != room_of[b])
    assert len(graph) > 150
    assert len(rooms) > 20
    assert [circle for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []
    assert [circle for circle in nx.strongly_connected_components(rooms) if len(circle) > 1] == []


@pytest.mark.parametrize("package", ["pulp", "highspy"])
def test_only_the_master_problem_imports_a_solver(package: str) -> None:
    users = [p.relative_to(ROOT).as_posix() for p in modules() if any(i.split(".")[0] == package for i in imports(p))]
    assert users == ["citrus_tool/certification/milp.py"]


def test_harden_and_certify_do_not_know_each_other() -> None:
    for path in modules():
        for one, other in (("training", "certification"), ("certification", "training")):
            if path.parent.name == one:
                assert not any(i.startswith(f"citrus_tool.{other}") for i in imports(path)), path


WORKING_STATE = {"_Ledger", "Conflicts", "Emission", "Growth", "Lowering", "Witnesses", "_Position", "_Task"}
"""Dataclasses that change while one function call or one group lasts; every other one is a value."""


def test_data_types_are_frozen_and_keyword_only() -> None:
    checked = 0
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for decorator in node.decorator_list:
                    if "dataclass" in ast.unparse(decorator):
                        given = set(re.findall(r"\w+=True", ast.unparse(decorator)))
                        # slots: nodes of a parse tree, made by the hundred thousand
                        assert given & {"kw_only=True", "slots=True"}, node.name
                        assert ("frozen=True" in given) == (node.name not in WORKING_STATE), node.name
                        checked += 1
    assert checked > 10


@pytest.mark.parametrize("forbidden", ["hasattr", "eval", "exec", "__import__"])
def test_no_tricks(forbidden: str) -> None:
    for path in modules():
        if path.name == "network.py" and forbidden == "hasattr":
            continue  # _identifier asks torch.nn.Module which names it has taken
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(call.func, ast.Name) and call.func.id == forbidden for call in calls), path


# --- packaging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["linux", "win32", "darwin"])
@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64", "arm64"])
def test_exactly_one_onnxruntime(platform: str, machine: str) -> None:
    environment = {"sys_platform": platform, "platform_machine": machine}
    chosen = [
        r.name for r in DIRECT if r.name.startswith("onnxruntime") and r.marker and r.marker.evaluate(environment)
    ]
    gpu = (platform, machine) in {("linux", "x86_64"), ("win32", "AMD64")}
    assert chosen == ["onnxruntime-gpu" if gpu else "onnxruntime"]


def test_constraints_hold_versions_only() -> None:
    for name, version in PINS.items():
        assert re.fullmatch(r"\d+(\.\d+)*(\.?(post|rc|a|b)\d+)?", version), (name, version)


def test_no_two_wheels_of_onnxruntime_are_installed() -> None:
    """They hold the same files: what is imported would depend on which one was unpacked last."""
    names = {canonicalize_name(found.name) for found in importlib.metadata.distributions()}
    assert len(names & ONNXRUNTIME) == 1, "make develop puts this right"


@pytest.mark.parametrize("extra", ["", *sorted(PROJECT["optional-dependencies"])])
def test_no_extra_brings_another_wheel_of_onnxruntime(extra: str) -> None:
    """Direct and indirect; of what is not installed here (the trackers) only the names in pyproject.toml are seen."""
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"].get(extra, [])]
    found = set(closure([Requirement(line) for line in lines], partly=True))
    assert len(found & ONNXRUNTIME) == 1


def closure(requirements: list[Requirement], *, partly: bool = False) -> Iterator[str]:
    """Every distribution that these need on this machine, direct and indirect.

    partly: what is not installed counts as needing nothing; otherwise it is a PackageNotFoundError.
    """
    seen, pending = set(), list(requirements)
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        yield name
        try:
            pending += [Requirement(line) for line in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            if not partly:
                raise


def test_every_dependency_is_pinned_to_a_version_that_fits() -> None:
    for requirement in DIRECT:
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), requirement.name
    # CUDA builds of torch bring libraries that torch itself pins
    missing = {name for name in closure(DIRECT) if name not in PINS and not re.match(r"nvidia-|cuda-|triton", name)}
    assert not missing


def test_every_import_is_declared() -> None:
    """Third-party modules that the package imports are its own dependencies, not somebody else's."""
    runtime = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    owners = importlib.metadata.packages_distributions()
    for path in modules():
        for module in {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"citrus_tool"}:
            assert runtime & {canonicalize_name(owner) for owner in owners.get(module, ["nobody"])}, (path, module)


def test_wheel_ships_each_shipped_network_once() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    forced = wheel["force-include"]
    assert sorted(forced) == sorted(f"models/{path.name}" for path in (ROOT / "models").glob("*.onnx"))
    assert all(target == f"citrus_tool/{source}" for source, target in forced.items())


def test_dockerfile() -> None:
    """The recipe parses, names its base image without a registry, installs what is pinned, and does not run as root."""
    parser = DockerfileParser(path=str(ROOT / "Dockerfile"), env_replace=True, build_args={})
    steps = [(step["instruction"], step["value"]) for step in parser.structure if step["instruction"] != "COMMENT"]
    assert [name for name, _ in steps[:2]] == ["ARG", "FROM"]
    assert steps[1][1] == "${BASE}"
    assert "." not in steps[0][1].partition("=")[2].split("/")[0]
    assert steps[-2:] == [("ENTRYPOINT", '["citrus"]'), ("CMD", '["--help"]')]
    assert dict(steps)["USER"] == "citrus"
    copied = {source for name, value in steps if name == "COPY" for source in value.split()[:-1]}
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "citrus_tool", "models"} == copied
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)
    runs = [value for name, value in steps if name == "RUN"]
    assert any("pip install . --constraint constraints.txt" in value for value in runs)


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.onnx")), ids=lambda path: path.name)
def test_shipped_networks_are_the_ones_described(path: Path) -> None:
    assert path.stat().st_size < 100_000
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"| {path.name} | `{digest}` |" in (ROOT / "models" / "MODELS.md").read_text()


# --- public API and command line --------------------------------------------------------------------------------------


def test_public_names_are_declared_alike_for_type_checkers_and_at_run_time() -> None:
    tree = ast.parse(Path(citrus_tool.__file__).read_text())
    declared = {
        alias.asname: node.module if alias.name == alias.asname else f"{node.module}:{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("citrus_tool")
        for alias in node.names
        if alias.asname
    }
    assert declared == citrus_tool._HOME
    assert set(citrus_tool.__all__) == {"__version__", *declared}
    for name, home in citrus_tool._HOME.items():
        module, _, there = home.partition(":")
        assert getattr(citrus_tool, name) is getattr(importlib.import_module(module), there or name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = citrus_tool.nothing


@pytest.mark.parametrize("words", [["--help"], ["data", "list"]])
def test_what_needs_no_torch_does_not_load_it(words: list[str]) -> None:
    code = f"import sys; from citrus_tool.cli import main; main({words}); sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode == 0
    )


def commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*prefix, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


@pytest.mark.parametrize(("name", "command"), list(commands(citrus)), ids=lambda value: str(value))
def test_every_command_shows_an_example(name: tuple[str, ...], command: click.Command) -> None:
    assert f"citrus {' '.join(name)}" in (command.help or "").partition("Example:")[2]


def test_no_path_of_one_machine_in_any_file() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![\w.~])/(home|root|Users|work)/\w")
    for name in listing.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".csv", ""} and path.is_file() and path != Path(__file__):
            assert not pattern.search(path.read_text(encoding="utf-8", errors="ignore")), name
