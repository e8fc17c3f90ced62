"""Runs many command lines of `python -m citrus_tool` one after the other, each in a process of its own.

Called as `python driver.py PLAN.json`: PLAN is a list of {"name", "argv" or "script"}; each is run in the working
folder with stdout, stderr and exit code written to out/NAME.out, .err and .code. The package is imported once and every
command runs in a fork of that process, so that start-up is paid once and no command sees what another one left.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import runpy
import sys
import traceback
from pathlib import Path


def preload() -> None:
    """Imports every module of the package, wherever it lies, and what reading a network needs."""
    import citrus_tool

    for module in pkgutil.walk_packages(citrus_tool.__path__, "citrus_tool."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("onnxruntime", "scipy.sparse"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    citrus_tool.load("models/digits_convtiny.onnx", input_shape=(1, 8, 8))  # imports what reading a network needs


def run(step: dict[str, object]) -> None:
    """One step in this process, to its end; does not return."""
    code = 0
    try:
        out = Path("out")
        for stream, number in (("out", 1), ("err", 2)):
            file = os.open(out / f"{step['name']}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        if "script" in step:
            sys.argv = [str(step["script"])]
            runpy.run_path(str(step["script"]), run_name="__main__")
        else:
            sys.argv = ["citrus_tool", *step["argv"]]  # type: ignore[misc]
            runpy.run_module("citrus_tool", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Runs the plan."""
    steps = json.loads(Path(sys.argv[1]).read_text())
    Path("out").mkdir(exist_ok=True)
    preload()
    for step in steps:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            run(step)
        _, status, used = os.wait4(child, 0)
        (Path("out") / f"{step['name']}.code").write_text(str(os.waitstatus_to_exitcode(status)))
        sys.stderr.write(f"{used.ru_utime + used.ru_stime:6.1f} s  {step['name']}\n")


if __name__ == "__main__":
    main()
