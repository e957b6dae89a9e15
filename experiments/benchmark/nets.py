"""The nets that are measured, and how many floating point operations a step of each is."""

import dataclasses
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

from experiments.flags.config import TrainConfig

NetName = Literal["a", "b", "b20", "c", "c20", "d"]
DATA_SIDE = 28
"""Height and width of the images that the nets are for."""
LARGE_PRODUCT = (2048, 2048)
"""Shape of the two matrices whose product is taken for the hardware's peak."""
CONV_WIDTH = 256
"""Of the fully connected layers of the convolutional net."""


class Net(NamedTuple):
    """A net and how it is trained.

    Attributes:
        about: in words.
        model: mlp or conv.
        hidden: widths of the encoder's layers, or channels of its levels.
        latent_dim: Z.
        activation: of the hidden layers.
        batch_size: B.
        num_samples: K of the bound; 1 is the ELBO, more the importance-weighted bound.
    """

    about: str
    model: str
    hidden: tuple[int, ...]
    latent_dim: int
    activation: str
    batch_size: int
    num_samples: int = 1

    def flags(self) -> dict[str, Any]:
        """What `experiments.train` takes, by the names of its flags."""
        flags = {name: getattr(self, name) for name in ("model", "hidden", "latent_dim")}
        flags |= {"batch_size": self.batch_size}
        if self.activation != "relu":
            flags["activation"] = self.activation
        if self.num_samples > 1:
            flags |= {"objective": "iwae", "num_samples": self.num_samples}
        return flags

    def config(self, **more: Any) -> TrainConfig:
        """The flags as a configuration, with more of them."""
        return dataclasses.replace(TrainConfig(), **self.flags() | more)


class Product(NamedTuple):
    """A product of matrices [m, k] and [k, n] in the forward pass of one image."""

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
}
assert set(NETS) == set(get_args(NetName))


def products(net: Net) -> list[Product]:
    """The products of one image's forward pass, first layer first.

    A 4 x 4 convolution with stride 2 is a product over the positions of the smaller image; so
    is its transpose. The decoder's come once per sample.

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
        # Transposed: the same positions, the channels' roles exchanged.
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
    """Operations of the matrix products of one training step of the whole batch.

    2 m n k each, forward once and backward twice, without the first layer's input gradient.

    >>> step_flops(NETS["a"])
    419840000
    """
    forward = [2 * p.m * p.n * p.k for p in products(net)]
    return net.batch_size * (3 * sum(forward) - forward[0])


def large_product_flops() -> int:
    """Operations of the product that is taken for the hardware's peak."""
    rows, columns = LARGE_PRODUCT
    return 2 * rows * columns * columns
