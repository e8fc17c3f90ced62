"""The picture of the README: one perturbation of five digits, before and after hardening.

python benchmarks/picture.py docs/images/idea.svg

Both networks are the shipped ones (models/MODELS.md), which `citrus demo` starts from and arrives at. The script
certifies the 200 test images of the demo with both, and takes the first group of five whose perturbation makes the
first network wrong on all of them while the second is proven right on all of them. Under a minute on one core.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import citrus_tool as citrus

EPS, LIMIT, SIZE = 0.11, 200, 5
SIDE = 72
MODELS = Path(__file__).resolve().parents[1] / "models"
INK, RED, GREEN, GREY = "#212121", "#b71c1c", "#1b5e20", "#616161"


def tile(pixels: NDArray[np.float32], x: float, y: float, colour: str) -> str:
    """An image (H, W) in [-1, 1] at (x, y), one path for each colour; `colour` is "grey" or "signed"."""
    step, paths = SIDE / len(pixels), dict[str, str]()
    for row, line in enumerate(pixels):
        for column, value in enumerate(line):
            level = float(np.clip(value, -1, 1))
            fade = round(255 * (1 - abs(level)))
            if colour == "grey":
                shade = f"#{round(255 * max(level, 0)):02x}" + f"{round(255 * max(level, 0)):02x}" * 2
            else:
                shade = f"#ff{fade:02x}{fade:02x}" if level > 0 else f"#{fade:02x}{fade:02x}ff"
            paths[shade] = (
                paths.get(shade, "") + f"M{x + column * step:g} {y + row * step:g}h{step:g}v{step:g}h-{step:g}z"
            )
    drawn = "".join(f'<path fill="{shade}" d="{path}"/>' for shade, path in paths.items())
    frame = f'<rect x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#9e9e9e"/>'
    return f'<g shape-rendering="crispEdges">{drawn}</g>{frame}'


def text(x: float, y: float, words: str, kind: str = "s", fill: str = INK, anchor: str = "middle") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" fill="{fill}" text-anchor="{anchor}">{escape(words)}</text>'


def bar(y: float, certified: float, attacked: float, clean: float, name: str) -> str:
    """Certified (solid), between certified and attacked (light), lost to a perturbation found, wrong anyway."""
    x, width, parts, done = 250.0, 480.0, [], 0.0
    for share, fill in ((certified, "#2e7d32"), (attacked, "#a5d6a7"), (clean, "#ff8a65"), (100.0, "#bdbdbd")):
        parts.append(
            f'<rect x="{x + width * done / 100:g}" y="{y}" height="20" fill="{fill}"'
            f' width="{width * (share - done) / 100:g}"/>'
        )
        done = share
    return (
        text(x - 14, y + 15, name, "s", anchor="end")
        + "".join(parts)
        + text(x + width + 14, y + 15, f"{certified:.1f} % to {attacked:.1f} %", "b", anchor="start")
    )


def main() -> None:
    """Certifies, attacks, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE.svg", help="the picture to write")
    out: Path = parser.parse_args().out
    before, after = (citrus.load(MODELS / f"digits_convtiny{end}.onnx") for end in ("", "_citrus"))
    first, second = (model.certify("digits", eps=EPS, limit=LIMIT, group_size=SIZE) for model in (before, after))
    found = before.attack("digits", eps=EPS, limit=LIMIT, group_size=SIZE).perturbations
    test = citrus.load_data("digits", split="test", limit=LIMIT)
    for group, u in zip(second.groups, found, strict=True):
        chosen = list(group.indices)
        images, labels = test.pixels()[chosen], test.labels[chosen]
        seen = before.logits(images + u).argmax(1)
        if (seen != labels.numpy()).all() and group.certified == SIZE:
            break
    else:
        raise SystemExit("no group is fooled whole before and proven whole after")
    kept = after.logits(images + u).argmax(1)
    assert (before.logits(images).argmax(1) == labels.numpy()).all()
    assert (kept == labels.numpy()).all()
    print(
        f"images {chosen}: {labels.tolist()} seen as {seen.tolist()}, then {kept.tolist()}; certified {group.certified}"
    )

    left = [250.0 + 102 * i for i in range(SIZE)]
    middle = [x + SIDE / 2 for x in left]
    drawn = [text(middle[i], 36, f"image {i + 1}", fill=GREY) for i in range(SIZE)]
    drawn += [
        text(20, 64, "Five images", "b", anchor="start"),
        text(20, 84, "read correctly by both networks", anchor="start"),
    ]
    drawn += [tile(images[i, 0].numpy(), x, 46, "grey") for i, x in enumerate(left)]
    drawn += [
        text(20, 150, "one perturbation u for all", "b", anchor="start"),
        text(20, 170, f"at most {EPS} a pixel: red brighter,", anchor="start"),
        text(20, 187, "blue darker", anchor="start"),
        tile(u[0].numpy() / EPS, middle[2] - SIDE / 2, 132, "signed"),
        text(middle[2] + 52, 175, "added to every image", fill=GREY, anchor="start"),
        text(middle[2] - 52, 178, "+ u", "t", anchor="end"),
    ]
    drawn += [tile((images + u)[i, 0].numpy(), x, 222, "grey") for i, x in enumerate(left)]
    drawn += [text(20, 258, "The same images + u", "b", anchor="start")]
    rows = (("before", "the network as it was:", seen), ("after", "hardened by citrus:", kept))
    for y, (_, name, classes) in zip((320, 352), rows, strict=True):
        drawn.append(text(20, y, name, "b", anchor="start"))
        for i, (label, one) in enumerate(zip(labels.tolist(), classes.tolist(), strict=True)):
            right = label == one
            drawn.append(text(middle[i], y, f"{'✓' if right else '✗'} reads {one}", "b", GREEN if right else RED))
    drawn.append(
        text(
            250,
            376,
            f"proven for every u of at most {EPS} a pixel that these five images share, not only for this one",
            fill=GREEN,
            anchor="start",
        )
    )
    drawn.append('<path d="M20 394H880" stroke="#bdbdbd"/>')
    drawn.append(
        text(
            20,
            418,
            f"{LIMIT} test images in groups of {SIZE}: how many stay correct under the worst shared u",
            "b",
            anchor="start",
        )
    )
    for y, one, name in ((432, first, "before"), (462, second, "after")):
        shares = [100 * count / one.inputs for count in (one.certified, one.attacked, one.clean_correct)]
        drawn.append(bar(y, *shares, name))
    legend = (
        ("#2e7d32", "proven"),
        ("#a5d6a7", "not known"),
        ("#ff8a65", "lost to a u that was found"),
        ("#bdbdbd", "wrong without any u"),
    )
    for (fill, words), x in zip(legend, (250, 330, 432, 650), strict=True):
        drawn.append(
            f'<rect x="{x}" y="496" width="12" height="12" fill="{fill}"/>'
            + text(x + 18, 507, words, fill=GREY, anchor="start")
        )

    about = (
        "Five digits that share one perturbation: the network before hardening reads "
        f"{seen.tolist()} for {labels.tolist()}; "
        f"after, all five are proven correct under every perturbation of at most {EPS}. Of {LIMIT} test images "
        f"{first.certified} are proven before and {second.certified} after."
    )
    style = (
        "text{font-family:system-ui,'Segoe UI',Helvetica,Arial,sans-serif}.t{font-size:22px;font-weight:600}"
        ".b{font-size:15px;font-weight:600}.s{font-size:13.5px}"
    )
    out.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 522" role="img"'
        ' aria-labelledby="idea-title idea-desc">\n'
        f'<title id="idea-title">One perturbation, five images</title>\n<desc id="idea-desc">{escape(about)}</desc>\n'
        f'<style>{style}</style>\n<rect width="900" height="522" rx="8" fill="#ffffff"/>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    main()
