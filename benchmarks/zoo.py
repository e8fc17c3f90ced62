"""Thirty ordinary classifiers: made, read, bounded, held against onnxruntime, trained a little and written back.

    python benchmarks/zoo.py FOLDER [--only vit,swin] [--page docs/zoo.md]

For each file of zoo_files.py: its reading is compared with onnxruntime at batch 1 and 64; IBP's and CROWN's boxes over
the logits, and CROWN's margins and planes, for every run in float32 within RADII of four inputs, are held against
onnxruntime at 10,000 points of these boxes, without any tolerance; trainable weights are changed, the file is written
and run by onnxruntime. Points are uniform, corners, and corners that CROWN's planes call the worst.

Exits with 1 where a bound does not contain a point, or a file breaks citrus instead of being refused in a sentence.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor
from zoo_files import ENTRIES, Entry, images

from citrus_tool import onnx_io
from citrus_tool.bounds.crown import margin_planes, refine, relax
from citrus_tool.bounds.rounding import enclosures, exact_products, outward_margins
from citrus_tool.errors import CitrusError
from citrus_tool.network import Evaluation
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.threat import Box, Threat

RADII = (1 / 255, 1 / 2550)
"""Of the boxes, in pixel space: a grey level, where bounds of networks that were not trained for them grow wide, and a
tenth of it, where a wrong bound shows at once because the right ones are tight."""
INPUTS = 2
"""Boxes of each radius."""
POINTS = 2500
"""Of each box."""
CHANGE = 0.05
"""Noise on trainable weights before the file is written, in shares of each tensor's deviation."""
HOPELESS = 1e9
"""Wider boxes say nothing."""
LEAST_CHANGE = 100
"""The change of logits, in tolerances of parity, that shows that the new weights are in the file."""


