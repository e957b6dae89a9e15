"""Variant that estimates log p(x) of test images as `experiments.evaluate` does."""

import time
from typing import Any

import numpy as np

from experiments.benchmark import weights
from experiments.benchmark.images import binary_images
from experiments.benchmark.scanned_loop import CHUNK_STEPS, Loop, one_draw_for_the_batch
from experiments.benchmark.setting import make_setting
from experiments.benchmark.timed import Timed, Work, with_rows
from experiments.machine.keys import root_key
from experiments.show.numbers import make_scorer
from jaxvae.training.devices import make_mesh

BATCH_SIZE = 100
"""Images evaluated at once: the command's default."""


class Trained:
    """Train a net for some steps, to have weights to evaluate."""

    def __init__(self, net: str, steps: int, path: str, **where: Any) -> None:
        setting = make_setting(net, **where)
        initial = f"{path}.initial.npz"
        weights.save(initial, weights.named(setting.initial_params()))
        loop = Loop(setting, one_draw_for_the_batch())
        # Rounded up to whole chunks: a scan of another length would be compiled anew.
        loop.train(initial, [(-(-steps // CHUNK_STEPS) * CHUNK_STEPS, path)], seed=0)
        self.about: dict[str, Any] = {}


class LogLikelihoods:
    """K-sample estimates of the library over a data set; a worker holds this object.

    Args:
        net: a key of `NETS`.
        num_samples: K.
        path: file of the weights.
        segment_seconds: approximate length of a segment.
        num_images: images per segment; None: as many as fit into `segment_seconds`.
        where: arguments of `make_setting`.
    """

    def __init__(
        self,
        net: str,
        num_samples: int,
        path: str,
        segment_seconds: float,
        num_images: int | None,
        **where: Any,
    ) -> None:
        setting = make_setting(net, **where)
        self._images = binary_images(setting.dataset.test)
        self._num_samples = num_samples
        self._scorer = make_scorer(
            setting.vae,
            weights.as_tree(weights.load(path), setting.initial_params()),
            setting.preprocessing,
            key=root_key(0),
            mesh=make_mesh(setting.devices),
            most_samples=num_samples,
            batch_size=BATCH_SIZE,
        )
        started = time.perf_counter()
        self._values(BATCH_SIZE)
        self.about = {"compile_seconds": time.perf_counter() - started}
        calls = None if num_images is None else -(-num_images // BATCH_SIZE)
        self._timed = Timed(Work(self._advance, BATCH_SIZE, 1, self.about), segment_seconds, calls)

    def segment(self) -> dict[str, Any]:
        """Evaluate the images of one segment."""
        return with_rows(self._timed.segment(), self._num_samples)

    def values(self, num_images: int) -> list[float]:
        """Estimate log p(x) of the first images, in nats."""
        return self._values(num_images).tolist()

    def _advance(self, batches: int) -> None:
        for first in range(0, batches * BATCH_SIZE, len(self._images)):
            self._values(min(batches * BATCH_SIZE - first, len(self._images)))

    def _values(self, num_images: int) -> np.ndarray:
        return self._scorer(self._images[:num_images]).log_likelihood
