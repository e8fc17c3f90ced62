"""Rules of the ONNX operators that move, cut or join entries and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from citrus_tool.network import Concat, Pad, Reshape, Slice, Transpose
from citrus_tool.onnx_io.lowering import Activation, Call, Lowering, RefusedNodeError, Rule, Value


def sample_axis(axis: int, x: Activation) -> int:
    """An ONNX axis as a per-sample axis of `x`; the batch axis is refused."""
    rank = len(x.shape) + 1
    place = axis + rank if axis < 0 else axis
    if not 1 <= place < rank:
        raise RefusedNodeError(f"axis {axis} is the batch axis or outside shape {x.shape}")
    return place - 1


def reshaped(lowering: Lowering, name: str, x: Activation, shape: Sequence[int]) -> Activation:
    """`x` in another shape per sample."""
    return x if x.shape == tuple(shape) else lowering.emit(name, Reshape(shape), x)


def _flatten(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    axis = int(call.attributes.get("axis", 1))
    axis += len(x.shape) + 1 if axis < 0 else 0
    # at batch 1, Flatten(axis=0) is Flatten(axis=1); a later axis is, where all before it have one entry
    if math.prod(x.shape[: max(axis - 1, 0)]) != 1:
        raise RefusedNodeError(f"axis {axis} mixes the batch axis with axes of shape {x.shape}")
    return reshaped(lowering, call.name, x, (math.prod(x.shape),))


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
    return reshaped(lowering, call.name, x, target[1:])


def _squeeze(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    given = call.integers(1, "axes")
    axes = {sample_axis(a, x) for a in given} if given is not None else {a for a, s in enumerate(x.shape) if s == 1}
    if any(x.shape[a] != 1 for a in axes):
        raise RefusedNodeError(f"axes {sorted(axes)} of shape {x.shape} do not all have one entry")
    return reshaped(lowering, call.name, x, tuple(s for a, s in enumerate(x.shape) if a not in axes))


def _unsqueeze(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    axes = call.integers(1, "axes") or ()
    rank = len(x.shape) + 1 + len(axes)
    places = {a + rank if a < 0 else a for a in axes}
    if 0 in places:
        raise RefusedNodeError("it adds an axis in front of the batch axis")
    sizes = iter(x.shape)
    return reshaped(lowering, call.name, x, tuple(1 if place in places else next(sizes) for place in range(1, rank)))


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
    return lowering.emit(call.name, Concat(sample_axis(int(call.attributes["axis"]), parts[0])), *parts)


def _slice(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    starts, ends = call.integers(1, "starts") or (), call.integers(2, "ends") or ()
    axes = call.integers(3, "axes") or tuple(range(len(starts)))
    steps = call.integers(4, "steps") or (1,) * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % (len(x.shape) + 1) == 0 and start == 0 and end >= 2**31 - 1 and step == 1:
            continue  # the whole batch
        place = sample_axis(axis, x)
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
    place = sample_axis(int(call.attributes.get("axis", 0)), x)
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


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX order (all begins, then all ends) to torch order (last axis first, begin and end together)."""
    half = len(pads) // 2
    return [p for axis in reversed(range(half)) for p in (pads[axis], pads[half + axis])]


SHAPE_RULES: Mapping[str, Rule] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Pad": _pad,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
}
