"""One rule per ONNX operator: the canonical layers that it becomes, or a RefusedNodeError that says why not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from citrus_tool.network import Add, Affine, Pad, Transpose
from citrus_tool.onnx_io.lowering import Activation, Call, Constant, Lowering, RefusedNodeError, Rule, Value, float32
from citrus_tool.onnx_io.shape_operators import SHAPE_RULES, reshaped, sample_axis, torch_pads
from citrus_tool.onnx_io.torch_layers import NotConvertedError, convert


def by_onnx2torch(lowering: Lowering, call: Call) -> Value:
    """Layers without constants (Relu, Sigmoid, ...), and whatever else onnx2torch reads as a canonical layer."""
    x = call.activation()
    if len([v for v in call.inputs if v is not None]) != 1:
        raise RefusedNodeError("citrus has no layer for it")
    return lowering.emit(call.name, _converted(call, x), x)


def _converted(
    call: Call, x: Activation, constants: Sequence[Constant] = (), attributes: Mapping[str, Any] | None = None
) -> nn.Module:
    try:
        return convert(
            call.operator,
            call.attributes if attributes is None else attributes,
            x.shape,
            [float32(c) for c in constants],
        )
    except NotConvertedError as error:
        raise RefusedNodeError(f"onnx2torch does not read it ({error})") from None


def _conv(lowering: Lowering, call: Call) -> Value:
    x, weight, bias = call.activation(), call.weights(1), call.constant(2)
    if weight.value.ndim != 4:
        raise RefusedNodeError(f"its kernel has {weight.value.ndim - 2} spatial axes; citrus reads 2-D convolutions")
    x, pads = _padded(lowering, call, x, weight.value.shape[2:])
    attributes = {k: v for k, v in call.attributes.items() if k not in ("auto_pad", "pads")} | {"pads": pads}
    layer = _converted(call, x, [c for c in (weight, bias) if c is not None], attributes)
    assert isinstance(layer, nn.Conv2d)
    layer.weight = lowering.parameter(weight, weight.value.shape)
    if bias is not None:
        layer.bias = lowering.parameter(bias, bias.value.shape)
    else:
        lowering.without_bias[call.output_names[0]] = layer
    return lowering.emit(call.name, layer, x)


def _gemm(lowering: Lowering, call: Call) -> Value:
    x, weight, offset = call.activation(), call.weights(1), call.constant(2)
    alpha, beta = float(call.attributes.get("alpha", 1.0)), float(call.attributes.get("beta", 1.0))
    if call.attributes.get("transA", 0):
        raise RefusedNodeError("transA mixes the batch axis")
    if len(x.shape) != 1 or weight.value.ndim != 2 or alpha == 0.0:
        raise RefusedNodeError(f"citrus reads alpha * x @ W + C with alpha != 0 on vectors, and x has shape {x.shape}")
    transposed = bool(call.attributes.get("transB", 0))
    layer = _linear(lowering, call, weight, transposed=transposed, scale=alpha)
    size = layer.out_features
    if offset is not None and beta != 0.0 and offset.value.shape in ((size,), (1, size)):
        layer.bias = lowering.parameter(offset, (size,), scale=beta)
    out = lowering.emit(call.name, layer, x)
    if offset is None or beta == 0.0:
        lowering.without_bias[call.output_names[0]] = layer
    elif layer.bias is None:
        out = _affine(lowering, call.name, out, 1.0, beta * lowering.fixed(offset))
    return out


def _matmul(lowering: Lowering, call: Call) -> Value:
    x, weight = call.activation(), call.weights(1)
    if weight.value.ndim != 2 or math.prod(x.shape[:-1]) != 1:
        raise RefusedNodeError(
            f"citrus reads x @ W for vectors x and matrices W, here {x.shape} @ {weight.value.shape}"
        )
    shape = (*x.shape[:-1], weight.value.shape[1])
    layer = _linear(lowering, call, weight, transposed=False, scale=1.0)
    lowering.without_bias[call.output_names[0]] = layer
    x = reshaped(lowering, call.name, x, x.shape[-1:])
    return reshaped(lowering, call.name, lowering.emit(call.name, layer, x), shape)


def _linear(lowering: Lowering, call: Call, weight: Constant, *, transposed: bool, scale: float) -> nn.Linear:
    """x @ W (or x @ W.T where the file has W transposed) as nn.Linear without a bias."""
    rows, columns = weight.value.shape
    out_features, in_features = (rows, columns) if transposed else (columns, rows)
    layer = nn.Linear(in_features, out_features, bias=False, device="meta")
    layer.weight = lowering.parameter(weight, (out_features, in_features), transpose=not transposed, scale=scale)
    return layer


def _batch_norm(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    if call.attributes.get("training_mode", 0):
        raise RefusedNodeError("it is in training mode, which mixes the inputs of a batch; export in evaluation mode")
    if len(x.shape) not in (1, 3):
        raise RefusedNodeError(f"citrus reads it on vectors and C x H x W images, and its input has shape {x.shape}")
    scale, offset, mean, variance = (call.weights(i) for i in (1, 2, 3, 4))
    layer = _converted(call, x, (scale, offset, mean, variance))
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    size = (x.shape[0],)
    layer.weight, layer.bias = lowering.parameter(scale, size), lowering.parameter(offset, size)
    layer.running_mean, layer.running_var = lowering.statistic(mean, size), lowering.statistic(variance, size)
    return lowering.emit(call.name, layer, x)


def _max_pool(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    kernel = _pool_kernel(call, x)
    pads = _explicit_pads(call, x, kernel)
    if pads[:2] != pads[2:]:
        raise RefusedNodeError(f"its padding {pads} differs between the sides")
    attributes = {k: v for k, v in call.attributes.items() if k not in ("auto_pad", "ceil_mode")} | {"pads": pads}
    return lowering.emit(call.name, _converted(call, x, attributes=attributes), x)


def _average_pool(lowering: Lowering, call: Call) -> Value:
    """Average over zero-padded windows; where padding is not counted, an Affine divides by what is."""
    x = call.activation()
    kernel = _pool_kernel(call, x)
    if any(d != 1 for d in call.attributes.get("dilations", (1, 1))):
        raise RefusedNodeError("its windows are dilated")
    strides = tuple(call.attributes.get("strides", (1, 1)))
    padded, pads = _padded(lowering, call, x, kernel)
    out = lowering.emit(call.name, nn.AvgPool2d(kernel, strides, (pads[0], pads[1])), padded)
    all_pads = _explicit_pads(call, x, kernel)
    if any(all_pads) and not call.attributes.get("count_include_pad", 0):
        ones = nn.functional.pad(torch.ones(1, 1, *x.shape[1:], dtype=torch.float64), torch_pads(all_pads))
        counted = nn.functional.avg_pool2d(ones, kernel, strides)
        out = _affine(lowering, call.name, out, 1.0 / counted[0].numpy(), 0.0)
    return out


def _pool_kernel(call: Call, x: Activation) -> tuple[int, int]:
    kernel = tuple(int(k) for k in call.attributes.get("kernel_shape", ()))
    if len(kernel) != 2 or len(x.shape) != 3:
        raise RefusedNodeError(
            f"citrus pools over the last two of three axes, here a window {kernel} on shape {x.shape}"
        )
    if call.attributes.get("ceil_mode", 0):
        spans = _spans(call, x, kernel)
        if any((size - span) % stride for size, span, stride in spans):
            raise RefusedNodeError("ceil_mode lets windows reach beyond the padding")
    return kernel[0], kernel[1]


def _spans(call: Call, x: Activation, kernel: Sequence[int]) -> list[tuple[int, int, int]]:
    """(padded size, window, stride) per spatial axis."""
    strides, dilations = _strides(call)
    pads = _explicit_pads(call, x, kernel)
    return [(x.shape[1 + i] + pads[i] + pads[2 + i], dilations[i] * (kernel[i] - 1) + 1, strides[i]) for i in (0, 1)]


def _strides(call: Call) -> tuple[Sequence[int], Sequence[int]]:
    return call.attributes.get("strides", (1, 1)), call.attributes.get("dilations", (1, 1))


def _explicit_pads(call: Call, x: Activation, kernel: Sequence[int]) -> tuple[int, ...]:
    """The padding (top, left, bottom, right) that `auto_pad` or `pads` means."""
    mode = bytes(call.attributes.get("auto_pad", b"NOTSET")).decode()
    if mode == "NOTSET":
        return tuple(int(p) for p in call.attributes.get("pads", (0, 0, 0, 0)))
    if mode == "VALID":
        return (0, 0, 0, 0)
    strides, dilations = _strides(call)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    total = [  # ONNX, Conv: SAME_* gives ceil(size / stride) outputs
        max((math.ceil(size / stride) - 1) * stride + span - size, 0)
        for size, stride, span in zip(x.shape[1:], strides, spans, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (*small, *large) if mode == "SAME_UPPER" else (*large, *small)


def _padded(lowering: Lowering, call: Call, x: Activation, kernel: Sequence[int]) -> tuple[Activation, tuple[int, ...]]:
    """`x` and the symmetric padding left to the layer; padding that differs between the sides is a Pad in front."""
    if len(x.shape) != 3:
        raise RefusedNodeError(f"its input has shape {x.shape} per sample; (C, H, W) is expected")
    pads = _explicit_pads(call, x, kernel)
    if min(pads) < 0:
        raise RefusedNodeError(f"its padding {pads} is negative")
    if pads[:2] == pads[2:]:
        return x, pads
    return lowering.emit(f"{call.name}_pad", Pad(torch_pads(pads)), x), (0, 0, 0, 0)


def _global_pool(layer: Callable[[tuple[int, int]], nn.Module]) -> Rule:
    def rule(lowering: Lowering, call: Call) -> Value:
        x = call.activation()
        if len(x.shape) != 3:
            raise RefusedNodeError(f"citrus pools over the last two of three axes, here on shape {x.shape}")
        return lowering.emit(call.name, layer((x.shape[1], x.shape[2])), x)

    return rule


def _reduce_mean(lowering: Lowering, call: Call) -> Value:
    """Mean over the spatial axes, channels first or last, as an average pool."""
    x = call.activation()
    axes = tuple(sorted(sample_axis(a, x) for a in call.integers(1, "axes") or ()))
    kept = tuple(a for a in range(len(x.shape)) if a not in axes)
    if len(x.shape) != 3 or len(axes) != 2:
        raise RefusedNodeError(
            f"citrus reads means over both spatial axes of an image, here axes {axes} of shape {x.shape}"
        )
    keeps = bool(call.attributes.get("keepdims", 1))
    shape = tuple(1 if a in axes else s for a, s in enumerate(x.shape) if keeps or a not in axes)
    if kept != (0,):
        x = lowering.emit(call.name, Transpose((*kept, *axes)), x)
    return reshaped(lowering, call.name, lowering.emit(call.name, nn.AvgPool2d((x.shape[1], x.shape[2])), x), shape)


def _arithmetic(lowering: Lowering, call: Call) -> Value:
    """Add, Sub, Mul, Div of an activation and a constant; Add and Sub of two activations."""
    a, b = call.inputs
    operator = call.operator
    if isinstance(a, Activation) and isinstance(b, Activation):
        if operator not in ("Add", "Sub"):
            raise RefusedNodeError(
                "product or quotient of two activations; citrus reads layers that are affine or elementwise"
            )
        if a.shape != b.shape:
            raise RefusedNodeError(f"shapes {a.shape} and {b.shape} differ; citrus adds tensors of one shape")
        if operator == "Sub":
            b = _affine(lowering, f"{call.name}_negated", b, -1.0, 0.0)
        return lowering.emit(call.name, Add(), a, b)
    if isinstance(a, Activation) and isinstance(b, Constant):
        x, constant, constant_first = a, b, False
    elif isinstance(a, Constant) and isinstance(b, Activation):
        x, constant, constant_first = b, a, True
    else:
        raise RefusedNodeError("an operand is missing")
    if operator == "Add" and _take_bias(lowering, call, x, constant, call.input_names[0 if x is a else 1]):
        return x
    value = lowering.fixed(constant)
    if operator == "Add":
        return _affine(lowering, call.name, x, 1.0, value)
    if operator == "Sub":
        return _affine(lowering, call.name, x, -1.0 if constant_first else 1.0, value if constant_first else -value)
    if operator == "Mul":
        return _affine(lowering, call.name, x, value, 0.0)
    if constant_first or not value.all():
        raise RefusedNodeError("it divides by an activation or by 0")
    return _affine(lowering, call.name, x, 1.0 / value, 0.0)


def _take_bias(lowering: Lowering, call: Call, x: Activation, constant: Constant, operand: str) -> bool:
    """Makes `constant` the bias of the Conv, Gemm or MatMul that computed `operand`, if that is its role."""
    layer = lowering.without_bias.get(operand)
    if layer is None or lowering.consumers[operand] != 1:
        return False
    channels = 0 if isinstance(layer, nn.Conv2d) else len(x.shape) - 1
    size = x.shape[channels]
    wanted = tuple(size if axis == channels else 1 for axis in range(len(x.shape)))
    given = constant.value.shape
    if (1,) * (len(wanted) + 1 - len(given)) + given != (1, *wanted):
        return False
    layer.bias = lowering.parameter(constant, (size,))
    lowering.emitted.append(f"bias of {type(layer).__name__}")
    return True


def _affine(
    lowering: Lowering, name: str, x: Activation, scale: NDArray[np.float64] | float, shift: NDArray[np.float64] | float
) -> Activation:
    """scale * x + shift with constants that broadcast to a sample's shape, or to the batch's with a first axis of 1."""
    a, b = (_per_sample(np.asarray(v, dtype=np.float64), x.shape) for v in (scale, shift))
    shape = np.broadcast_shapes(a.shape, b.shape)
    layer = Affine(*(torch.from_numpy(np.broadcast_to(v, shape).astype(np.float32)) for v in (a, b)))
    return lowering.emit(name, layer, x)


def _per_sample(value: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    rank = len(shape)
    whole: NDArray[np.float64] = value.reshape((1,) * max(rank + 1 - value.ndim, 0) + value.shape)
    if whole.ndim != rank + 1 or any(c not in (1, s) for c, s in zip(whole.shape, (1, *shape), strict=True)):
        raise RefusedNodeError(
            f"a constant of shape {value.shape} does not apply to inputs of shape {shape} one by one"
        )
    return whole.reshape(whole.shape[1:])


def _negate(lowering: Lowering, call: Call) -> Value:
    return _affine(lowering, call.name, call.activation(), -1.0, 0.0)


def _sum(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    for other in call.inputs[1:]:
        if not isinstance(other, Activation) or other.shape != x.shape:
            raise RefusedNodeError("citrus sums activations of one shape")
        x = lowering.emit(call.name, Add(), x, other)
    return x


def _dropped(lowering: Lowering, call: Call) -> Value:
    """Identity, and Dropout outside training."""
    training = call.constant(2)
    if training is not None and bool(training.value):
        raise RefusedNodeError("dropout is in training mode; export in evaluation mode")
    return call.activation()


def _cast(lowering: Lowering, call: Call) -> Value:
    if call.attributes["to"] != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(call.attributes["to"])
        raise RefusedNodeError(f"it turns activations into {kind}; citrus reads float32")
    return call.activation()


def _softmax(lowering: Lowering, call: Call) -> Value:
    raise RefusedNodeError(
        "citrus certifies logits; a softmax changes the margins and hides them in rounding",
        "Cut it off, which leaves the predicted class as it is: "
        f"onnx.utils.extract_model(FILE, NEW_FILE, [INPUT], [{call.input_names[0]!r}]).",
    )


def _tanh(lowering: Lowering, call: Call) -> Value:
    return lowering.emit(call.name, nn.Tanh(), call.activation())


RULES: Mapping[str, Rule] = {
    **SHAPE_RULES,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Neg": _negate,
    "Sum": _sum,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "Tanh": _tanh,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "ReduceMean": _reduce_mean,
    "GlobalAveragePool": _global_pool(nn.AvgPool2d),
    "GlobalMaxPool": _global_pool(nn.MaxPool2d),
    "Identity": _dropped,
    "Dropout": _dropped,
    "Cast": _cast,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
}
"""Rules of our own; every other operator goes through onnx2torch and stands if that gives a canonical layer."""
