"""Random graphs of operators, with branches: read, exported and written back, always the function of the file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citrus_tool import onnx_io
from onnx_io.build import Array, answer, classifier, ints, node, random_inputs, save, weights

Shape = tuple[int, ...]


class Draft:
    """A graph under construction: nodes, constants, and the per-sample shape of every value."""

    def __init__(self, shape: Shape) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.shapes: dict[str, Shape] = {"x": shape}

    def constant(self, value: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def add(self, operator: str, inputs: str, shape: Shape, **attributes: object) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(node(operator, inputs, output, **attributes))
        self.shapes[output] = shape
        return output


@st.composite
def drafts(draw: st.DrawFn) -> tuple[Draft, str]:
    channels, height, width = draw(st.tuples(st.integers(1, 3), st.integers(4, 7), st.integers(4, 7)))
    draft = Draft((channels, height, width))
    value = "x"
    for step in range(draw(st.integers(1, 6))):
        c, h, w = draft.shapes[value]
        operator = draw(
            st.sampled_from(
                [
                    "act",
                    "conv",
                    "same",
                    "norm",
                    "affine",
                    "add",
                    "sub",
                    "concat",
                    "pad",
                    "slice",
                    "split",
                    "pool",
                    "turn",
                ]
            )
        )
        if operator == "act":
            value = draft.add(draw(st.sampled_from(["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Neg"])), value, (c, h, w))
        elif operator == "conv":
            kernel = (draw(st.integers(1, min(3, h))), draw(st.integers(1, min(3, w))))
            pads, strides = draw(st.lists(st.integers(0, 2), min_size=4, max_size=4)), draw(st.integers(1, 2))
            out = draw(st.integers(1, 4))
            size = [(s + pads[i] + pads[2 + i] - kernel[i]) // strides + 1 for i, s in enumerate((h, w))]
            names = " ".join([value, draft.constant(weights(out, c, *kernel, seed=step))])
            if draw(st.booleans()):
                names += " " + draft.constant(weights(out, seed=step + 50))
            value = draft.add("Conv", names, (out, *size), pads=pads, strides=[strides, strides])
        elif operator == "same":
            kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
            strides = draw(st.integers(1, 2))
            mode = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
            names = f"{value} {draft.constant(weights(2, c, *kernel, seed=step))}"
            shape = (2, -(-h // strides), -(-w // strides))
            value = draft.add("Conv", names, shape, auto_pad=mode, strides=[strides, strides])
        elif operator == "norm":
            tensors = [np.abs(weights(c, seed=step + i)) + np.float32(0.5) for i in range(4)]
            names = " ".join([value, *(draft.constant(t) for t in tensors)])
            value = draft.add("BatchNormalization", names, (c, h, w))
        elif operator == "affine":
            shape = draw(st.sampled_from([(1,), (w,), (c, 1, 1), (1, c, h, w), (h, 1)]))
            name = draft.constant(weights(*shape, seed=step) + np.float32(2))
            operands = draw(st.permutations([value, name]))
            kind = draw(st.sampled_from(["Add", "Sub", "Mul"]))
            value = draft.add(kind, " ".join(operands), (c, h, w))
        elif operator in ("add", "sub"):
            others = [v for v, s in draft.shapes.items() if s == (c, h, w)]
            value = draft.add(operator.capitalize(), f"{value} {draw(st.sampled_from(others))}", (c, h, w))
        elif operator == "concat":
            others = [v for v, s in draft.shapes.items() if s[1:] == (h, w)]
            other = draw(st.sampled_from(others))
            value = draft.add("Concat", f"{value} {other}", (c + draft.shapes[other][0], h, w), axis=1)
        elif operator == "pad":
            p = draw(st.lists(st.integers(0, 2), min_size=6, max_size=6))
            name = draft.constant(ints(0, *p[:3], 0, *p[3:]))
            value = draft.add("Pad", f"{value} {name}", tuple(s + p[i] + p[3 + i] for i, s in enumerate((c, h, w))))
        elif operator == "slice":
            axis, start = draw(st.sampled_from([2, 3, -1])), draw(st.integers(0, 1))
            step_size = draw(st.integers(1, 2))
            shape_list = [c, h, w]
            place = axis % 4 - 1
            shape_list[place] = len(range(start, shape_list[place], step_size))
            if min(shape_list) < 1:
                continue
            names = [draft.constant(ints(v)) for v in (start, 2**40, axis, step_size)]
            value = draft.add("Slice", " ".join([value, *names]), tuple(shape_list))
        elif operator == "split" and h >= 2:
            name = draft.constant(ints(1, h - 1))
            outputs = f"s{len(draft.nodes)}a s{len(draft.nodes)}b"
            draft.nodes.append(node("Split", f"{value} {name}", outputs, axis=2))
            first, second = outputs.split()
            draft.shapes |= {first: (c, 1, w), second: (c, h - 1, w)}
            value = draw(st.sampled_from([first, second]))
        elif operator == "pool" and min(h, w) >= 2:
            pads = draw(st.sampled_from([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]))
            kind = draw(st.sampled_from(["AveragePool", "MaxPool"]))
            if kind == "MaxPool" and pads == [0, 1, 1, 0]:
                continue
            size = [s + pads[i] + pads[2 + i] - 1 for i, s in enumerate((h, w))]
            value = draft.add(kind, value, (c, *size), kernel_shape=[2, 2], pads=pads)
        elif operator == "turn":
            value = draft.add("Transpose", value, (w, c, h), perm=[0, 3, 1, 2])
    return draft, value


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(drafts(), st.sampled_from([1, "n"]))
def test_random_graphs_keep_their_function(drawn: tuple[Draft, str], batch: int | str) -> None:
    draft, value = drawn
    nodes = [*draft.nodes, node("Identity", value, "h")]
    file = classifier(
        nodes, draft.constants, features=int(np.prod(draft.shapes[value])), shape=draft.shapes["x"], batch=batch
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = onnx_io.read(save(file, folder))
        x = random_inputs(3, model.contract.pixel_shape)
        in_file = torch.from_numpy(model.contract.to_file(x))
        with torch.no_grad():
            np.testing.assert_allclose(model.network(x).numpy(), answer(file, in_file), rtol=1e-4, atol=1e-4)
            for parameter in model.network.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.25)
            trained = model.network(x).numpy()
            onnx_io.write(model, folder / "written.onnx", metadata={})
            np.testing.assert_allclose(
                answer(onnx.load(folder / "written.onnx"), in_file), trained, rtol=1e-4, atol=1e-4
            )
            exported = onnx_io.export(model.network, folder / "exported.onnx", metadata={})
            np.testing.assert_allclose(exported.network(x).numpy(), trained, rtol=1e-4, atol=1e-4)
