"""Crafted networks that are right in real arithmetic and wrong in float32 somewhere in the box, or look so.

Each is a small ONNX file over two pixels, with logits like (1.5, y) where y = x_0 <= 1 in real arithmetic: class 0 wins
everywhere. Hidden in it is a term that is 0 in real arithmetic and not in float32, scaled by a spike around one point
of the box, so that clean inputs and most perturbations show nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SPIKE = (0.734375, 0.3125)
"""The point of the box around which float32 errs."""
STEEP = 64.0
"""One over the spike's width, in pixels."""
CLEAN = (0.70, 0.28)
"""Where the clean inputs lie, about eps away from the spike."""
EPS = 0.06
"""Radius of the box, in pixel space: it holds the spike."""


@dataclass(kw_only=True)
class Draft:
    """A graph under construction; `value` is the last value's name."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    value: str = "x"

    def add(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """Appends a node; arrays among the inputs become constants, and no inputs stand for the last value."""
        names = []
        for one in inputs or (self.value,):
            if isinstance(one, str):
                names.append(one)
            else:
                name = f"c{len(self.constants)}"
                self.constants[name] = np.asarray(one, dtype=None if np.asarray(one).dtype == np.int64 else np.float32)
                names.append(name)
        self.value = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [self.value], name=f"node{len(self.nodes)}", **attributes))
        return self.value

    def linear(self, weight: Sequence[Sequence[float]], bias: Sequence[float], source: str | None = None) -> str:
        """weight (out, in) @ value + bias."""
        return self.add(
            "Gemm", source or self.value, np.array(weight, dtype=np.float32), np.array(bias, dtype=np.float32), transB=1
        )

    def relu(self) -> str:
        """max(value, 0)."""
        return self.add("Relu")

    def save(self, path: Path) -> Path:
        """Writes the file, with the last value as logits (n, 2)."""
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 1, 2])]
        outputs = [helper.make_tensor_value_info(self.value, TensorProto.FLOAT, ["n", 2])]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "backdoor", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return path


def spike(draft: Draft) -> None:
    """Value (t, x_0): t = max(0, 1 - STEEP |x - SPIKE|_1)."""
    s, (a, b) = STEEP, SPIKE
    draft.add("Flatten", axis=1)
    draft.linear([[s, 0], [-s, 0], [0, s], [0, -s], [1, 0]], [-s * a, s * a, -s * b, s * b, 0])
    draft.relu()
    draft.linear([[-1, -1, -1, -1, 0], [0, 0, 0, 0, 1]], [1, 0])
    draft.relu()


def _pair(draft: Draft, large: float = 1e7) -> None:
    """3 large t - 3 (large t), through a ReLU."""
    draft.linear([[3 * large, 0], [large, 0], [0, 1]], [0, 0, 0])
    draft.relu()
    draft.linear([[0, 0, 0], [1, -3, 1]], [1.5, 0])


def last_layer(draft: Draft) -> None:
    """The pair cancels in the last layer."""
    spike(draft)
    _pair(draft)


def last_layer_huge(draft: Draft) -> None:
    """The same with 1e12."""
    spike(draft)
    _pair(draft, 1e12)


def middle_layer(draft: Draft) -> None:
    """The pair cancels in a hidden layer, and what is left passes a ReLU."""
    spike(draft)
    draft.linear([[3e7, 0], [1e7, 0], [0, 1]], [0, 0, 0])
    draft.relu()
    draft.linear([[1, -3, 0], [0, 0, 1]], [0, 0])
    draft.relu()
    draft.linear([[0, 0], [1, 1]], [1.5, 0])


def early_layer(draft: Draft) -> None:
    """Large weights meet in the first layer: 3e7 x_0 less itself in two steps."""
    draft.add("Flatten", axis=1)
    draft.linear([[3e7, 0], [1e7, 0], [1, 0]], [0, 0, 0])
    draft.relu()
    draft.linear([[0, 0, 0], [1, -3, 0.5]], [1.5, 0])


def absorbed_bias(draft: Draft) -> None:
    """A large bias swallows t, and its removal leaves a step of 2."""
    spike(draft)
    draft.linear([[1, 0], [0, 1]], [3.3e7, 0])
    draft.relu()
    draft.linear([[1, 0], [0, 1]], [-3.3e7, 0])
    draft.relu()
    draft.linear([[1, 0], [0, 1], [-2, 0]], [0, 0, 0.5])
    draft.linear([[0, 0, 0], [1, 0.5, 0]], [1.5, 0])


def absorbed_bias_in_logits(draft: Draft) -> None:
    """Both logits ride on 1e8."""
    draft.add("Flatten", axis=1)
    draft.linear([[0, 0], [1, 0]], [1e8 + 1.5, 1e8])


def residual(draft: Draft) -> None:
    """A skip connection takes off what the branch has added."""
    spike(draft)
    skip = draft.linear([[-3e7, 0], [0, 1]], [0, 0])
    draft.value = draft.nodes[-2].output[0]
    draft.linear([[1e7, 0], [0, 1]], [0, 0])
    draft.relu()
    branch = draft.linear([[3, 0], [0, 0]], [0, 0])
    draft.add("Add", branch, skip)
    draft.linear([[0, 0], [1, 1]], [1.5, 0])


def residual_twice(draft: Draft) -> None:
    """Two skips in a row, of other sizes."""
    spike(draft)
    first = draft.value
    for large in (1e6, 3e7):
        skip = draft.linear([[-3 * large, 0], [0, 0]], [0, 0], first)
        draft.linear([[large, 0], [0, 0]], [0, 0], first)
        draft.relu()
        branch = draft.linear([[3, 0], [0, 0]], [0, 0])
        rest = draft.add("Add", branch, skip)
        draft.relu()
        draft.add("Add", rest, first)
    draft.linear([[0, 0], [0, 1]], [1.5, 0])
    draft.linear([[1, 0], [0, 1]], [0, 0])


def summed(draft: Draft) -> None:
    """A Sum of three values, of which two cancel."""
    spike(draft)
    base = draft.value
    one = draft.linear([[3e7, 0], [0, 0]], [0, 0], base)
    two = draft.linear([[1e7, 0], [0, 0]], [0, 0], base)
    two = draft.linear([[-3, 0], [0, 0]], [0, 0], two)
    draft.add("Sum", one, base, two)
    draft.linear([[0, 0], [0.4, 1]], [1.5, 0])


def constants_added(draft: Draft) -> None:
    """(t + 1e8) - 1e8."""
    spike(draft)
    draft.add("Mul", draft.value, np.array([[3.0, 1.0]]))
    draft.add("Add", draft.value, np.array([[1e8, 0.0]]))
    draft.add("Sub", draft.value, np.array([[1e8, 0.0]]))
    draft.linear([[0, 0], [0.16, 1]], [1.5, 0])


def constants_multiplied(draft: Draft) -> None:
    """((t * 1e10) + 1) / 1e10, and that times 1e10 less 1e10 t."""
    spike(draft)
    base = draft.value
    draft.add("Mul", base, np.array([[1e10, 1.0]]))
    draft.add("Add", draft.value, np.array([[1.0, 0.0]]))
    big = draft.value
    draft.linear([[-1e10, 0], [0, 0]], [-1, 0], base)
    draft.add("Add", draft.value, big)
    draft.linear([[0, 0], [1e-2, 1]], [1.5, 0])


def normalised(draft: Draft) -> None:
    """A batch norm of tiny variance: (x - mean) * 3e3 of numbers around 3e4."""
    spike(draft)
    draft.linear([[1e3, 0], [0, 1]], [3e4, 0])
    parameters = [np.array(v) for v in ([1.0, 1.0], [0.0, 0.0], [3e4, 0.0], [1e-7, 1.0])]
    draft.add("Unsqueeze", draft.value, np.array([2, 3], dtype=np.int64))
    draft.add("BatchNormalization", draft.value, *parameters, epsilon=0.0)
    draft.add("Flatten", axis=1)
    draft.linear([[1e-3, 0], [0, 1]], [-1.0, 0])
    draft.linear([[0, 0], [0, 1]], [1.5, 0])


def fused_convolution(draft: Draft) -> None:
    """A 1x1 convolution with a batch norm behind it, whose weights a runtime folds anew; a pair cancels afterwards."""
    spike(draft)
    draft.add("Unsqueeze", draft.value, np.array([2, 3], dtype=np.int64))
    weight = np.array([[1e7, 0.0], [1e7, 0.0], [0.0, 1.0]]).reshape(3, 2, 1, 1)
    draft.add("Conv", draft.value, weight, np.zeros(3))
    scale = [np.array(v) for v in ([3.3, 1.1, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.3, 0.3, 1.0])]
    draft.add("BatchNormalization", draft.value, *scale, epsilon=0.0)
    draft.add("Relu")
    draft.add("Flatten", axis=1)
    draft.linear([[0, 0, 0], [1, -3, 1]], [1.5, 0])


def convolution(draft: Draft) -> None:
    """Cancellation inside one window of a convolution."""
    spike(draft)
    draft.linear([[3e7, 0], [1e7, 0], [0, 1], [0, 0]], [0, 0, 0, 0])
    draft.relu()
    draft.add("Reshape", draft.value, np.array([0, 1, 2, 2], dtype=np.int64))
    weight = np.array([[[[0.0, 0.0], [0.0, 0.0]]], [[[1.0, -3.0], [1.0, 0.0]]]])
    draft.add("Conv", draft.value, weight, np.array([1.5, 0.0]))
    draft.add("Flatten", axis=1)


def average(draft: Draft) -> None:
    """Large numbers of both signs are averaged to nothing."""
    spike(draft)
    draft.linear([[3e7, 0], [-1e7, 0], [-1e7, 0], [-1e7, 0]], [0, 0, 0, 0])
    draft.add("Reshape", draft.value, np.array([0, 1, 2, 2], dtype=np.int64))
    draft.add("GlobalAveragePool")
    draft.add("Flatten", axis=1)
    draft.linear([[0], [1]], [1.5, 0.6])


def leaky(draft: Draft) -> None:
    """A leaky ReLU of slope 1e-7 shrinks -3e7 t, and a weight makes it large again."""
    spike(draft)
    draft.linear([[-3e7, 0], [3e7, 0], [0, 1]], [0, 0, 0])
    draft.add("LeakyRelu", alpha=0.3)
    draft.linear([[0, 0, 0], [1, 0.3, 1]], [1.5, 0])


def concatenated(draft: Draft) -> None:
    """The pair comes from two branches that are joined."""
    spike(draft)
    base = draft.value
    left = draft.linear([[3e7, 0]], [0], base)
    right = draft.linear([[1e7, 0], [0, 1]], [0, 0], base)
    draft.add("Concat", left, right, axis=1)
    draft.relu()
    draft.linear([[0, 0, 0], [1, -3, 1]], [1.5, 0])


def sliced(draft: Draft) -> None:
    """The pair lies among other entries, which are cut away."""
    spike(draft)
    draft.linear([[5, 1], [3e7, 0], [1e7, 0], [0, 1], [9, 9]], [0, 0, 0, 0, 0])
    draft.relu()
    start, stop, axis = (np.array([v], dtype=np.int64) for v in (1, 4, 1))
    draft.add("Slice", draft.value, start, stop, axis)
    draft.linear([[0, 0, 0], [1, -3, 1]], [1.5, 0])


def saturated(draft: Draft) -> None:
    """A sigmoid within 1e-9 of 1 is told from 1 by a factor of 1e9: in float32 it is 1."""
    spike(draft)
    draft.linear([[-25, 0], [0, 1]], [25, 0])
    draft.add("Sigmoid")
    draft.linear([[-1e7, 0], [0, 1]], [1e7, 0])
    draft.linear([[0, 0], [-1e-7, 0.5]], [0.9, 0.6])


def flat_tanh(draft: Draft) -> None:
    """1e6 (1 - tanh(8 + t)): in float32 multiples of 0.06."""
    spike(draft)
    draft.linear([[1, 0], [0, 1]], [8, 0])
    draft.add("Tanh")
    draft.linear([[-1e6, 0], [0, 0]], [1e6, 0.1])
    draft.linear([[0, 0], [-1, 0]], [0.06, 0.2])


def tiny_logits(draft: Draft) -> None:
    """Logits of 1e-30, told apart by a few ulp of what is added to them."""
    draft.add("Flatten", axis=1)
    draft.linear([[0, 0], [1e-30, 0]], [1.5e-30, 0])


def denormal_logits(draft: Draft) -> None:
    """Logits below the least normal number."""
    draft.add("Flatten", axis=1)
    draft.linear([[0, 0], [1e-42, 0]], [1.5e-42, 0])


def underflow(draft: Draft) -> None:
    """t * 1e-25 * 1e-25 is 0 in float32, and 1e25 * 1e25 does not bring it back: y = x_0 - t there, x_0 here."""
    spike(draft)
    for scale in (1e-25, 1e-25, 1e17, 1e17, 1e16):
        draft.linear([[scale, 0], [0, 1]], [0, 0])
        draft.relu()
    draft.linear([[0, 0], [-1.2, 1]], [0.5, 0.9])


def near_tie(draft: Draft) -> None:
    """x_0 against 0.76 and a hair, which the rounding of x + u crosses."""
    draft.add("Flatten", axis=1)
    draft.linear([[0, 0], [1, 0]], [CLEAN[0] + EPS + 1e-8, 0])


BACKDOORS: dict[str, Callable[[Draft], None]] = {
    made.__name__: made
    for made in (
        *(last_layer, last_layer_huge, middle_layer, early_layer, absorbed_bias, absorbed_bias_in_logits, residual),
        *(residual_twice, summed, constants_added, constants_multiplied, normalised, fused_convolution, convolution),
        *(
            average,
            leaky,
            concatenated,
            sliced,
            saturated,
            flat_tanh,
            tiny_logits,
            denormal_logits,
            underflow,
            near_tie,
        ),
    )
}


def build(name: str, path: Path) -> Path:
    """Writes the backdoor `name`."""
    draft = Draft()
    BACKDOORS[name](draft)
    return draft.save(path)


def inputs(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Clean inputs (count, 1, 1, 2) close to CLEAN, all of class 0."""
    noise = np.random.default_rng(seed).uniform(-0.002, 0.002, (count, 1, 1, 2))
    return (np.array(CLEAN).reshape(1, 1, 1, 2) + noise).astype(np.float32)


def perturbations(count: int, seed: int = 1) -> NDArray[np.float32]:
    """(count, 1, 1, 2) within EPS: half anywhere, half close to where the spike is seen from CLEAN."""
    generator = np.random.default_rng(seed)
    u = generator.uniform(-EPS, EPS, (count, 1, 1, 2))
    towards = (np.array(SPIKE) - np.array(CLEAN)).reshape(1, 1, 1, 2)
    u[::2] = towards + generator.uniform(-0.01, 0.01, u[::2].shape)
    return np.clip(u, -EPS, EPS).astype(np.float32)
