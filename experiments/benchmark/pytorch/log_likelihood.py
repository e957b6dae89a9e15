"""Variant that estimates log p(x) of test images by a tuned PyTorch loop."""

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from experiments import data as datasets
from experiments.benchmark import weights
from experiments.benchmark.images import binary_images, check_images
from experiments.benchmark.nets import NETS
from experiments.benchmark.pytorch import weights as pytorch_weights
from experiments.benchmark.pytorch.nets import Autoencoder
from experiments.benchmark.pytorch.settings import (
    Choice,
    available_device,
    fastest,
    thread_counts,
    wait_for,
)
from experiments.benchmark.timed import Fastest, Timed, Work, with_rows

CHUNK_ROWS = (500, 1000, 2000, 5000)
"""Numbers of latents decoded at once that the race tries."""
BATCH_SIZE = 100


class Estimator:
    """K-sample estimates of log p(x), a chunk of rows at a time; a row is one sample of one image.

    Args:
        model: model with its weights set.
        num_samples: K.
        choice: setting whose `rows` is the size of a chunk.
    """

    def __init__(self, model: Autoencoder, num_samples: int, choice: Choice) -> None:
        self._model, self._num_samples = model, num_samples
        self._samples = min(num_samples, choice.rows)
        self._images = max(1, choice.rows // num_samples)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Estimate log p(x) of binary images [N, 784]: [N] nats."""
        return torch.cat([self._of_some(some) for some in x.split(self._images)])

    def _of_some(self, x: Tensor) -> Tensor:
        loc, log_scale = (part[:, None] for part in self._model.encoder(x))
        log_weights = []
        for first in range(0, self._num_samples, self._samples):
            count = min(self._samples, self._num_samples - first)
            eps = torch.randn(len(x), count, loc.shape[2], device=x.device)
            z = torch.addcmul(loc, log_scale.exp(), eps)
            logits = self._model.decoder(z.flatten(0, 1)).unflatten(0, (len(x), count))
            # A matrix product for x l, and softplus: half the time of the cross entropy.
            fit = (logits @ x[:, :, None])[..., 0] - functional.softplus(logits).sum(2)
            ratio = 0.5 * (eps.square() - z.square()).sum(2) + log_scale.sum(2)
            log_weights.append(fit + ratio)
        return torch.logsumexp(torch.cat(log_weights, 1), 1) - math.log(self._num_samples)


class LogLikelihoods:
    """The estimator with the fastest of its settings; a worker holds this object.

    Args:
        net: a key of `NETS`.
        num_samples: K.
        path: file of the weights.
        segment_seconds: approximate length of a segment.
        num_images: images per segment; None: as many as fit into `segment_seconds`.
        accelerator, dataset, manual_dir: flags of the commands.
        num_devices: ignored: PyTorch runs on one device.
    """

    def __init__(
        self,
        net: str,
        num_samples: int,
        path: str,
        segment_seconds: float,
        num_images: int | None,
        *,
        accelerator: str,
        num_devices: int,
        dataset: str,
        manual_dir: str | None,
    ) -> None:
        del num_devices
        torch.manual_seed(0)
        self._device = available_device(accelerator)
        test = datasets.load(dataset, manual_dir=manual_dir).test
        check_images(test, net)
        images = torch.from_numpy(binary_images(test).reshape(len(test), -1))
        self._images = (images > 0).float().to(self._device)
        self._num_samples = num_samples
        model = Autoencoder(NETS[net]).to(self._device)
        pytorch_weights.load(model, weights.load(path))
        few = max(1, 5000 // num_samples)

        def make(choice: Choice) -> Any:
            estimator = Estimator(model, num_samples, choice)
            return estimator, lambda calls: self._wait(estimator, calls * few)

        entrants = [
            Choice(threads, softplus=True, rows=rows)
            for threads in thread_counts(self._device)
            for rows in CHUNK_ROWS
        ]
        started = time.perf_counter()
        race = fastest(entrants, make)
        self._estimator = next(iter(race.finalists.values()))[0]
        self.about = race.about | {"compile_seconds": time.perf_counter() - started}
        calls = None if num_images is None else -(-num_images // few)
        self._timed = Fastest(
            {
                str(choice): Timed(Work(lap, few, 1, self.about), segment_seconds, calls)
                for choice, (_, lap) in race.finalists.items()
            }
        )

    def segment(self) -> dict[str, Any]:
        """Evaluate the images of one segment."""
        return with_rows(self._timed.segment(), self._num_samples)

    def values(self, num_images: int) -> list[float]:
        """Estimate log p(x) of the first images, in nats."""
        return self._estimator(self._images[:num_images]).tolist()

    def _wait(self, estimator: Estimator, num_images: int) -> None:
        for first in range(0, num_images, len(self._images)):
            for some in self._images[: num_images - first].split(BATCH_SIZE):
                estimator(some)
        wait_for(self._device)
