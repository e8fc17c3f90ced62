"""The files of the zoo: networks of torch by either exporter, and graphs as other tools write them, by onnx.helper.

Weights are drawn with a fixed seed and then settled on random images, layer by layer: every layer's outputs get unit
deviation, batch norms the images' statistics, and the last layer logits that vary between inputs.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import zoo_networks as nets
import zoo_tokens as tokens
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
SETTLED_ON = 64
"""Images that weights are settled on: enough for the statistics of a batch norm, run in milliseconds."""
TRACED_OPSET = 17
"""What torch's tracing exporter is asked for; the newer one (`dynamo=True`) chooses its own."""

Norm = nn.modules.batchnorm._BatchNorm
Floats = NDArray[np.float32]


def images(shape: Sequence[int], count: int, seed: int) -> Tensor:
    """Random inputs (count, *shape) in [0, 1]: smooth along all axes but the first, with a little noise."""
    random = torch.Generator().manual_seed(seed)
    if len(shape) == 1:
        return torch.rand(count, *shape, generator=random)
    coarse = torch.randn(count, shape[0], *(max(2, side // 4) for side in shape[1:]), generator=random)
    mode = ("linear", "bilinear", "trilinear")[len(shape) - 2]
    smooth = functional.interpolate(coarse, size=tuple(shape[1:]), mode=mode)
    return (0.5 + 0.25 * smooth + 0.05 * torch.randn(count, *shape, generator=random)).clamp(0, 1)


def settled(make: Callable[[], nn.Module], shape: Sequence[int]) -> nn.Module:
    """The module in evaluation mode, with the weights that this file's head describes."""
    torch.manual_seed(SEED)
    module = make().eval()
    weighted = [m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    norms = [m for m in module.modules() if isinstance(m, Norm)]

    def settle(layer: Any, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        axis = y.dim() - 1 if isinstance(layer, nn.Linear) else 1
        mean, std = torch.zeros(()), y.std()
        if layer is weighted[-1]:
            others = [a for a in range(y.dim()) if a != axis]
            mean, std = y.mean(others), y.std(others)
        rows = std.reshape(-1, *[1] * (layer.weight.dim() - 1)) if std.dim() else std
        if nn.utils.parametrize.is_parametrized(layer):
            layer.weight = layer.weight / rows
        else:
            layer.weight.copy_(layer.weight / rows)
        if layer.bias is not None:
            layer.bias.copy_((layer.bias - mean) / std)
        along = [-1 if a == axis else 1 for a in range(y.dim())]
        return (y - mean.reshape(along if mean.dim() else ())) / std.reshape(along if std.dim() else ())

    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, Norm | nn.LayerNorm):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, 0.0, 0.1)
        for norm in norms:
            norm.momentum = None  # statistics of all that passes
            norm.train()
        hooks = [m.register_forward_hook(settle) for m in weighted]
        module(images(shape, SETTLED_ON, SEED))
        for hook in hooks:
            hook.remove()
    return module.eval()


def export(module: nn.Module, shape: Sequence[int], path: Path, *, dynamo: bool, **options: Any) -> None:
    """Writes `module` with a free batch axis by torch's exporter: the newer one, or the tracing one."""
    x = torch.zeros(2, *shape)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if dynamo:
            axes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(module, (x,), path, input_names=["input"], dynamic_shapes=axes, dynamo=True, **options)
        else:
            torch.onnx.export(
                module,
                (x,),
                path,
                input_names=["input"],
                dynamic_axes={"input": {0: "batch"}},
                **{"dynamo": False, "opset_version": TRACED_OPSET} | options,
            )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of the zoo.

    Attributes:
        shape: of an input in pixel space.
        source: who writes such files, for the table.
        write: makes the file at a path.
    """

    shape: tuple[int, ...]
    source: str
    write: Callable[[Path], None]


def traced(make: Callable[[], nn.Module], *shape: int, **options: Any) -> Entry:
    """A network by torch's tracing exporter, which people have known the longest."""
    return _by_torch(make, shape, dynamo=False, **options)


def exported(make: Callable[[], nn.Module], *shape: int, **options: Any) -> Entry:
    """A network by torch's current exporter."""
    return _by_torch(make, shape, dynamo=True, **options)


def _by_torch(make: Callable[[], nn.Module], shape: tuple[int, ...], *, dynamo: bool, **options: Any) -> Entry:
    def write(path: Path) -> None:
        export(settled(make, shape), shape, path, dynamo=dynamo, **options)

    return Entry(shape=shape, source=f"torch, {'dynamo' if dynamo else 'traced'}", write=write)


class Drawn:
    """Constants of a graph by name, drawn one after another from one seed: He's deviation, biases of a tenth."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(SEED)
        self.tensors: list[TensorProto] = []

    def floats(self, *shape: int, fan_in: int) -> Floats:
        """Weights whose outputs keep the variance of rectified inputs."""
        return self.random.normal(0, math.sqrt(2 / fan_in), shape).astype(np.float32)

    def keep(self, name: str, value: NDArray[Any]) -> str:
        """Makes `value` an initializer; its name."""
        self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def weights(self, name: str, *shape: int, fan_in: int) -> str:
        return self.keep(name, self.floats(*shape, fan_in=fan_in))

    def bias(self, name: str, *shape: int) -> str:
        return self.keep(name, 0.1 * self.random.standard_normal(shape, dtype=np.float32))

    def integers(self, name: str, *values: int) -> str:
        return self.keep(name, np.array(values, dtype=np.int64))


Nodes = list[onnx.NodeProto]


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """A node whose inputs are named in one string, separated by blanks."""
    return helper.make_node(operator, inputs.split(), [output], output, **attributes)


def save(
    path: Path, nodes: Nodes, drawn: Drawn, shape: Sequence[int | str], classes: int, *, opset: int, ir: int = 8
) -> None:
    """Writes a graph from `input` of the file's `shape` to `output` (batch, classes); below IR 4 weights are inputs."""
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    if ir < 4:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in drawn.tensors]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, [shape[0], classes])]
    graph = helper.make_graph(nodes, "network", inputs, outputs, drawn.tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir), path)


