"""Data and a network of your own, as files: shapes.npz and shapes.onnx, made without citrus.

python examples/shapes.py
"""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional as F

CLASSES = ["circle", "square", "triangle", "cross"]
SIZE = 16


def draw(label: int, rng: np.random.Generator) -> np.ndarray:
    """One grey image (SIZE, SIZE) uint8: a shape of random place, size and brightness on a noisy ground."""
    image = Image.new("L", (SIZE, SIZE), int(rng.integers(20, 60)))
    pen = ImageDraw.Draw(image)
    (x, y), r = rng.uniform(5.5, 9.5, size=2), rng.uniform(4, 5.5)
    ink = int(rng.integers(200, 250))
    if label == 0:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif label == 1:
        pen.rectangle((x - r, y - r, x + r, y + r), fill=ink)
    elif label == 2:
        corners = [(x + r * math.sin(a), y - r * math.cos(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
        pen.polygon(corners, fill=ink)
    else:
        pen.rectangle((x - r, y - 1, x + r, y + 1), fill=ink)
        pen.rectangle((x - 1, y - r, x + 1, y + r), fill=ink)
    noise = rng.normal(0, 10, size=(SIZE, SIZE))
    return (np.asarray(image) + noise).clip(0, 255).round().astype(np.uint8)


def main() -> None:
    """Draw 4000 images, train a small convolutional network as usual, write both as files."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, len(CLASSES), size=4000)
    x = np.stack([draw(int(label), rng) for label in y])[:, None]  # (n, channels, height, width)
    np.savez_compressed("shapes.npz", x=x, y=y, class_names=CLASSES)

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, len(CLASSES)),
    )  # fmt: skip
    images, labels = torch.tensor(x / 255, dtype=torch.float32), torch.tensor(y)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(30):
        for index in torch.randperm(2800).split(64):
            optimiser.zero_grad()
            F.cross_entropy(net(images[index]), labels[index]).backward()
            optimiser.step()
    torch.onnx.export(
        net.eval(), (images[:1],), "shapes.onnx", input_names=["image"], output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    correct = (net(images[2800:]).argmax(1) == labels[2800:]).float().mean()
    print(f"shapes.npz: {len(x)} images of {', '.join(CLASSES)}")
    print(f"shapes.onnx: {100 * correct:.1f} % of the 1200 that it was not trained on are correct")


if __name__ == "__main__":
    main()
