"""The demonstration: a shipped network, hardened and certified."""

from __future__ import annotations

from pathlib import Path

from citrus_tool.choices.settings import CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.errors import InputFileError
from citrus_tool.results.harden import HardenReport
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.training import recipes
from citrus_tool.workflow.harden import harden_file


def shipped_model(name: str) -> Path:
    """A network of models/, in a checkout or in an installed package; raises InputFileError when it is absent."""
    package = Path(__file__).parents[1]
    for folder in (package / "models", package.parent / "models"):
        if (folder / name).is_file():
            return folder / name
    raise InputFileError(f"{name}: the shipped network is missing; install citrus-tool again.")


def demo(context: RunContext) -> HardenReport:
    """Hardens the shipped digits network by the recipe `digits` and certifies it before and after.

    At that recipe's eps, on the first 200 inputs of the digits test split. The checkpoints are not kept, so that the
    demo can be run again.
    """
    return harden_file(
        ModelChoice(path=shipped_model("digits_convtiny.onnx")),
        DataChoice(name="digits"),
        recipes.named("digits"),
        context,
        out=context.folder / "digits_convtiny_citrus.onnx",
        certify=CertifySettings(limit=200),
        keep_checkpoints=False,
    )