@dataclass
class Line:
    """What became of one file; figures are None where a stage was not reached."""

    name: str
    source: str
    operators: list[str] = field(default_factory=list)
    parity: tuple[float, float] | None = None
    trainable: float = 0.0  # share of the parameters
    widths: list[tuple[float, float]] = field(default_factory=list)  # by radius: Bounded.widths
    proven: tuple[int, int] | None = None  # boxes, by IBP and by CROWN
    written: float | None = None  # |torch - onnxruntime| with changed weights
    seconds: dict[str, float] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)  # by stage
    broken: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every stage went through."""
        return not self.refusals and not self.broken

    def __str__(self) -> str:
        done = [f"{self.name:<14}"]
        if self.parity is not None:
            done.append(f"read ({self.parity[0]:.0e} {self.parity[1]:.0e})")
        if self.proven is not None:
            done += [f"IBP {width(ibp):>7} CROWN {width(crown):>7}" for ibp, crown in self.widths]
            done.append(f"proven {self.proven[0]} {self.proven[1]}")
        if self.written is not None:
            done.append(f"written ({self.written:.0e}), {self.trainable:.0%} trained")
        done.append(" ".join(f"{stage} {s:.1f}s" for stage, s in self.seconds.items()))
        problems = [f"\n    {stage}: {text}" for stage, text in self.refusals.items()]
        return "  ".join(done) + "".join(problems + [f"\n    BROKEN {text}" for text in self.broken])


def width(value: float) -> str:
    """A width for the lines and the table."""
    return "∞" if not value < HOPELESS else f"{value:.3g}" if value < 1000 else f"{value:.0e}"


def judge(name: str, entry: Entry, folder: Path) -> Line:
    """Makes the file and takes it through every stage."""
    line = Line(name=name, source=entry.source)
    path = folder / f"{name}.onnx"
    entry.write(path)
    nodes = onnx.load(path, load_external_data=False).graph.node
    line.operators = sorted({one.op_type for one in nodes} - {"Constant"})
    x = images(entry.shape, 64, seed=1)
    model: OnnxModel | None = None

    def read() -> None:
        nonlocal model
        found = onnx_io.read(path, input_shape=entry.shape)
        parity = onnx_io.require_parity(found.network, OnnxRunner(found), path, samples=x)
        model, line.parity = found, (parity.batch_1, parity.batch_64)

    def bound() -> None:
        assert model is not None
        found = [contained(model, x[i * INPUTS : (i + 1) * INPUTS], r, line.broken) for i, r in enumerate(RADII)]
        line.widths = [one[0] for one in found]
        line.proven = (sum(one[1][0] for one in found), sum(one[1][1] for one in found))

    def write() -> None:
        assert model is not None
        line.written, line.trainable = changed(model, folder / f"{name}_changed.onnx", x)

    for stage in (read, bound, write):
        if stage is not read and model is None:
            break
        start = time.perf_counter()
        try:
            stage()
        except CitrusError as refusal:
            line.refusals[stage.__name__] = str(refusal).replace(f"{folder}/", "")
        except Exception as error:  # a crash is reported beside the others' lines, and is a failure of the command
            line.broken.append(f"{stage.__name__}: {type(error).__name__}: {error}")
        line.seconds[stage.__name__] = time.perf_counter() - start
    return line


def contained(
    model: OnnxModel, x: Tensor, radius: float, broken: list[str]
) -> tuple[tuple[float, float], tuple[int, int]]:
    """Bounds within `radius` of x (n, *shape), held against onnxruntime; what they lack is appended to `broken`.

    Returns the mean width of the logits' boxes, by IBP and by CROWN, over the mean range among the points; and how many
    of the inputs each proves.
    """
    network = model.network.frozen(dtype=torch.float64, evaluation=Evaluation(arithmetic="float32"))
    runner = OnnxRunner(model)
    labels = torch.from_numpy(runner.logits(x).argmax(1))
    box = Threat(eps=radius).enclosure(x)
    with torch.no_grad(), exact_products():
        found = enclosures(network, box)
        interval = outward_margins(network, found.boxes, found.file_errors, labels)
        relaxed = relax(network, box)
        output = relaxed.boxes[network.output_name]
        crown = refine(relaxed, network.output_name, torch.ones_like(output.centre, dtype=torch.bool))
        planes = margin_planes(relaxed, labels, interval, skip_decided=False)
    ibp, ranges = found.boxes[network.output_name], []
    for i, label in enumerate(labels.tolist()):
        u = perturbations(planes.coefficient[i], Box(centre=box.centre[i], radius=box.radius[i]), seed=i)
        logits = torch.from_numpy(runner.logits((box.centre[i] + u).float())).double()
        ranges.append(logits.amax(0) - logits.amin(0))
        margins = logits[:, [label]] - logits
        line = u.flatten(1) @ planes.coefficient[i].flatten(1).T + planes.offset[i]
        line = line - 1e-12 * line.abs()  # this computation's own rounding
        lost = {  # a bound that is NaN claims nothing
            "finite logits": ~logits.isfinite(),
            "IBP's boxes": (logits < ibp.lower[i]) | (logits > ibp.upper[i]),
            "CROWN's boxes": (logits < crown.lower[i]) | (logits > crown.upper[i]),
            "IBP's margins": of_rivals(margins < interval[i], label),
            "CROWN's margins": of_rivals(margins < planes.lower[i], label),
            "CROWN's planes": of_rivals(margins < line, label),
        }
        for text, points in lost.items():
            if points.any():
                wrong = f"{int(points.any(1).sum())} of {len(points)} points of input {i}, radius {radius:.2g}"
                broken.append(f"containment: {text} do not hold at {wrong}")
    spread = torch.stack(ranges).mean().item()
    widths = [2 * region.radius.mean().item() / spread for region in (ibp, crown)]
    proven = [int((lower.amin(1) > 0).sum()) for lower in (interval, planes.lower)]
    return (widths[0], widths[1]), (proven[0], proven[1])


def of_rivals(lost: Tensor, label: int) -> Tensor:
    """`lost` (points, classes) without the true class, whose margin bounds are infinite."""
    lost[:, label] = False
    return lost


def perturbations(coefficient: Tensor, box: Box, seed: int) -> Tensor:
    """Points of the box as u (POINTS, *shape), so that centre + u is a float32 in it.

    A third uniform, a third corners, a third corners that one of the planes (classes, *shape) calls the worst, with
    some entries turned.
    """
    random = torch.Generator().manual_seed(seed)
    shape, part = (POINTS // 3, *box.centre.shape), POINTS // 3
    uniform = 2 * torch.rand(POINTS - 2 * part, *box.centre.shape, generator=random, dtype=torch.float64) - 1
    corners = torch.randint(0, 2, shape, generator=random).double() * 2 - 1
    worst = -coefficient[torch.arange(part) % len(coefficient)].sign()
    turned = torch.rand(shape, generator=random) < 0.3 * torch.rand(part, generator=random).reshape(
        -1, *[1] * (len(shape) - 1)
    )
    turned[: len(coefficient)] = False
    u = torch.cat([uniform, corners, torch.where(turned, -worst, worst)]) * box.radius
    points = (box.centre + u).float()
    points = torch.where(points.double() > box.upper, torch.nextafter(points, torch.tensor(-torch.inf)), points)
    points = torch.where(points.double() < box.lower, torch.nextafter(points, torch.tensor(torch.inf)), points)
    return points.double() - box.centre


def changed(model: OnnxModel, path: Path, x: Tensor) -> tuple[float, float]:
    """Writes the file with changed weights: (|torch - onnxruntime|, share of the parameters that are trainable).

    Raises CitrusError where nothing can be trained or written; AssertionError where the file has the old weights.
    """
    before = OnnxRunner(model).logits(x)
    random = torch.Generator().manual_seed(0)
    parameters = list(model.network.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    with torch.no_grad():
        for p in trainable:
            p.add_(CHANGE * (p.std() if p.numel() > 1 else p.abs()) * torch.randn(p.shape, generator=random))
        written = onnx_io.write(model, path, metadata={"citrus": "zoo"})
        expected = model.network(x).numpy()
    logits = OnnxRunner(written).logits(x)
    difference = float(np.abs(logits - expected).max())
    assert np.abs(logits - before).max() > LEAST_CHANGE * max(difference, 1e-7), "the weights did not change"
    return difference, sum(p.numel() for p in trainable) / max(1, sum(p.numel() for p in parameters))


def page(lines: Sequence[Line]) -> str:
    """docs/zoo.md."""
    count = {
        "read": sum(line.parity is not None for line in lines),
        "bounded": sum(line.proven is not None for line in lines),
        "written": sum(line.written is not None for line in lines),
    }
    head = f"""# Classifiers that are read

