"""unsat is about every float32 run of the file, where float32 absorbs what reals cancel; or about real arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from citrus_tool.cli import main
from citrus_tool.onnx_io import OnnxRunner
from citrus_tool.queries import parse
from citrus_tool.queries.verify import Verdict, read_models, verify
from tests.onnx_io.build import Array, node, proto, save

S, A, B = 64.0, 0.734375, 0.3125
SPIKE: dict[str, list[Any]] = {
    "A": [[S, 0], [-S, 0], [0, S], [0, -S], [1, 0]],
    "a": [-S * A, S * A, -S * B, S * B, 0],
    "B": [[-1, -1, -1, -1, 0], [0, 0, 0, 0, 1]],
    "b": [1, 0],
    "C": [[3e7, 0], [1e7, 0], [0, 1]],
    "c": [0, 0, 0],
    "D": [[1, -3, 1]],
    "d": [0],
}
"""|x - (A, B)| and x_0, then a spike t around (A, B), then 3e7 t - 3 (1e7 t) + x_0: in real arithmetic y is x_0."""

QUERY = """(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)
(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= X_1 0))(assert (<= X_1 1))(assert (>= Y_0 1.5))"""


def spike(folder: Path) -> Path:
    nodes, source = [], "x"
    for number, name in enumerate("ABCD"):
        end = "y" if name == "D" else f"z{number}"
        nodes.append(node("Gemm", f"{source} {name} {name.lower()}", end, transB=1))
        if name != "D":
            nodes.append(node("Relu", end, f"r{number}"))
            source = f"r{number}"
    constants: dict[str, Array] = {name: torch.tensor(value).float().numpy() for name, value in SPIKE.items()}
    return save(proto(nodes, constants, shape=(2,)), folder)


def test_unsat_speaks_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = spike(tmp_path)
    spec = parse(QUERY)
    models = read_models(spec, {"N": path})
    (model,) = models.values()
    x = torch.tensor([A, B]) + 0.02 * (torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) - 0.5)
    y = OnnxRunner(model).logits(x.reshape(-1, *model.contract.pixel_shape))
    assert y.max() >= 1.5  # the file reaches the unsafe set
    with torch.no_grad():
        exact = model.network.frozen(dtype=torch.float64)
        assert exact(x.double().reshape(-1, *model.contract.pixel_shape)).max() < 1.5
    assert verify(spec, models, seconds=60.0).verdict is Verdict.SAT
    assert verify(spec, models, arithmetic="real", seconds=60.0).verdict is Verdict.UNSAT
    query = tmp_path / "q.vnnlib"
    query.write_text(QUERY)
    for arithmetic, expected in (("float32", "sat"), ("real", "unsat")):
        main(["verify", str(query), "--network", f"N={path}", "--quiet", "--arithmetic", arithmetic])
        assert capsys.readouterr().out.split()[0] == expected
