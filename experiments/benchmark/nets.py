"""Nets that the benchmarks measure, and the floating point operations of a step of each."""

import dataclasses
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

from experiments.flags.config import TrainConfig

NetName = Literal["a", "b", "b20", "c", "c20", "d"]
PeerNetName = Literal["a", "b", "b20", "c", "c20", "d", "e"]
"""Nets of `peers`. The loops by hand, which the other subcommands measure, have no net e."""
DATA_SIDE = 28
"""Height and width of the nets' images."""
LARGE_PRODUCT = (2048, 2048)
"""Shape of the two matrices whose product measures the hardware's peak."""
CONV_WIDTH = 256
"""Width of the fully connected layers of the convolutional net."""


class Net(NamedTuple):
    """A net and its training settings.

    Attributes:
        about: description in words.
        model: mlp, conv or resnet.
        hidden: widths of the encoder's layers (mlp), or channels of its levels.
        latent_dim: Z.
        activation: activation of the hidden layers.
        batch_size: B.
        num_samples: K of the bound; 1: the ELBO, more: the importance-weighted bound.
        data_shape: shape of the images, whose channels are binarized at random in every net.
        dataset: data set by default.
        verify_steps: steps that the variants train to be judged, by default.
    """

    about: str
    model: str
    hidden: tuple[int, ...]
    latent_dim: int
    activation: str
    batch_size: int
    num_samples: int = 1
    data_shape: tuple[int, int, int] = (DATA_SIDE, DATA_SIDE, 1)
    dataset: str = "mnist_small"
    verify_steps: int = 3000

    def flags(self) -> dict[str, Any]:
        """Flags of `experiments.train` for this net, by name."""
        flags: dict[str, Any] = {"model": self.model, "latent_dim": self.latent_dim}
        flags |= {"channels" if self.model == "resnet" else "hidden": self.hidden}
        flags |= {"batch_size": self.batch_size}
        if self.activation != "relu":
            flags["activation"] = self.activation
        if self.num_samples > 1:
            flags |= {"objective": "iwae", "num_samples": self.num_samples}
        return flags

    def config(self, **more: Any) -> TrainConfig:
        """Configuration of `experiments.train` with this net's flags, and `more` over them."""
        return dataclasses.replace(TrainConfig(likelihood="bernoulli"), **self.flags() | more)


class Product(NamedTuple):
    """Matrix product [m, k] x [k, n] in the forward pass of one image."""

    m: int
    k: int
    n: int


_A = Net("784-400-20, relu, batch 128", "mlp", (400,), 20, "relu", 128)
_B = Net("784-200-200-50, tanh, batch 100", "mlp", (200, 200), 50, "tanh", 100)
_C = _B._replace(about="784-200-200-50, tanh, 50-sample IWAE, batch 100", num_samples=50)
NETS: dict[str, Net] = {
    "a": _A,
    "b": _B,
    "b20": _B._replace(about="784-200-200-50, tanh, batch 20", batch_size=20),
    "c": _C,
    "c20": _C._replace(about="784-200-200-50, tanh, 50-sample IWAE, batch 20", batch_size=20),
    "d": Net(
        "conv 32-64, dense 256, 32 latents, relu, batch 128", "conv", (32, 64), 32, "relu", 128
    ),
    "e": Net(
        "resnet 32-64-128 for 64 x 64 x 3, one block a level, 32 latents, batch 32",
        "resnet",
        (32, 64, 128),
        32,
        "relu",
        32,
        data_shape=(64, 64, 3),
        dataset="shapes:64",
        verify_steps=200,
    ),
}
assert {*NETS} == {*get_args(PeerNetName)} == {*get_args(NetName), "e"}


def products(net: Net) -> list[Product]:
    """Matrix products of one image's forward pass, first layer first; not for a resnet.

    A 4 x 4 convolution with stride 2 is a product over the positions of the smaller image, and so
    is its transpose. The decoder's products are repeated for each of the K samples.

    >>> products(NETS["a"])[1]
    Product(m=1, k=400, n=40)
    """
    if net.model == "mlp":
        widths = (DATA_SIDE**2, *net.hidden)
        encoder = [Product(1, *pair) for pair in pairwise(widths)]
        decoder = [Product(1, layer.n, layer.k) for layer in reversed(encoder)]
    else:
        encoder = _convolutions(net.hidden)
        smallest = (DATA_SIDE // 2 ** len(net.hidden)) ** 2 * net.hidden[-1]
        # A transposed convolution has the same positions, with input and output channels swapped.
        decoder = [Product(p.m, p.n, p.k) for p in reversed(encoder)]
        encoder.append(Product(1, smallest, CONV_WIDTH))
        decoder.insert(0, Product(1, CONV_WIDTH, smallest))
    last = encoder[-1].n
    encoder.append(Product(1, last, 2 * net.latent_dim))
    decoder.insert(0, Product(1, net.latent_dim, last))
    return encoder + [p._replace(m=p.m * net.num_samples) for p in decoder]


def _convolutions(channels: tuple[int, ...]) -> list[Product]:
    found, side, before = [], DATA_SIDE, 1
    for after in channels:
        side //= 2
        found.append(Product(side**2, 16 * before, after))
        before = after
    return found


def step_flops(net: Net) -> int:
    """Floating point operations of the matrix products of one training step on a whole batch.

    2 m n k per product, once forward and twice backward; the first layer has no input gradient.

    >>> step_flops(NETS["a"])
    419840000
    """
    forward = [2 * p.m * p.n * p.k for p in products(net)]
    return net.batch_size * (3 * sum(forward) - forward[0])


def large_product_flops() -> int:
    """Floating point operations of the product that measures the hardware's peak."""
    rows, columns = LARGE_PRODUCT
    return 2 * rows * columns * columns