`python benchmarks/zoo.py FOLDER --page docs/zoo.md` makes this page. It writes {len(lines)} small twins of the
classifiers that people bring, with torch's two exporters and with onnx.helper, and takes each through citrus:
{count["read"]} are read, {count["bounded"]} bounded, {count["written"]} written back with changed weights.

- *parity*: largest |torch - onnxruntime| of the logits, at batch 1 and at batch 64.
- *IBP*, *CROWN*: mean width of the logits' boxes within 1/255 and 1/2550 of two inputs each, for every run in float32,
  over the range among {len(RADII) * INPUTS * POINTS:,} points, all of which lie in both boxes and above CROWN's planes.
- *proven*: of these {len(RADII) * INPUTS} boxes, by IBP and by CROWN. Nobody trained these networks to be robust.
- *written*: largest |torch - onnxruntime| after trainable weights were changed; their share of all parameters.
- *s*: seconds of reading, bounding and writing on one core.

| file | made by | parity | IBP, 1/255 | CROWN | IBP, 1/2550 | CROWN | proven | written | s |
|---|---|---|---|---|---|---|---|---|---|
"""
    rows = "".join(f"| {' | '.join(cells(line))} |\n" for line in lines)
    operators = "".join(f"| {line.name} | {', '.join(line.operators)} |\n" for line in lines)
    refused = "".join(f"- {line.name}, {stage}: {text}\n" for line in lines for stage, text in line.refusals.items())
    return (
        head
        + rows
        + "\n## Operators\n\n| file | operators |\n|---|---|\n"
        + operators
        + (f"\n## Refused\n\n{refused}" if refused else "")
    )


def cells(line: Line) -> list[str]:
    """A row of the page's table."""
    return [
        line.name,
        line.source,
        f"{line.parity[0]:.0e}, {line.parity[1]:.0e}" if line.parity is not None else "refused",
        *([width(one) for pair in line.widths for one in pair] or [""] * 2 * len(RADII)),
        f"{line.proven[0]}, {line.proven[1]}" if line.proven is not None else "",
        f"{line.written:.0e}, {line.trainable:.0%}" if line.written is not None else "",
        f"{sum(line.seconds.values()):.1f}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, judges, prints, writes the page; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the files are written here")
    parser.add_argument("--only", help="names of files, by commas")
    parser.add_argument("--page", type=Path, help="also write the table here, for docs/")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(ENTRIES)
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in names:
        lines.append(judge(name, ENTRIES[name], options.folder))
        print(lines[-1], flush=True)
    if options.page is not None:
        options.page.write_text(page(lines), encoding="utf-8")
    complete = sum(line.complete for line in lines)
    print(f"{complete} of {len(lines)} read, bounded, contained and written back")
    return 1 if any(line.broken for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
