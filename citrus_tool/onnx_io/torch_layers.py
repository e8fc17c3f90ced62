"""One ONNX operator as a torch layer, by onnx2torch.

Each node is converted alone, as a one-node model whose constants are initializers: that is the form which
onnx2torch reads best (it does not see through Constant nodes, loses initializer names, and an operator it
cannot read then costs one node and not the whole network).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

OPSET = 17
"""One-node models are written in this opset, the newest one of which onnx2torch knows every operator used here."""


class NotConvertedError(Exception):
    """onnx2torch does not read the operator, or not with these attributes; the text says why."""


def convert(
    operator: str, attributes: Mapping[str, Any], shape: Sequence[int], parameters: Sequence[NDArray[Any]] = ()
) -> nn.Module:
    """The layer for `operator` applied to one activation of per-sample `shape` and constant `parameters` of any shape.

    Raises NotConvertedError.
    """
    names = [f"constant_{i}" for i in range(len(parameters))]
    node = helper.make_node(operator, ["x", *names], ["y"], name="node", **attributes)
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(p), n) for p, n in zip(parameters, names, strict=True)],
    )
    try:
        onnx.checker.check_node(node, _checker_context())
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        module = _onnx2torch()(model)
    except Exception as error:  # onnx2torch raises NotImplementedError, KeyError, ValueError, RuntimeError alike
        raise NotConvertedError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    return next(module.get_submodule(str(n.target)) for n in module.graph.nodes if n.op == "call_module")


@functools.cache
def _checker_context() -> Any:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = 8
    context.opset_imports = {"": OPSET}
    return context


_torchvision_schemas: list[torch.library.Library] = []  # the definitions live as long as the Library object


@functools.cache
def _onnx2torch() -> Callable[[onnx.ModelProto], fx.GraphModule]:
    """onnx2torch.convert, imported on first use (it takes a second).

    onnx2torch imports torchvision, whose PyPI wheel cannot load its compiled operators beside a CPU-only torch and
    then fails on import for want of their schemas. Only in that case they are declared here, without kernels, so
    that the import goes through; citrus calls none of them.
    """
    if not _compiled_torchvision_loads():
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _torchvision_schemas.append(library)
    import onnx2torch

    converter: Callable[[onnx.ModelProto], fx.GraphModule] = onnx2torch.convert
    return converter


def _compiled_torchvision_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    libraries = [path for folder in folders for path in folder.glob("_C.*") if path.suffix in (".so", ".pyd")]
    try:
        for path in libraries:
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return bool(libraries)
