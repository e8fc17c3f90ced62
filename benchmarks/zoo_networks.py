"""Small twins of the architectures that people train, written as torchvision, timm and their own scripts write them.

Channels are few and maps are small, so that a zoo of them is bounded in minutes; what each block consists of, and in
which order, is that of the original.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10


def conv_norm(
    inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, *, stride: int = 1, groups: int = 1, act: str = "ReLU"
) -> nn.Sequential:
    """Convolution with "same" padding, batch norm, and the activation nn.`act`, if any."""
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (size[0] // 2, size[1] // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([getattr(nn, act)()] if act else []))


def pooled_head(features: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Global average pooling, dropout, one Linear."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(features, CLASSES))


def lenet() -> nn.Module:
    """LeCun et al. 1998, with ReLU and max pools, as in most tutorials."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES)),
    )


def vgg() -> nn.Module:
    """Simonyan & Zisserman 2015, with batch norm, adaptive pooling and dropout."""
    stages = [layer for a, b in ((3, 8), (8, 16), (16, 16)) for layer in (conv_norm(a, b), nn.MaxPool2d(2))]
    head = (nn.Linear(64, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(True), nn.Dropout())
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *head, nn.Linear(32, CLASSES))


class Residual(nn.Module):
    """act(body(x) + shortcut(x)); the shortcut is the identity, or a layer that fits the shapes."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.shortcut(x) + self.body(x))
        return y


class Normalised(nn.Module):
    """A network behind (x - mean) / std of three channels, as exported by those who put it in the graph."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body((x - self.mean) / self.std)
        return y


def resnet() -> nn.Module:
    """He et al. 2016: basic blocks, 1x1 shortcuts, global average pooling; normalisation in the graph."""

    def block(a: int, b: int, stride: int) -> Residual:
        body = nn.Sequential(conv_norm(a, b, stride=stride), conv_norm(b, b, act=""))
        return Residual(body, conv_norm(a, b, 1, stride=stride, act="") if a != b else None, nn.ReLU())

    stages = (block(8, 8, 1), block(8, 16, 2), block(16, 16, 1))
    return Normalised(nn.Sequential(conv_norm(3, 8), nn.MaxPool2d(3, 2, 1), *stages, pooled_head(16)))


def mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018: inverted residuals with ReLU6 and linear bottlenecks."""

    def block(a: int, b: int, stride: int) -> nn.Module:
        deep = conv_norm(4 * a, 4 * a, stride=stride, groups=4 * a, act="ReLU6")
        body = nn.Sequential(conv_norm(a, 4 * a, 1, act="ReLU6"), deep, conv_norm(4 * a, b, 1, act=""))
        return Residual(body) if stride == 1 and a == b else body

    stages = (block(8, 8, 1), block(8, 12, 2), block(12, 12, 1))
    last = conv_norm(12, 32, 1, act="ReLU6")
    return nn.Sequential(conv_norm(3, 8, stride=2, act="ReLU6"), *stages, last, pooled_head(32, dropout=0.2))


class SqueezeExcitation(nn.Module):
    """Hu et al. 2018: channels are scaled by a function of their means."""

    def __init__(self, channels: int, squeezed: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.pool, self.act, self.gate = nn.AdaptiveAvgPool2d(1), act, gate
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.gate(self.fc2(self.act(self.fc1(self.pool(x)))))
        return scale * x


def mobilenet_v3() -> nn.Module:
    """Howard et al. 2019, small: HardSwish, squeeze-excitation with HardSigmoid."""

    def block(a: int, b: int, stride: int, act: str) -> nn.Module:
        e = 3 * a
        squeeze = SqueezeExcitation(e, e // 4, nn.ReLU(), nn.Hardsigmoid())
        deep = conv_norm(e, e, stride=stride, groups=e, act=act)
        body = nn.Sequential(conv_norm(a, e, 1, act=act), deep, squeeze, conv_norm(e, b, 1, act=""))
        return Residual(body) if stride == 1 and a == b else body

    stages = (block(8, 8, 1, "ReLU"), block(8, 12, 2, "Hardswish"), block(12, 12, 1, "Hardswish"))
    head = (nn.Linear(24, 24), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(24, CLASSES))
    pool = (conv_norm(12, 24, 1, act="Hardswish"), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(conv_norm(3, 8, stride=2, act="Hardswish"), *stages, *pool, *head)


def efficientnet() -> nn.Module:
    """Tan & Le 2019: MBConv blocks with SiLU, squeeze-excitation with a sigmoid."""

    def block(a: int, b: int, kernel: int, stride: int) -> nn.Module:
        e = 4 * a
        squeeze = SqueezeExcitation(e, a // 4, nn.SiLU(), nn.Sigmoid())
        deep = conv_norm(e, e, kernel, stride=stride, groups=e, act="SiLU")
        body = nn.Sequential(conv_norm(a, e, 1, act="SiLU"), deep, squeeze, conv_norm(e, b, 1, act=""))
        return Residual(body) if stride == 1 and a == b else body

    stages = (block(8, 8, 3, 1), block(8, 12, 5, 2))
    return nn.Sequential(
        conv_norm(3, 8, stride=2, act="SiLU"), *stages, conv_norm(12, 24, 1, act="SiLU"), pooled_head(24)
    )


def regnet_y() -> nn.Module:
    """Radosavovic et al. 2020: bottlenecks with grouped convolutions and squeeze-excitation."""

    def block(a: int, b: int, stride: int) -> Residual:
        squeeze = SqueezeExcitation(b, a // 4, nn.ReLU(), nn.Sigmoid())
        body = nn.Sequential(
            conv_norm(a, b, 1), conv_norm(b, b, stride=stride, groups=b // 8), squeeze, conv_norm(b, b, 1, act="")
        )
        return Residual(body, conv_norm(a, b, 1, stride=stride, act="") if (a, stride) != (b, 1) else None, nn.ReLU())

    return nn.Sequential(conv_norm(3, 8, stride=2), block(8, 16, 2), block(16, 16, 1), pooled_head(16))


class ShuffleUnit(nn.Module):
    """Ma et al. 2018 (ShuffleNetV2): one half passes, the other is convolved; then channels are shuffled."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        half, inputs = channels // 2, channels if stride == 2 else channels // 2
        self.stride = stride
        self.left = (
            nn.Sequential(conv_norm(inputs, inputs, stride=2, groups=inputs, act=""), conv_norm(inputs, half, 1))
            if stride == 2
            else nn.Identity()
        )
        deep = conv_norm(half, half, stride=stride, groups=half, act="")
        self.right = nn.Sequential(conv_norm(inputs, half, 1), deep, conv_norm(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.stride == 2 else x.chunk(2, dim=1)
        y = torch.cat([self.left(left), self.right(right)], dim=1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Mean(nn.Module):
    """The mean over some axes."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


def shufflenet() -> nn.Module:
    """ShuffleNetV2: max pool, units, a mean over the map."""
    stem = (conv_norm(3, 8), nn.MaxPool2d(3, 2, 1))
    units = (ShuffleUnit(8, 2), ShuffleUnit(8, 1))
    return nn.Sequential(*stem, *units, conv_norm(8, 32, 1), Mean(2, 3), nn.Linear(32, CLASSES))


class Dense(nn.Module):
    """Huang et al. 2017: the input beside norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution of it."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        squeeze = (nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 2 * growth, 1, bias=False))
        grow = (nn.BatchNorm2d(2 * growth), nn.ReLU(), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False))
        self.body = nn.Sequential(*squeeze, *grow)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], dim=1)


def densenet() -> nn.Module:
    """DenseNet with two blocks and one transition."""
    transition = (nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False), nn.AvgPool2d(2, 2))
    end = (nn.BatchNorm2d(16), nn.ReLU(), pooled_head(16))
    stem = (conv_norm(3, 8, stride=2), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, Dense(8, 4), Dense(12, 4), *transition, Dense(8, 4), Dense(12, 4), *end)


