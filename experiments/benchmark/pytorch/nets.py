"""The nets in PyTorch, written as usual: modules that take batches, channels first."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.benchmark.nets import CONV_WIDTH, DATA_SIDE, Net
from experiments.benchmark.pytorch import resnet

LOG_SCALE_LIMIT = 7.0
"""Limit of log scales: limit * tanh(log_scale / limit), as in the library."""


class Encoder(nn.Module):
    """x [B, 784] -> loc and log_scale of q(z|x), [B, Z] each."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.activation = nn.Tanh() if net.activation == "tanh" else nn.ReLU()
        self.convolutions: Any = nn.ModuleList()
        widths = [DATA_SIDE**2, *net.hidden]
        if net.model == "conv":
            channels = [1, *net.hidden]
            self.convolutions.extend(
                nn.Conv2d(before, after, 4, stride=2, padding=1)
                for before, after in pairwise(channels)
            )
            widths = [_smallest(net) ** 2 * net.hidden[-1], CONV_WIDTH]
        widths.append(2 * net.latent_dim)
        self.dense: Any = nn.ModuleList(
            nn.Linear(before, after) for before, after in pairwise(widths)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch."""
        if len(self.convolutions):
            x = x.reshape(-1, 1, DATA_SIDE, DATA_SIDE)
            for convolution in self.convolutions:
                x = self.activation(convolution(x))
            x = x.flatten(1)
        for layer in self.dense[:-1]:
            x = self.activation(layer(x))
        loc, log_scale = self.dense[-1](x).chunk(2, dim=1)
        return loc, LOG_SCALE_LIMIT * torch.tanh(log_scale / LOG_SCALE_LIMIT)


class Decoder(nn.Module):
    """z [N, Z] -> logits [N, 784]."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.activation = nn.Tanh() if net.activation == "tanh" else nn.ReLU()
        self.convolutions: Any = nn.ModuleList()
        widths = [net.latent_dim, *reversed(net.hidden), DATA_SIDE**2]
        self.side, self.output_bias = _smallest(net), None
        if net.model == "conv":
            channels = [*reversed(net.hidden), 1]
            self.convolutions.extend(
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=after > 1)
                for before, after in pairwise(channels)
            )
            self.output_bias = nn.Parameter(torch.zeros(1, DATA_SIDE, DATA_SIDE))
            widths = [net.latent_dim, CONV_WIDTH, self.side**2 * net.hidden[-1]]
        self.dense: Any = nn.ModuleList(
            nn.Linear(before, after) for before, after in pairwise(widths)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Decode a batch of latents."""
        for layer in self.dense[:-1]:
            z = self.activation(layer(z))
        h = self.dense[-1](z)
        if self.output_bias is None:
            return h
        h = self.activation(h).reshape(len(z), -1, self.side, self.side)
        for convolution in self.convolutions[:-1]:
            h = self.activation(convolution(h))
        return (self.convolutions[-1](h) + self.output_bias).flatten(1)


class Autoencoder(nn.Module):
    """VAE of a net: encoder, decoder and bound."""

    encoder: Any
    decoder: Any

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        if net.model == "resnet":
            self.encoder, self.decoder = resnet.Encoder(net), resnet.Decoder(net)
        else:
            self.encoder, self.decoder = Encoder(net), Decoder(net)

    def sample(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return loc, log_scale [B, Z], and K draws and their noise: [K, B, Z]; [B, Z] if K = 1."""
        loc, log_scale = self.encoder(x)
        shape = loc.shape if self.net.num_samples == 1 else (self.net.num_samples, *loc.shape)
        eps = torch.randn(shape, device=loc.device)
        return loc, log_scale, loc + log_scale.exp() * eps, eps

    def objective(self, x: Tensor, log_likelihood: Any) -> Tensor:
        """Negative mean bound of a batch of binary pixels.

        Args:
            x: pixels [B, 784].
            log_likelihood: (logits [..., B, 784], x) -> log p(x|z) [..., B].
        """
        loc, log_scale, z, eps = self.sample(x)
        logits = self.decoder(z.flatten(0, -2)).unflatten(0, z.shape[:-1])
        reconstruction = log_likelihood(logits, x)
        if self.net.num_samples == 1:
            kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1)
            return -(reconstruction - kl).mean()
        log_ratio = 0.5 * (eps.square() - z.square()).sum(-1) + log_scale.sum(-1)
        log_weights = reconstruction + log_ratio
        return -(torch.logsumexp(log_weights, 0) - math.log(len(log_weights))).mean()


def from_probabilities(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x|z) through sigmoid and binary_cross_entropy, as in PyTorch's examples."""
    p = torch.sigmoid(logits)
    return -functional.binary_cross_entropy(p, x.expand_as(p), reduction="none").sum(-1)


def from_logits(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x|z) through binary_cross_entropy_with_logits."""
    return -functional.binary_cross_entropy_with_logits(
        logits, x.expand_as(logits), reduction="none"
    ).sum(-1)


def from_softplus(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x|z) as x l - softplus(l)."""
    return (logits * x - functional.softplus(logits)).sum(-1)


def _smallest(net: Net) -> int:
    return DATA_SIDE // 2 ** len(net.hidden)
