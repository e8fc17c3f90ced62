"""Twins of ConvNeXt, Swin, ViT and MLP-Mixer: LayerNorm, GELU and attention, as torchvision and timm write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo_networks import CLASSES, Mean, Residual


class Permute(nn.Module):
    """Axes in another order, as torchvision.ops.Permute."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class Scaled(nn.Module):
    """A branch times one weight per channel (layer scale)."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.scale = body, nn.Parameter(torch.full((channels, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.scale * self.body(x)
        return y


def channel_norm(channels: int) -> nn.Sequential:
    """LayerNorm over the channels of a map (torchvision's LayerNorm2d)."""
    return nn.Sequential(Permute(0, 2, 3, 1), nn.LayerNorm(channels, eps=1e-6), Permute(0, 3, 1, 2))


def convnext() -> nn.Module:
    """Liu et al. 2022: patches, 7x7 depthwise convolutions, LayerNorm, GELU, layer scale."""

    def block(c: int) -> Residual:
        mix = (nn.LayerNorm(c, eps=1e-6), nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
        deep = nn.Conv2d(c, c, 7, padding=3, groups=c)
        return Residual(Scaled(nn.Sequential(deep, Permute(0, 2, 3, 1), *mix, Permute(0, 3, 1, 2)), c))

    down = (channel_norm(8), nn.Conv2d(8, 12, 2, 2))
    head = (nn.AdaptiveAvgPool2d(1), channel_norm(12), nn.Flatten(), nn.Linear(12, CLASSES))
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), channel_norm(8), block(8), *down, block(12), *head)


class Attention(nn.Module):
    """Multi-head self-attention of tokens (n, t, d), as timm has it; `bias` (heads, t, t) is added to the scores."""

    def __init__(self, features: int, heads: int, tokens: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.bias = nn.Parameter(0.1 * torch.randn(heads, tokens, tokens)) if tokens else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.bias is None:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:  # as torchvision's shifted_window_attention
            scores = (q * (d // self.heads) ** -0.5) @ k.transpose(-2, -1) + self.bias
            if mask is not None:
                scores = scores.view(n // len(mask), len(mask), self.heads, t, t) + mask[None, :, None]
                scores = scores.view(-1, self.heads, t, t)
            y = scores.softmax(-1) @ v
        out: Tensor = self.proj(y.transpose(1, 2).reshape(n, t, d))
        return out


def mlp(features: int, hidden: int) -> nn.Sequential:
    """Linear, GELU, Linear over the last axis."""
    return nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))


class ShiftedWindows(nn.Module):
    """Liu et al. 2021 (Swin): attention within windows (2 x 2) of a map (n, h, w, c), rolled by `shift`."""

    mask: Tensor | None

    def __init__(self, channels: int, side: int, shift: int, window: int = 2) -> None:
        super().__init__()
        self.attention, self.shift, self.window = Attention(channels, 2, window**2), shift, window
        region = torch.zeros(side, side)
        for number, part in enumerate((slice(-window, -shift), slice(-shift, None)) if shift else ()):
            region[part] += 3 * (number + 1)
            region[:, part] += number + 1
        groups = self.split(region[None, :, :, None])[..., 0]
        mask = (groups[:, None] != groups[:, :, None]).float() * -100.0
        self.register_buffer("mask", mask if shift else None)

    def split(self, x: Tensor) -> Tensor:
        """Windows as tokens: (n h w / window², window², c)."""
        n, h, w, c = x.shape
        k = self.window
        return x.view(n, h // k, k, w // k, k, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, k * k, c)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        k = self.window
        y = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        y = self.attention(self.split(y), self.mask)
        y = y.view(n, h // k, w // k, k, k, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        y: Tensor = self.reduction(self.norm(torch.cat(parts, -1)))
        return y


def swin() -> nn.Module:
    """Two Swin blocks (plain and shifted windows) and patch merging."""

    def block(c: int, side: int, shift: int) -> nn.Sequential:
        attend = nn.Sequential(nn.LayerNorm(c), ShiftedWindows(c, side, shift))
        return nn.Sequential(Residual(attend), Residual(nn.Sequential(nn.LayerNorm(c), mlp(c, 2 * c))))

    stem = (nn.Conv2d(3, 8, 4, 4), Permute(0, 2, 3, 1), nn.LayerNorm(8))
    head = (nn.LayerNorm(16), Permute(0, 3, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(16, CLASSES))
    return nn.Sequential(*stem, block(8, 4, 0), block(8, 4, 1), PatchMerging(8), *head)


class Tokens(nn.Module):
    """Patches as tokens (n, t, d), with a class token and positions where `positions`."""

    def __init__(self, features: int, patch: int, tokens: int, *, positions: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, features, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, features)) if positions else None
        self.positions = nn.Parameter(0.5 * torch.randn(1, tokens + 1, features)) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is None or self.positions is None:
            return y
        return torch.cat([self.token.expand(y.shape[0], -1, -1), y], dim=1) + self.positions


class First(nn.Module):
    """The first token."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def vit() -> nn.Module:
    """Dosovitskiy et al. 2021: class token, positions, two pre-norm encoder layers."""

    def layer(d: int) -> nn.Sequential:
        attend = Residual(nn.Sequential(nn.LayerNorm(d), Attention(d, 2)))
        return nn.Sequential(attend, Residual(nn.Sequential(nn.LayerNorm(d), mlp(d, 2 * d))))

    tokens = Tokens(16, 4, 16, positions=True)
    return nn.Sequential(tokens, layer(16), layer(16), nn.LayerNorm(16), First(), nn.Linear(16, CLASSES))


class AcrossTokens(nn.Module):
    """A block over tokens instead of features."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x.transpose(1, 2)).transpose(1, 2)
        return y


def mixer() -> nn.Module:
    """Tolstikhin et al. 2021: MLPs over tokens and over channels in turn."""

    def layer(t: int, d: int) -> nn.Sequential:
        tokens = Residual(nn.Sequential(nn.LayerNorm(d), AcrossTokens(mlp(t, 2 * t))))
        return nn.Sequential(tokens, Residual(nn.Sequential(nn.LayerNorm(d), mlp(d, 2 * d))))

    tokens = Tokens(12, 4, 16, positions=False)
    return nn.Sequential(tokens, layer(16, 12), layer(16, 12), nn.LayerNorm(12), Mean(1), nn.Linear(12, CLASSES))
