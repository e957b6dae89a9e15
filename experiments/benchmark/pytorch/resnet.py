"""The residual net in PyTorch, written as usual; its modules have the library's names."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.benchmark.nets import Net

LOG_SCALE_LIMIT = 7.0
"""Limit of log scales: limit * tanh(log_scale / limit), as in the library."""


def norm(channels: int) -> nn.GroupNorm:
    """Group normalization with at most 32 groups."""
    return nn.GroupNorm(math.gcd(channels, 32), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0, self.GroupNorm_1 = norm(channels), norm(channels)
        self.Conv_0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.Conv_1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the shape of x [B, C, H, W]."""
        h = self.Conv_0(functional.silu(self.GroupNorm_0(x)))
        return x + self.Conv_1(functional.silu(self.GroupNorm_1(h)))


class SelfAttention(nn.Module):
    """x + attention with one head between all places of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = norm(channels)
        for index in range(4):  # query, key, value and output
            setattr(self, f"Conv_{index}", nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the shape of x [B, C, H, W]."""
        h = self.GroupNorm_0(x)
        by_place = (layer(h).flatten(2).transpose(1, 2) for layer in _layers(self, "Conv", 3))
        found = functional.scaled_dot_product_attention(*by_place)
        return x + self.get_submodule("Conv_3")(found.transpose(1, 2).reshape(x.shape))


class Encoder(nn.Module):
    """x [B, H W C], channels last -> loc and log_scale of q(z|x), [B, Z] each."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net, channels = net, net.hidden
        before = [net.data_shape[2], *channels]
        for level, after in enumerate(channels):
            # Stride 2 with a row below and a column on the right: padded in `forward`.
            stride, padding = (2, 0) if level else (1, 1)
            layer = nn.Conv2d(before[level], after, 3, stride=stride, padding=padding)
            setattr(self, f"Conv_{level}", layer)
        _add_blocks(self, [*channels, channels[-1], channels[-1]])
        self.SelfAttention_0, self.GroupNorm_0 = SelfAttention(channels[-1]), norm(channels[-1])
        self.Dense_0 = nn.Linear(_smallest(net) ** 2 * channels[-1], 2 * net.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch."""
        levels = len(self.net.hidden)
        h = _channels_first(x, self.net.data_shape)
        blocks = list(_layers(self, "ResidualBlock", levels + 2))
        for level, layer in enumerate(_layers(self, "Conv", levels)):
            h = blocks[level](layer(functional.pad(h, (0, 1, 0, 1)) if level else h))
        h = blocks[-1](self.SelfAttention_0(blocks[-2](h)))
        h = functional.silu(self.GroupNorm_0(h)).permute(0, 2, 3, 1).flatten(1)
        loc, log_scale = self.Dense_0(h).chunk(2, dim=1)
        return loc, LOG_SCALE_LIMIT * torch.tanh(log_scale / LOG_SCALE_LIMIT)


class Decoder(nn.Module):
    """z [N, Z] -> logits [N, H W C], channels last."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net, channels = net, net.hidden[::-1]
        self.Dense_0 = nn.Linear(net.latent_dim, _smallest(net) ** 2 * channels[0])
        _add_blocks(self, [channels[0], channels[0], *channels])
        self.SelfAttention_0, self.GroupNorm_0 = SelfAttention(channels[0]), norm(channels[-1])
        for level, after in enumerate(channels[1:]):
            setattr(self, f"Upsample_{level}", nn.Conv2d(channels[level], after, 3, padding=1))
        self.Conv_0 = nn.Conv2d(channels[-1], net.data_shape[2], 3, padding=1, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(net.data_shape[2]))

    def forward(self, z: Tensor) -> Tensor:
        """Decode a batch of latents."""
        levels, side = len(self.net.hidden), _smallest(self.net)
        blocks = list(_layers(self, "ResidualBlock", levels + 2))
        h = _channels_first(self.Dense_0(z), (side, side, self.net.hidden[-1]))
        h = blocks[2](blocks[1](self.SelfAttention_0(blocks[0](h))))
        for layer, block in zip(_layers(self, "Upsample", levels - 1), blocks[3:], strict=True):
            h = block(layer(functional.interpolate(h, scale_factor=2.0, mode="nearest")))
        h = self.Conv_0(functional.silu(self.GroupNorm_0(h))) + self.output_bias[:, None, None]
        return h.permute(0, 2, 3, 1).flatten(1)


def _add_blocks(network: nn.Module, channels: list[int]) -> None:
    for index, width in enumerate(channels):
        setattr(network, f"ResidualBlock_{index}", ResidualBlock(width))


def _layers(network: nn.Module, kind: str, number: int) -> Iterator[Any]:
    return (network.get_submodule(f"{kind}_{index}") for index in range(number))


def _channels_first(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images [B, C, H, W] of rows with channels last.

    Without `contiguous` they would keep channels last in memory, which is for the tuned variant.
    """
    return x.unflatten(1, shape).permute(0, 3, 1, 2).contiguous()


def _smallest(net: Net) -> int:
    return net.data_shape[0] // 2 ** (len(net.hidden) - 1)
