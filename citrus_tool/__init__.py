"""citrus: certified training and certification against universal adversarial perturbations.

    import citrus_tool as citrus

    model = citrus.load("M.onnx")
    hardened = model.harden("mnist", eps=0.1)
    print(hardened.model.certify("mnist", eps=0.1, limit=1000))

The public API is listed here and loaded on first use, so that `import citrus_tool` and `citrus --help` are instant.
What most users need is in `citrus_tool.api`; the rest are the parts that it is made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from citrus_tool.names import on_first_use

__version__ = "0.2.0"

if TYPE_CHECKING:
    from citrus_tool.api import Hardened as Hardened
    from citrus_tool.api import Model as Model
    from citrus_tool.api import Step as Step
    from citrus_tool.api import attack as attack
    from citrus_tool.api import certify as certify
    from citrus_tool.api import evaluate as evaluate
    from citrus_tool.api import harden as harden
    from citrus_tool.api import load as load
    from citrus_tool.api import report as report
    from citrus_tool.api import verify as verify
    from citrus_tool.certification.uap import certify_uap as certify_uap
    from citrus_tool.choices.recipe import Recipe as Recipe
    from citrus_tool.choices.settings import CertifySettings as CertifySettings
    from citrus_tool.data import Dataset as Dataset
    from citrus_tool.data import Splits as Splits
    from citrus_tool.data import load as load_data  # noqa: F401 (listed in __all__ by way of _HOME)
    from citrus_tool.errors import CitrusError as CitrusError
    from citrus_tool.network import Network as Network
    from citrus_tool.onnx_io import OnnxModel as OnnxModel
    from citrus_tool.onnx_io import OnnxRunner as OnnxRunner
    from citrus_tool.onnx_io import export as export
    from citrus_tool.onnx_io import read as read
    from citrus_tool.onnx_io import write as write
    from citrus_tool.progress import Progress as Progress
    from citrus_tool.queries.verify import Answer as Answer
    from citrus_tool.queries.verify import Verdict as Verdict
    from citrus_tool.reports.write import write_report as write_report
    from citrus_tool.results.attack import AttackReport as AttackReport
    from citrus_tool.results.certificate import Certificate as Certificate
    from citrus_tool.results.evaluation import Evaluation as Evaluation
    from citrus_tool.results.evaluation import Figures as Figures
    from citrus_tool.results.harden import HardenReport as HardenReport
    from citrus_tool.threat import Threat as Threat
    from citrus_tool.training.trainer import TrainResult as TrainResult
    from citrus_tool.training.trainer import fit as fit
    from citrus_tool.workflow.train import train_file as train_file

_NAMES = {
    "api": "Hardened Model Step attack certify evaluate harden load report verify",
    "certification.uap": "certify_uap",
    "choices.recipe": "Recipe",
    "choices.settings": "CertifySettings",
    "data": "Dataset Splits",
    "errors": "CitrusError",
    "network": "Network",
    "onnx_io": "OnnxModel OnnxRunner export read write",
    "progress": "Progress",
    "queries.verify": "Answer Verdict",
    "reports.write": "write_report",
    "results.attack": "AttackReport",
    "results.certificate": "Certificate",
    "results.evaluation": "Evaluation Figures",
    "results.harden": "HardenReport",
    "threat": "Threat",
    "training.trainer": "TrainResult fit",
    "workflow.train": "train_file",
}
_HOME = {name: f"citrus_tool.{home}" for home, names in _NAMES.items() for name in names.split()}
_HOME["load_data"] = "citrus_tool.data:load"
"""Public name -> the module (and the name there, where it is another one) that it is loaded from at first use."""

__all__ = ["__version__", *_HOME]
__all__.sort()

__getattr__ = on_first_use(__name__, _HOME)


def __dir__() -> list[str]:
    return __all__
