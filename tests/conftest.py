"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """One thread: the tests' networks are small, and summation order must not depend on the machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Tests interrupt themselves; a shell that starts pytest in the background has SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Top folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Folder of published networks beside the checkout; skips without it."""
    folder = SHARED / "models"
    if not folder.is_dir():
        pytest.skip("needs the published networks in ../shared/models, which is absent")
    return folder


@pytest.fixture(scope="session")
def data_root() -> Callable[[str], Path]:
    """Finds the root of a named data set; skips when it is neither in CITRUS_DATA nor in ../shared/data."""
    from citrus_tool.data.lookup import locate

    def find(name: str) -> Path:
        candidates = [Path(os.environ["CITRUS_DATA"])] if "CITRUS_DATA" in os.environ else []
        for root in (*candidates, SHARED / "data"):
            if locate(name, root).found is not None:
                return root
        pytest.skip(f"needs {name} under $CITRUS_DATA or ../shared/data, which is absent")

    return find