def keras_nhwc(path: Path) -> None:
    """What tf2onnx makes of a Keras classifier: channels last at both ends, a softmax behind the logits."""
    d = Drawn()
    d.weights("conv/kernel", 8, 1, 3, 3, fan_in=9)
    d.bias("conv/bias", 8)
    d.weights("conv_1/kernel", 12, 8, 3, 3, fan_in=72)
    d.bias("conv_1/bias", 12)
    d.weights("dense/kernel", 108, 10, fan_in=30)
    d.bias("dense/bias", 10)
    d.integers("flatten/shape", -1, 108)
    nodes = [
        node("Transpose", "input", "to_nchw", perm=[0, 3, 1, 2]),
        node(
            "Conv", "to_nchw conv/kernel conv/bias", "conv", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"
        ),
        node("Relu", "conv", "relu"),
        node("Conv", "relu conv_1/kernel conv_1/bias", "conv_1", kernel_shape=[3, 3]),
        node("Relu", "conv_1", "relu_1"),
        node("MaxPool", "relu_1", "max_pool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID"),
        node("Transpose", "max_pool", "to_nhwc", perm=[0, 2, 3, 1]),
        node("Reshape", "to_nhwc flatten/shape", "flatten"),
        node("MatMul", "flatten dense/kernel", "dense"),
        node("Add", "dense dense/bias", "logits"),
        node("Softmax", "logits", "output", axis=-1),
    ]
    save(path, nodes, d, ["batch", 16, 16, 1], 10, opset=13)


