"""Training of the nets in PyTorch, in two styles: as usually written, and tuned."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from experiments import data as datasets
from experiments.benchmark import weights
from experiments.benchmark.images import check_images
from experiments.benchmark.nets import NETS, Net
from experiments.benchmark.pytorch import weights as pytorch_weights
from experiments.benchmark.pytorch.nets import (
    Autoencoder,
    from_logits,
    from_probabilities,
    from_softplus,
)
from experiments.benchmark.pytorch.settings import (
    Choice,
    available_device,
    fastest,
    thread_counts,
    wait_for,
)
from experiments.benchmark.timed import Fastest, Snapshots, Timed, Work

LEARNING_RATE = 1e-3


class Trainer(NamedTuple):
    """A model, its training step and its optimizer.

    Attributes:
        model: model whose parameters `restart` sets.
        step: function that does one training step and returns its loss.
        optimizer: optimizer whose moments `restart` clears.
    """

    model: Autoencoder
    step: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer

    def restart(self, initial: weights.Weights) -> None:
        """Restart the training from these weights."""
        pytorch_weights.load(self.model, initial)
        self.optimizer.state.clear()


def usual(net: Net, pixels: Tensor, device: torch.device, choice: Choice) -> Trainer:
    """Make the usual trainer: DataLoader, sigmoid and binary_cross_entropy, plain Adam."""
    del choice
    model = Autoencoder(net).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    loader = DataLoader(
        TensorDataset(pixels), batch_size=net.batch_size, shuffle=True, drop_last=True
    )

    def batches() -> Iterator[Tensor]:
        while True:
            for (batch,) in loader:
                yield batch

    source = batches()

    def step() -> Tensor:
        x = torch.bernoulli(next(source).to(device).float() / 255)
        optimizer.zero_grad()
        loss = model.objective(x, from_probabilities)
        loss.backward()
        optimizer.step()
        return loss

    return Trainer(model, step, optimizer)


def tuned(net: Net, pixels: Tensor, device: torch.device, choice: Choice) -> Trainer:
    """Make the tuned trainer: permuted arrays, integer binarization, logits, fused Adam."""
    model = Autoencoder(net).to(device)
    if choice.channels_last:
        _to_channels_last(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    pixels = pixels.to(device)
    orders = _orders(len(pixels), net.batch_size, device)

    log_likelihood = from_softplus if choice.softplus else from_logits
    objective = choice.compile(lambda x: model.objective(x, log_likelihood))

    def step() -> Tensor:
        stored = pixels[next(orders)]
        # P(u < v) = v / 255 for u uniform on 0..254: exact, and without a float per pixel.
        x = (torch.randint(0, 255, stored.shape, dtype=torch.uint8, device=device) < stored).float()
        optimizer.zero_grad(set_to_none=True)
        loss = objective(x)
        loss.backward()
        optimizer.step()
        return loss

    return Trainer(model, step, optimizer)


def _to_channels_last(model: Autoencoder) -> None:
    """Convert the kernels of convolutions; PyTorch then keeps the images in that layout, too."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)


def _orders(num_rows: int, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the indices of batches, in a new order every epoch."""
    while True:
        order = torch.randperm(num_rows, device=device)
        yield from order[: num_rows // batch_size * batch_size].split(batch_size)


STYLES = {"eager": usual, "tuned": tuned}


def _entrants(style: str, net: Net, device: torch.device) -> list[Choice]:
    """Settings to try: numbers of threads and, for the tuned style, likelihoods and layouts."""
    if style == "eager":
        return [Choice(threads) for threads in thread_counts(device)]
    layouts = [False] if net.model == "mlp" else [False, True]
    return [
        Choice(threads, softplus, channels_last)
        for threads in thread_counts(device)
        for softplus in (False, True)
        for channels_last in layouts
    ]


def prepare(
    net: str,
    segment_seconds: float,
    style: str,
    *,
    accelerator: str,
    num_devices: int | None,
    dataset: str,
    manual_dir: str | None,
) -> Fastest:
    """Prepare PyTorch as a variant; in every segment the faster of its two best settings counts.

    Args:
        net: a key of `NETS`.
        segment_seconds: approximate length of a segment.
        style: a key of `STYLES`.
        accelerator, dataset, manual_dir: flags of the commands.
        num_devices: ignored: PyTorch runs on one device.
    """
    del num_devices
    torch.manual_seed(0)
    device = available_device(accelerator)
    train = datasets.load(dataset, manual_dir=manual_dir).train
    check_images(train, net)
    pixels = torch.from_numpy(train.reshape(len(train), -1))
    spec = NETS[net]
    started = time.perf_counter()

    def make(choice: Choice) -> tuple[Trainer, Callable[[int], None]]:
        trainer = STYLES[style](spec, pixels, device, choice)

        def advance(steps: int) -> None:
            for _ in range(steps):
                trainer.step()
            wait_for(device)

        return trainer, advance

    race = fastest(_entrants(style, spec, device), make, compiles=style == "tuned")
    about = race.about | {"compile_seconds": time.perf_counter() - started}

    def timed(trainer: Trainer, advance: Callable[[int], None]) -> Timed:
        def train(initial: str, snapshots: Snapshots, seed: int) -> None:
            torch.manual_seed(seed)
            trainer.restart(weights.load(initial))
            done = 0
            for steps, path in snapshots:
                advance(steps - done)
                done = steps
                weights.save(path, pytorch_weights.dump(trainer.model))

        return Timed(Work(advance, 1, spec.batch_size, about, train), segment_seconds)

    return Fastest({str(choice): timed(*made) for choice, made in race.finalists.items()})
