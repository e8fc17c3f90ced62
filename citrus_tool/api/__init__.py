"""The Python API: a Model, and what can be done with it.

    import citrus_tool as citrus

    model = citrus.load("M.onnx")                      # or load(module, input_shape=(3, 32, 32)) of a torch.nn.Module
    hardened = model.harden((x, y), eps=2 / 255)       # arrays, a data set's name, an .npz file, a folder
    certificate = hardened.model.certify((x_test, y_test), eps=2 / 255)
    hardened.model.save("H.onnx")

A facade: everything is computed by `workflow` and `queries`, as the command line does it. `harden`, `certify`, `attack`
and `evaluate` are also there as functions whose first argument is the model. Results are frozen records that show
themselves as tables (`repr`, and HTML in a notebook) and have `to_json`.
"""

from citrus_tool.api.arguments import Array as Array
from citrus_tool.api.arguments import AttackOptions as AttackOptions
from citrus_tool.api.arguments import CertifyOptions as CertifyOptions
from citrus_tool.api.arguments import Data as Data
from citrus_tool.api.arguments import OnProgress as OnProgress
from citrus_tool.api.arguments import Step as Step
from citrus_tool.api.functions import report as report
from citrus_tool.api.functions import verify as verify
from citrus_tool.api.model import Hardened as Hardened
from citrus_tool.api.model import Model as Model
from citrus_tool.api.model import load as load

harden = Model.harden
certify = Model.certify
attack = Model.attack
evaluate = Model.evaluate
