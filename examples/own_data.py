"""Images in arrays, channels last, and a network that wants normalised input.

python examples/own_data.py
"""

import numpy as np
from torch import nn

import citrus_tool as citrus


def my_images() -> tuple[np.ndarray, np.ndarray]:
    """Stand-ins for your own: uint8 (n, H, W, C), 0 to 255, and labels from 0."""
    parts = [citrus.load_data("digits", split=split) for split in ("train", "validation", "test")]
    x = np.concatenate([part.pixels().numpy().transpose(0, 2, 3, 1) for part in parts])
    return (x * 255).round().astype(np.uint8), np.concatenate([part.labels.numpy() for part in parts])


def main() -> None:
    """Harden a fresh network on arrays, judge it on others, and look at what fools it."""
    x, y = my_images()
    whole = citrus.Dataset.from_arrays(x, y, name="mine", layout="NHWC", num_classes=10)
    splits = citrus.Splits.of(whole, seed=0)  # 70 / 15 / 15 %; or Splits(train=..., validation=..., test=...)
    print(splits)

    # the network takes (pixel - mean) / std; eps stays in pixels
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model = citrus.load(net, input_shape=(1, 8, 8), mean=(0.3,), std=(0.4,))

    hardened = model.harden(
        splits, eps=0.05, recipe="digits", init="shi", epochs=25, certify=citrus.CertifySettings(limit=100)
    )
    print(hardened)

    report = hardened.model.attack(splits.test, eps=0.05, limit=100)
    print(report)
    u = report.perturbations  # (groups, C, H, W), in pixels
    print(f"{len(u)} perturbations of shape {tuple(u.shape[1:])}, largest entry {u.abs().max():.3f}")


if __name__ == "__main__":
    main()