def hwio(path: Path) -> None:
    """TensorFlow kernels (height, width, in, out), transposed in the graph, as raw conversions leave them."""
    d = Drawn()
    d.weights("kernel", 3, 3, 3, 8, fan_in=27)
    d.bias("bias", 8)
    d.weights("kernel_1", 3, 3, 8, 12, fan_in=72)
    d.bias("bias_1", 12)
    d.weights("dense", 192, 10, fan_in=60)
    d.bias("dense/bias", 10)
    d.integers("shape", -1, 192)
    nodes = [
        node("Transpose", "kernel", "oihw", perm=[3, 2, 0, 1]),
        node("Conv", "input oihw bias", "conv", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "conv", "relu"),
        node("Transpose", "kernel_1", "oihw_1", perm=[3, 2, 0, 1]),
        node("Conv", "relu oihw_1 bias_1", "conv_1", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "conv_1", "relu_1"),
        node("Reshape", "relu_1 shape", "flat"),
        node("MatMul", "flat dense", "product"),
        node("Add", "product dense/bias", "output"),
    ]
    save(path, nodes, d, ["batch", 3, 16, 16], 10, opset=13)


def small_cnn(d: Drawn, weights: Sequence[str]) -> Nodes:
    """Two convolutions and a Gemm for inputs (batch, 3, 16, 16), whose weights are the values of these names."""
    first, second, dense = weights
    d.bias("bias", 8)
    d.bias("bias_1", 12)
    d.bias("dense/bias", 10)
    return [
        node("Conv", f"input {first} bias", "conv", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "conv", "relu"),
        node("Conv", f"relu {second} bias_1", "conv_1", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "conv_1", "relu_1"),
        node("Flatten", "relu_1", "flat"),
        node("Gemm", f"flat {dense} dense/bias", "output", transB=1),
    ]


SMALL_WEIGHTS = {"kernel": ((8, 3, 3, 3), 27), "kernel_1": ((12, 8, 3, 3), 72), "dense": ((10, 192), 60)}
"""Shapes and fan-in of small_cnn's weights."""


def int8(path: Path) -> None:
    """Weights as int8 with one scale per output channel, dequantised in the graph; activations are floats."""
    d = Drawn()
    nodes = []
    for name, (shape, fan_in) in SMALL_WEIGHTS.items():
        w = d.floats(*shape, fan_in=fan_in)
        scale = np.abs(w).reshape(shape[0], -1).max(1) / 127
        d.keep(f"{name}_quantized", np.round(w / scale.reshape(-1, *[1] * (len(shape) - 1))).astype(np.int8))
        d.keep(f"{name}_scale", scale)
        d.keep(f"{name}_zero_point", np.zeros(shape[0], np.int8))
        nodes.append(
            node("DequantizeLinear", f"{name}_quantized {name}_scale {name}_zero_point", f"{name}_float", axis=0)
        )
    nodes += small_cnn(d, [f"{name}_float" for name in SMALL_WEIGHTS])
    save(path, nodes, d, ["batch", 3, 16, 16], 10, opset=13)


def fp16(path: Path) -> None:
    """Weights stored in half precision and cast in the graph."""
    d = Drawn()
    nodes = []
    for name, (shape, fan_in) in SMALL_WEIGHTS.items():
        d.keep(f"{name}_half", d.floats(*shape, fan_in=fan_in).astype(np.float16))
        nodes.append(node("Cast", f"{name}_half", f"{name}_float", to=TensorProto.FLOAT))
    nodes += small_cnn(d, [f"{name}_float" for name in SMALL_WEIGHTS])
    save(path, nodes, d, ["batch", 3, 16, 16], 10, opset=13)


