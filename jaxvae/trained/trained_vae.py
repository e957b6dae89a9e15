"""A trained VAE that takes rows as they were stored, and answers in their unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxvae.distributions import Distribution, Gaussian
from jaxvae.evaluation import (
    Estimate,
    Scores,
    center_of,
    make_score,
    map_dataset,
)
from jaxvae.models.vae import VAE, Params
from jaxvae.preprocessing import resize
from jaxvae.preprocessing.description import Description
from jaxvae.trained.export import export as write
from jaxvae.trained.reference import USUAL_SAMPLES, Reference, Score, ranked, spread_evenly
from jaxvae.training.devices import make_map, make_mesh, replicate

Progress = Callable[[int], None]


def _silent(done: int) -> None:
    pass


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainedVAE:
    """A VAE with its parameters and preprocessing.

    Rows [N, *data_shape] go in as they were stored: 8-bit images, counts, real numbers in the
    data's unit. Values on another scale raise an error that gives the range of the training data.
    All methods work in batches, on all devices, with programs that are compiled once. Row i uses
    the key fold_in(key, i), so a row's result does not depend on the rows after it.

    Attributes:
        vae, params: pure functions of one prepared example, and their parameters.
        data_shape: shape of one example.
        description: preprocessing of the rows.
        about: lines that describe data, networks, bound and steps: name -> text.
        reference: scores of training rows; None: quantiles are NaN.
        devices: devices to use; None: all.
        batch_size: rows computed at once, over all devices.

    >>> import jaxvae
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> trained = jaxvae.fit(x, hidden=(8,), latent_dim=1, num_steps=5, progress=False)
    >>> trained.encode(x[:4]).mean().shape, trained.sample(jax.random.key(0), 2).shape
    ((4, 1), (2, 3))
    """

    vae: VAE
    params: Params
    data_shape: tuple[int, ...]
    description: Description
    about: dict[str, str]
    reference: Reference | None = None
    devices: list[jax.Device] | None = None
    batch_size: int = 200

    def prepare(self, key: jax.Array, stored: jax.Array) -> jax.Array:
        """Convert one stored example [*data_shape] to the x of `vae`: a pure function."""
        return self.description.conversion.prepare(key, stored)

    def encode(self, x: ArrayLike, *, key: jax.Array | None = None) -> Distribution:
        """q(z|x) of every row, as one distribution object whose arrays have a leading axis N.

        Its methods are those of one row: `jax.vmap(lambda q: q.sample(key))(posteriors)`.

        Args:
            x: [N, *data_shape] rows as stored.
            key: key of a random preprocessing, such as binarization; None: key(0).
        """
        posteriors: Distribution = self._map("encode", self._encode_one, self.rows(x), key)
        return posteriors

    def reconstruct(self, x: ArrayLike, *, key: jax.Array | None = None) -> np.ndarray:
        """Mean of p(x|z) at the center of q(z|x): [N, *data_shape], in the unit of the rows."""
        return self._array("reconstruct", self._reconstruct_one, self.rows(x), key)

    def decode(self, z: ArrayLike) -> np.ndarray:
        """Mean of p(x|z): latents [N, Z] to [N, *data_shape], in the unit of the rows.

        Raises:
            ValueError: the latents have another shape than those of the model.
        """
        latents = np.asarray(z, np.float32)
        prior = self.vae.prior(self.params)
        shape = jax.eval_shape(prior.sample, jax.random.key(0)).shape
        if latents.shape[1:] != shape or not latents.ndim:
            raise ValueError(
                f"z must have shape [N, {', '.join(map(str, shape))}], got {list(latents.shape)}. "
                "For one latent z, give z[None]."
            )
        return self._array("decode", self._decode_one, latents, None)

    def sample(
        self, key: jax.Array, n: int, *, temperature: float = 1.0, noise: bool = False
    ) -> np.ndarray:
        """Draw n examples: [n, *data_shape], in the unit of the rows.

        Args:
            key: random key.
            n: number of examples.
            temperature: factor on the standard deviation of a Gaussian prior.
            noise: True: x ~ p(x|z); False: the mean of p(x|z), as pictures show it.

        Raises:
            ValueError: n is below 1; or the temperature is not 1 and the prior is not a Gaussian.
        """
        _check_count("n", n)
        scale = float(temperature)
        if scale != 1 and not isinstance(self.vae.prior(self.params), Gaussian):
            raise ValueError(
                f"temperature must be 1, got {scale:g}: the prior of this model is not a Gaussian."
            )

        def one(params: Params, key: jax.Array, _: jax.Array) -> jax.Array:
            key_z, key_x = jax.random.split(key)
            prior = self.vae.prior(params)
            z = prior.sample(key_z)
            if isinstance(prior, Gaussian):
                z = prior.mean() + scale * (z - prior.mean())
            p = self.vae.decode(params, z)
            if not noise:
                return jnp.asarray(self.description.conversion.stored(p.mean()))
            conversion = self.description.conversion
            x = p.sample(key_x) * conversion.top
            return jnp.clip(jnp.floor(x), 0, 255) if conversion.kind == "dequantized" else x

        return self._array(f"sample {scale} {noise}", one, np.zeros((n, 0), np.float32), key)

    def log_likelihood(
        self, key: jax.Array, x: ArrayLike, num_samples: int = 100, *, progress: Progress = _silent
    ) -> Estimate:
        """Estimate log p(x) of every row with K samples of q, and its Monte Carlo error: [N] each.

        Args:
            key: random key.
            x: [N, *data_shape] rows as stored.
            num_samples: K.
            progress: called with the number of rows done.
        """
        scores = self._scores(key, self.rows(x), num_samples, progress)
        return Estimate(scores.log_likelihood, scores.log_likelihood_error)

    def score(
        self, x: ArrayLike, *, key: jax.Array | None = None, progress: Progress = _silent
    ) -> Score:
        """ELBO, log p(x) and its Monte Carlo error of every row, and its rank in training data.

        The number of samples is that of `reference`, or 100.
        """
        num_samples = USUAL_SAMPLES if self.reference is None else self.reference.num_samples
        return ranked(self._scores(key, self.rows(x), num_samples, progress), self.reference)

    def with_reference(
        self, train: np.ndarray, num_samples: int, step: int, *, progress: Progress = _silent
    ) -> TrainedVAE:
        """Copy with the scores of up to 2,000 training rows as reference."""
        found = self._scores(None, spread_evenly(train), num_samples, progress)
        reference = Reference.of(found.log_likelihood, num_samples, step)
        copy = dataclasses.replace(self, reference=reference)
        copy.__dict__.update(
            _mesh=self._mesh, _on_devices=self._on_devices, _programs=self._programs
        )
        return copy

    def export(self, path: str | Path, *, num_samples: int = 100) -> None:
        """Write encode, decode and log_likelihood as StableHLO: `jaxvae.trained.export`."""
        write(
            self.vae,
            self.params,
            self.data_shape,
            self.description,
            num_samples=num_samples,
            about=self.about,
            folder=Path(path),
        )

    def rows(self, x: ArrayLike) -> np.ndarray:
        """Rows as stored, checked; images of another size are resized if training did so.

        Raises:
            ValueError: the rows have another shape or scale than the training data.
        """
        rows = np.asarray(x)
        if rows.dtype.kind not in "biuf":
            raise ValueError(f"rows must be numbers, got {rows.dtype}. Convert them.")
        if np.ma.is_masked(x):
            raise ValueError("rows has masked values. Fill them, or drop their rows.")
        if rows.shape[1:] == self.data_shape[:-1] and self.data_shape[-1:] == (1,):
            rows = rows[..., None]  # grey images without the axis of channels
        images = rows.ndim == 4 and rows.shape[3:] == self.data_shape[2:]
        resizes = images and self.description.resizes
        if not rows.ndim or (not resizes and rows.shape[1:] != self.data_shape):
            raise ValueError(
                f"rows must have shape [N, {', '.join(map(str, self.data_shape))}], got "
                f"{list(rows.shape)}. For one example x, give x[None]."
            )
        self.description.check(rows)
        rows = self._resized(rows) if resizes else rows
        if rows.dtype.kind == "b" or rows.dtype == np.uint8:
            return rows.view(np.uint8)
        # A device takes only 32 bits in its own order of bytes: larger integers become floats.
        real = rows.dtype.kind == "f"
        wide = not real and rows.size and (rows.min() < -(2**31) or rows.max() >= 2**31)
        return rows.astype(np.float32 if real or wide else np.int32)

    def __repr__(self) -> str:
        """Describe the model in a few lines, as a notebook shows it."""
        lines = "\n".join(f"  {name}: {text}" for name, text in self.about.items())
        return f"TrainedVAE\n{lines}"

    def _resized(self, rows: np.ndarray) -> np.ndarray:
        target = (self.data_shape[0], self.data_shape[1])
        if rows.shape[1:3] == target or not len(rows):
            return rows
        if "resize" not in self._programs:
            self._programs["resize"] = jax.jit(jax.vmap(lambda image: resize(image, target)))
        resized = self._programs["resize"]
        rows = rows.astype(self.description.trained.dtype)  # `resize` rounds and limits only uint8
        found = [resized(rows[i : i + 64]) for i in range(0, len(rows), 64)]
        return np.concatenate(found).astype(rows.dtype)

    def _encode_one(self, params: Params, key: jax.Array, stored: jax.Array) -> Distribution:
        key_data, *_ = jax.random.split(key, 4)  # as in `make_score`: all methods see one x
        return self.vae.encode(params, self.prepare(key_data, stored))

    def _reconstruct_one(self, params: Params, key: jax.Array, stored: jax.Array) -> jax.Array:
        _, key_center, *_ = jax.random.split(key, 4)
        z = center_of(self._encode_one(params, key, stored), key_center)
        return self._decode_one(params, key, z)

    def _decode_one(self, params: Params, key: jax.Array, z: jax.Array) -> jax.Array:
        del key
        return jnp.asarray(self.description.conversion.stored(self.vae.decode(params, z).mean()))

    def _scores(
        self, key: jax.Array | None, rows: np.ndarray, num_samples: int, progress: Progress
    ) -> Scores:
        _check_count("num_samples", num_samples)
        score = make_score(self.vae, prepare=self.prepare, num_samples=num_samples)
        found: Scores = self._map(f"score {num_samples}", score, rows, key, progress)
        return found

    @cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        return make_mesh(self.devices or jax.devices())

    @cached_property
    def _on_devices(self) -> Params:
        return replicate(self.params, self._mesh)

    @cached_property
    def _programs(self) -> dict[str, Callable[..., Any]]:
        """Mapped functions by name, kept since a new one would be compiled again."""
        return {}

    def _array(
        self, name: str, one: Callable[..., Any], rows: np.ndarray, key: jax.Array | None
    ) -> np.ndarray:
        found: np.ndarray = self._map(name, one, rows, key)
        return found

    def _map(
        self,
        name: str,
        one: Callable[..., Any],
        rows: np.ndarray,
        key: jax.Array | None,
        progress: Progress = _silent,
    ) -> Any:
        """Results of a function (params, key, row) for every row, as numpy arrays."""
        if not len(rows):
            raise ValueError("there must be at least one row, got none.")
        if isinstance(key, int | np.integer):
            raise ValueError(f"key must be a random key: jax.random.key({key}), got {key}.")
        if name not in self._programs:
            self._programs[name] = make_map(one, self._mesh)
        # Few sizes of a batch mean few programs: powers of two up to the batch size.
        fewer = min(self.batch_size, 2 ** (len(rows) - 1).bit_length())
        padded = rows if len(rows) >= fewer else np.resize(rows, (fewer, *rows.shape[1:]))
        default = jax.random.key(0, impl="threefry2x32")  # rbg depends on the batch
        found = map_dataset(
            self._programs[name],
            self._on_devices,
            replicate(default if key is None else key, self._mesh),
            padded,
            mesh=self._mesh,
            batch_size=fewer,
            progress=lambda done: progress(min(done, len(rows))),
        )
        return jax.tree.map(lambda array: array[: len(rows)], found)
