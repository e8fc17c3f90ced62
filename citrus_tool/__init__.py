"""citrus: certified training and certification against universal adversarial perturbations.

The public API is listed here and loaded on first use, so that `import citrus_tool` and `citrus --help` are instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from citrus_tool.certify.certificate import Certificate as Certificate
    from citrus_tool.certify.uap import CertifySettings as CertifySettings
    from citrus_tool.certify.uap import certify_uap as certify_uap
    from citrus_tool.data import Dataset as Dataset
    from citrus_tool.data import load as load_data
    from citrus_tool.errors import CitrusError as CitrusError
    from citrus_tool.harden.recipes import Recipe as Recipe
    from citrus_tool.harden.trainer import TrainResult as TrainResult
    from citrus_tool.harden.trainer import fit as fit
    from citrus_tool.network import Network as Network
    from citrus_tool.onnx_io import OnnxModel as OnnxModel
    from citrus_tool.onnx_io import OnnxRunner as OnnxRunner
    from citrus_tool.onnx_io import export as export
    from citrus_tool.onnx_io import read as read
    from citrus_tool.onnx_io import write as write
    from citrus_tool.progress import Progress as Progress
    from citrus_tool.threat import Threat as Threat
    from citrus_tool.workflow import certify_file as certify_file
    from citrus_tool.workflow import evaluate_file as evaluate_file
    from citrus_tool.workflow import harden_file as harden_file
    from citrus_tool.workflow import train_file as train_file

_HOME = {
    "Certificate": "citrus_tool.certify.certificate",
    "CertifySettings": "citrus_tool.certify.uap",
    "CitrusError": "citrus_tool.errors",
    "Dataset": "citrus_tool.data",
    "Network": "citrus_tool.network",
    "OnnxModel": "citrus_tool.onnx_io",
    "OnnxRunner": "citrus_tool.onnx_io",
    "Progress": "citrus_tool.progress",
    "Recipe": "citrus_tool.harden.recipes",
    "Threat": "citrus_tool.threat",
    "TrainResult": "citrus_tool.harden.trainer",
    "certify_file": "citrus_tool.workflow",
    "certify_uap": "citrus_tool.certify.uap",
    "evaluate_file": "citrus_tool.workflow",
    "export": "citrus_tool.onnx_io",
    "fit": "citrus_tool.harden.trainer",
    "harden_file": "citrus_tool.workflow",
    "load_data": "citrus_tool.data:load",
    "read": "citrus_tool.onnx_io",
    "train_file": "citrus_tool.workflow",
    "write": "citrus_tool.onnx_io",
}
"""Public name -> the module (and the name there, where it is another one) that it is loaded from at first use."""

__all__ = [
    "Certificate",
    "CertifySettings",
    "CitrusError",
    "Dataset",
    "Network",
    "OnnxModel",
    "OnnxRunner",
    "Progress",
    "Recipe",
    "Threat",
    "TrainResult",
    "__version__",
    "certify_file",
    "certify_uap",
    "evaluate_file",
    "export",
    "fit",
    "harden_file",
    "load_data",
    "read",
    "train_file",
    "write",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'citrus_tool' has no attribute {name!r}")
    module, _, there = _HOME[name].partition(":")
    return getattr(importlib.import_module(module), there or name)