def opset8(path: Path) -> None:
    """CNTK's MNIST network (the model zoo's mnist-8): auto_pad, biases (C, 1, 1) in Add nodes, a reshaped matrix."""
    d = Drawn()
    d.weights("Parameter5", 8, 1, 5, 5, fan_in=25)
    d.bias("Parameter6", 8, 1, 1)
    d.weights("Parameter87", 16, 8, 5, 5, fan_in=200)
    d.bias("Parameter88", 16, 1, 1)
    d.weights("Parameter193", 16, 2, 2, 10, fan_in=20)
    d.bias("Parameter194", 1, 10)
    d.integers("shape", 1, 64)
    d.integers("shape_1", 64, 10)
    same = {"auto_pad": "SAME_UPPER", "strides": [1, 1], "dilations": [1, 1], "group": 1}
    nodes = [
        node("Reshape", "Parameter193 shape_1", "Parameter193_reshape1"),
        node("Conv", "input Parameter5", "Convolution28", kernel_shape=[5, 5], **same),
        node("Add", "Convolution28 Parameter6", "Plus30"),
        node("Relu", "Plus30", "ReLU32"),
        node(
            "MaxPool", "ReLU32", "Pooling66", kernel_shape=[2, 2], strides=[2, 2], auto_pad="NOTSET", pads=[0, 0, 0, 0]
        ),
        node("Conv", "Pooling66 Parameter87", "Convolution110", kernel_shape=[5, 5], **same),
        node("Add", "Convolution110 Parameter88", "Plus112"),
        node("Relu", "Plus112", "ReLU114"),
        node("MaxPool", "ReLU114", "Pooling160", kernel_shape=[3, 3], strides=[3, 3], auto_pad="NOTSET", pads=[0] * 4),
        node("Reshape", "Pooling160 shape", "Pooling160_reshape0"),
        node("MatMul", "Pooling160_reshape0 Parameter193_reshape1", "Times212"),
        node("Add", "Times212 Parameter194", "output"),
    ]
    save(path, nodes, d, [1, 1, 14, 14], 10, opset=8, ir=3)


def ir3(path: Path) -> None:
    """IR 3 and opset 9, as Caffe2 and early torch wrote them: every weight is an input of the graph, too."""
    d = Drawn()
    nodes = small_cnn(d, [d.weights(name, *shape, fan_in=fan_in) for name, (shape, fan_in) in SMALL_WEIGHTS.items()])
    save(path, nodes, d, ["batch", 3, 16, 16], 10, opset=9, ir=3)


def external(path: Path) -> None:
    """A residual network whose weights lie in a file beside it."""
    export(settled(nets.resnet, (3, 16, 16)), (3, 16, 16), path, dynamo=False)
    proto = onnx.load(path)
    onnx.save(proto, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)


def _helper(write: Callable[[Path], None], *shape: int) -> Entry:
    return Entry(shape=shape, source="onnx.helper", write=write)


ENTRIES = {
    "lenet": exported(nets.lenet, 1, 28, 28),
    "vgg": traced(nets.vgg, 3, 32, 32),
    "resnet": exported(nets.resnet, 3, 32, 32),
    "mobilenet_v2": traced(nets.mobilenet_v2, 3, 16, 16),
    "mobilenet_v3": traced(nets.mobilenet_v3, 3, 16, 16),
    "efficientnet": exported(nets.efficientnet, 3, 16, 16),
    "regnet_y": traced(nets.regnet_y, 3, 16, 16),
    "shufflenet": exported(nets.shufflenet, 3, 16, 16),
    "densenet": traced(nets.densenet, 3, 32, 32),
    "squeezenet": traced(nets.squeezenet, 3, 32, 32),
    "googlenet": exported(nets.googlenet, 3, 16, 16),
    "inception": traced(nets.inception, 3, 16, 16),
    "convnext": exported(tokens.convnext, 3, 16, 16),
    "swin": traced(tokens.swin, 3, 16, 16),
    "vit": exported(tokens.vit, 3, 16, 16),
    "mixer": traced(tokens.mixer, 3, 16, 16),
    "keras_nhwc": _helper(keras_nhwc, 1, 16, 16),
    "binary": traced(nets.binary, 3, 16, 16),
    "tabular": exported(nets.tabular, 16),
    "signal": traced(nets.signal, 2, 64),
    "volume": traced(nets.volume, 1, 8, 8, 8),
    "unet": exported(nets.UNet, 3, 16, 16),
    "int8": _helper(int8, 3, 16, 16),
    "fp16": _helper(fp16, 3, 16, 16),
    "hwio": _helper(hwio, 3, 16, 16),
    "weight_norm": traced(nets.weight_norm, 3, 16, 16, do_constant_folding=False),
    "opset8": _helper(opset8, 1, 14, 14),
    "ir3": _helper(ir3, 3, 16, 16),
    "external_data": Entry(shape=(3, 16, 16), source="torch, traced, and onnx.save", write=external),
    "two_outputs": traced(nets.TwoHeads, 3, 16, 16, output_names=["embedding", "logits"]),
}
"""The zoo by name of the file."""