class Parallel(nn.Module):
    """Branches side by side, concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def squeezenet() -> nn.Module:
    """Iandola et al. 2016: fire modules, max pools with ceil_mode, a convolution as the classifier."""

    def fire(a: int, s: int, e: int) -> nn.Sequential:
        wide = Parallel(
            nn.Sequential(nn.Conv2d(s, e, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(s, e, 3, padding=1), nn.ReLU())
        )
        return nn.Sequential(nn.Conv2d(a, s, 1), nn.ReLU(), wide)

    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    head = (nn.Dropout(), nn.Conv2d(24, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    stem = (nn.Conv2d(3, 8, 3, 2), nn.ReLU(), pool)
    return nn.Sequential(*stem, fire(8, 4, 8), fire(16, 4, 8), pool, fire(16, 6, 12), *head)


def googlenet() -> nn.Module:
    """Szegedy et al. 2015: inception modules with a pool branch, max pools with ceil_mode."""

    def inception(a: int, b: int) -> Parallel:
        pool = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv_norm(a, b, 1))
        reduced = (nn.Sequential(conv_norm(a, b, 1), conv_norm(b, b)) for _ in range(2))
        return Parallel(conv_norm(a, b, 1), *reduced, pool)

    stem = (conv_norm(3, 8), nn.MaxPool2d(3, 2, ceil_mode=True))
    body = (inception(8, 4), nn.MaxPool2d(2, 2, ceil_mode=True), inception(16, 4))
    return nn.Sequential(*stem, *body, pooled_head(16, dropout=0.2))


def inception() -> nn.Module:
    """Szegedy et al. 2016 (v3): factorised 1x7 and 7x1 convolutions, average-pool branch, grid reduction."""
    pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_norm(8, 4, 1))
    factorised = nn.Sequential(conv_norm(8, 4, 1), conv_norm(4, 4, (1, 7)), conv_norm(4, 4, (7, 1)))
    wide = Parallel(conv_norm(8, 4, 1), factorised, pool)
    narrow = nn.Sequential(nn.Conv2d(12, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    reduction = Parallel(narrow, nn.MaxPool2d(3, 2))
    return nn.Sequential(conv_norm(3, 8, stride=2), wide, reduction, pooled_head(20, dropout=0.5))


def binary() -> nn.Module:
    """One logit, as for nn.BCEWithLogitsLoss, with the sigmoid that is put behind it for deployment."""
    body = (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(128, 1), nn.Sigmoid())


def tabular() -> nn.Module:
    """A table of 16 features: batch norm of the input, dropout."""
    hidden = (nn.Linear(16, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Dropout(0.1), nn.Linear(64, 32), nn.ReLU())
    return nn.Sequential(nn.BatchNorm1d(16), *hidden, nn.Linear(32, 4))


def signal() -> nn.Module:
    """1-D convolutions over two channels of 64 samples."""
    first = (nn.Conv1d(2, 8, 7, padding=3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2))
    second = (nn.Conv1d(8, 16, 5, stride=2), nn.BatchNorm1d(16), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool1d(1))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(16, 5))


def volume() -> nn.Module:
    """3-D convolutions over a volume of 8 x 8 x 8 voxels."""
    first = (nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2))
    second = (nn.Conv3d(6, 12, 3, padding=1), nn.BatchNorm3d(12), nn.ReLU(), nn.AdaptiveAvgPool3d(1))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(12, 4))


class UNet(nn.Module):
    """Ronneberger et al. 2015: contracting path and one step up with its skip connection, pooled to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(conv_norm(3, 6), conv_norm(6, 6))
        self.narrow = nn.Sequential(nn.MaxPool2d(2), conv_norm(6, 12), conv_norm(12, 12))
        self.up, self.merge = nn.ConvTranspose2d(12, 6, 2, 2), conv_norm(12, 6)
        self.head = pooled_head(6)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide(x)
        y: Tensor = self.head(self.merge(torch.cat([wide, self.up(self.narrow(wide))], dim=1)))
        return y


def weight_norm() -> nn.Module:
    """Salimans & Kingma 2016: weights as direction and length, computed in the file."""

    def normed(layer: nn.Module) -> nn.Module:
        return nn.utils.parametrizations.weight_norm(layer)

    body = (nn.Conv2d(3, 8, 3, 2, 1), nn.ELU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ELU(), nn.Flatten(), nn.Linear(128, 10))
    return nn.Sequential(*(normed(one) if isinstance(one, nn.Conv2d | nn.Linear) else one for one in body))


class TwoHeads(nn.Module):
    """Logits and an embedding, both returned."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(3, 8, stride=2), conv_norm(8, 12, stride=2), Mean(2, 3))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return functional.normalize(features), self.head(features)
