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

from citrus_tool.network import (
    Add,
    Affine,
    Concat,
    Pad,
    Reshape,
    Slice,
    Transpose,
)
from citrus_tool.onnx_io.torch_layers import NotConvertedError, convert
from citrus_tool.onnx_io.values import (
    Activation,
    Call,
    Constant,
    Lowering,
    RefusedNodeError,
    Value,
    float32,
)

Rule = Callable[[Lowering, Call], Value | tuple[Value, ...]]


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
    x = _reshaped(lowering, call.name, x, x.shape[-1:])
    return _reshaped(lowering, call.name, lowering.emit(call.name, layer, x), shape)


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


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX order (all begins, then all ends) to torch order (last axis first, begin and end together)."""
    half = len(pads) // 2
    return [p for axis in reversed(range(half)) for p in (pads[axis], pads[half + axis])]


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
    axes = tuple(sorted(_axis(a, x) for a in call.integers(1, "axes") or ()))
    kept = tuple(a for a in range(len(x.shape)) if a not in axes)
    if len(x.shape) != 3 or len(axes) != 2:
        raise RefusedNodeError(
            f"citrus reads means over both spatial axes of an image, here axes {axes} of shape {x.shape}"
        )
    keeps = bool(call.attributes.get("keepdims", 1))
    shape = tuple(1 if a in axes else s for a, s in enumerate(x.shape) if keeps or a not in axes)
    if kept != (0,):
        x = lowering.emit(call.name, Transpose((*kept, *axes)), x)
    return _reshaped(lowering, call.name, lowering.emit(call.name, nn.AvgPool2d((x.shape[1], x.shape[2])), x), shape)


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


def _reshaped(lowering: Lowering, name: str, x: Activation, shape: Sequence[int]) -> Activation:
    return x if x.shape == tuple(shape) else lowering.emit(name, Reshape(shape), x)


def _flatten(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    axis = int(call.attributes.get("axis", 1))
    axis += len(x.shape) + 1 if axis < 0 else 0
    # at batch 1, Flatten(axis=0) is Flatten(axis=1); a later axis is, where all before it have one entry
    if math.prod(x.shape[: max(axis - 1, 0)]) != 1:
        raise RefusedNodeError(f"axis {axis} mixes the batch axis with axes of shape {x.shape}")
    return _reshaped(lowering, call.name, x, (math.prod(x.shape),))


def _reshape(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    target = list(call.integers(1, "shape") or ())
    if not target:
        raise RefusedNodeError("its shape is missing")
    whole = (1, *x.shape)
    if not call.attributes.get("allowzero", 0):
        target = [whole[i] if t == 0 and i < len(whole) else t for i, t in enumerate(target)]
    if target[0] == -1 and -1 not in target[1:]:
        target[0] = 1  # the batch axis
    if -1 in target:
        rest = math.prod(t for t in target if t != -1)
        target[target.index(-1)] = math.prod(whole) // rest if rest else 0
    if target[0] != 1 or math.prod(target) != math.prod(whole) or len(target) < 2:
        raise RefusedNodeError(
            f"it turns one input of shape {x.shape} into {tuple(target)}, which mixes the batch axis"
        )
    return _reshaped(lowering, call.name, x, target[1:])


def _squeeze(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    given = call.integers(1, "axes")
    axes = {_axis(a, x) for a in given} if given is not None else {a for a, s in enumerate(x.shape) if s == 1}
    if any(x.shape[a] != 1 for a in axes):
        raise RefusedNodeError(f"axes {sorted(axes)} of shape {x.shape} do not all have one entry")
    return _reshaped(lowering, call.name, x, tuple(s for a, s in enumerate(x.shape) if a not in axes))


def _unsqueeze(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    axes = call.integers(1, "axes") or ()
    rank = len(x.shape) + 1 + len(axes)
    places = {a + rank if a < 0 else a for a in axes}
    if 0 in places:
        raise RefusedNodeError("it adds an axis in front of the batch axis")
    sizes = iter(x.shape)
    return _reshaped(lowering, call.name, x, tuple(1 if place in places else next(sizes) for place in range(1, rank)))


def _transpose(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    perm = tuple(call.attributes.get("perm", range(len(x.shape), -1, -1)))
    if perm[0] != 0:
        raise RefusedNodeError(f"perm {perm} moves the batch axis")
    return lowering.emit(call.name, Transpose(tuple(p - 1 for p in perm[1:])), x)


def _pad(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    mode = bytes(call.attributes.get("mode", b"constant")).decode()
    pads, value = call.integers(1, "pads") or (), call.constant(2)
    if mode != "constant":
        raise RefusedNodeError(f"mode {mode!r}; citrus pads with a constant")
    axes = call.integers(3, "axes")
    places = range(len(x.shape) + 1) if axes is None else [a % (len(x.shape) + 1) for a in axes]
    if len(pads) != 2 * len(places):
        raise RefusedNodeError(f"{len(pads)} pads for {len(places)} axes")
    whole = [0] * (2 * (len(x.shape) + 1))
    for i, place in enumerate(places):
        whole[place], whole[len(x.shape) + 1 + place] = pads[i], pads[len(places) + i]
    if min(whole) < 0 or whole[0] or whole[len(x.shape) + 1]:
        raise RefusedNodeError(f"pads {tuple(pads)} are negative or pad the batch axis")
    if not any(whole):
        return x
    fill = 0.0 if value is None else float(lowering.fixed(value).item())
    return lowering.emit(call.name, Pad(torch_pads(whole)[:-2], fill), x)


def _concat(lowering: Lowering, call: Call) -> Value:
    parts = [v for v in call.inputs if isinstance(v, Activation)]
    if len(parts) != len(call.inputs):
        raise RefusedNodeError("it joins activations with constants")
    return lowering.emit(call.name, Concat(_axis(int(call.attributes["axis"]), parts[0])), *parts)


def _slice(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    starts, ends = call.integers(1, "starts") or (), call.integers(2, "ends") or ()
    axes = call.integers(3, "axes") or tuple(range(len(starts)))
    steps = call.integers(4, "steps") or (1,) * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % (len(x.shape) + 1) == 0 and start == 0 and end >= 2**31 - 1 and step == 1:
            continue  # the whole batch
        place = _axis(axis, x)
        if step < 1:
            raise RefusedNodeError(f"step {step} runs backwards")
        first, stop, _ = slice(start, end, step).indices(x.shape[place])
        if stop <= first:
            raise RefusedNodeError(f"nothing is left of axis {axis}")
        if (first, stop, step) != (0, x.shape[place], 1):
            x = lowering.emit(call.name, Slice(place, first, stop, step), x)
    return x


def _split(lowering: Lowering, call: Call) -> tuple[Value, ...]:
    x = call.activation()
    place = _axis(int(call.attributes.get("axis", 0)), x)
    size, count = x.shape[place], len(call.output_names)
    step = math.ceil(size / count)
    sizes = call.integers(1, "split") or tuple(min(step, size - i * step) for i in range(count))
    if sum(sizes) != size or min(sizes) < 1 or len(sizes) != count:
        raise RefusedNodeError(f"parts {sizes} do not add up to {size}")
    starts = [sum(sizes[:i]) for i in range(count)]
    # a part that nobody uses is no node, but keeps its place
    return tuple(
        lowering.emit(call.name, Slice(place, start, start + part), x) if lowering.consumers[name] or count == 1 else x
        for name, start, part in zip(call.output_names, starts, sizes, strict=True)
    )


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
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Pad": _pad,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Identity": _dropped,
    "Dropout": _dropped,
    "Cast": _cast,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
}
"""Rules of our own; every other operator goes through onnx2torch and stands if that gives a canonical layer."""


def _axis(axis: int, x: Activation) -> int:
    """An ONNX axis as a per-sample axis of `x`; the batch axis is refused."""
    rank = len(x.shape) + 1
    place = axis + rank if axis < 0 else axis
    if not 1 <= place < rank:
        raise RefusedNodeError(f"axis {axis} is the batch axis or outside shape {x.shape}")
    return place - 1
