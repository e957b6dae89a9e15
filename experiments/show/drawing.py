"""Samples, reconstructions, interpolations and traversals of a model: arrays and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset
from experiments.machine.keys import root_key
from experiments.show import pictures
from jaxvae.distributions import VonMisesFisher, flattened
from jaxvae.evaluation import center_of
from jaxvae.models.vae import VAE, Params
from jaxvae.preprocessing import Preprocessing

MOST_COLUMNS = 16
"""Columns of vectors up to which each has a scale of its own in pictures."""
DECODED_AT_ONCE = 50
"""Latents that are decoded in one call: one compiled program then serves pictures of any number."""


class Drawing(NamedTuple):
    """Outputs of a model, as numpy arrays in the units of x; decoded ones are means of p(x|z).

    Attributes:
        samples: [N, ...] decoded from z ~ p(z).
        originals, reconstructions: [M, ...] examples, and decoded from the mean of q(z|x).
        interpolations: [R, S, ...] decoded along lines between pairs of posterior means.
        traversals: [L, S, ...] of the first example, one latent changed per row.
        latents: [L] indices of those latents; the one that varies most over the examples is first.
        values: [S] values that each of them is set to.
    """

    samples: np.ndarray
    originals: np.ndarray
    reconstructions: np.ndarray
    interpolations: np.ndarray
    traversals: np.ndarray
    latents: np.ndarray
    values: np.ndarray


def make_decoder(vae: VAE, params: Params) -> Callable[[Any], np.ndarray]:
    """Make the function latents [N, ...] -> means of p(x|z) [N, *data_shape], for any N >= 1."""
    decode = jax.jit(lambda params, z: jax.vmap(lambda z: vae.decode(params, z).mean())(z))

    def decode_rows(latents: Any) -> np.ndarray:
        z = np.asarray(latents)
        padded = np.pad(z, ((0, -len(z) % DECODED_AT_ONCE), *[(0, 0)] * (z.ndim - 1)), "edge")
        blocks = padded.reshape(-1, DECODED_AT_ONCE, *z.shape[1:])
        return np.concatenate([np.asarray(decode(params, block)) for block in blocks])[: len(z)]

    return decode_rows


def draw(
    vae: VAE,
    params: Params,
    xs: np.ndarray,
    key: jax.Array,
    *,
    decode: Callable[[Any], np.ndarray] | None = None,
    num_samples: int = 100,
    num_shown: int = 20,
    num_steps: int = 11,
    num_latents: int = 10,
) -> Drawing:
    """Compute samples, reconstructions, interpolations and traversals of a model.

    Args:
        vae, params: the model and its parameters.
        xs: [M, *data_shape] prepared examples. The latents are ranked by their variance over all
            of them; the first `num_shown` are drawn.
        key: random key.
        decode: the model's decoder, from `make_decoder`; None: make one.
        num_samples: N.
        num_shown: number of examples to reconstruct, and to interpolate between in pairs.
        num_steps: S.
        num_latents: largest number of traversals.
    """
    decode = make_decoder(vae, params) if decode is None else decode
    key_samples, key_means = jax.random.split(key)
    from_prior = jax.jit(jax.vmap(lambda key: vae.prior(params).sample(key)))
    z_prior = from_prior(jax.random.split(key_samples, num_samples))
    # A feature map is a vector here, until it is decoded.
    center = jax.jit(jax.vmap(lambda key, x: center_of(flattened(vae.encode(params, x)), key)))
    z = center(jax.random.split(key_means, len(xs)), xs)
    on_sphere = isinstance(flattened(vae.encode(params, jnp.asarray(xs[0]))), VonMisesFisher)
    spread = np.var(z, axis=0).reshape(z.shape[1], -1).sum(1)
    latents = np.argsort(-spread, kind="stable")[:num_latents]
    z = z[:num_shown]
    along = jnp.linspace(0, 1, num_steps).reshape(1, -1, *[1] * (z.ndim - 1))
    ends = (z[1::2] if len(z) > 1 else z)[:, None]
    starts = z[::2][: len(ends), None]
    paths = starts + along * (ends - starts)
    values, moved = _traversals(z[0], latents, num_steps, on_sphere)

    def decode_rows(rows: jax.Array) -> np.ndarray:
        flat = decode(rows.reshape(-1, *z_prior.shape[1:]))
        return flat.reshape(*rows.shape[: rows.ndim - z.ndim + 1], *flat.shape[1:])

    return Drawing(
        samples=decode(z_prior),
        originals=np.asarray(xs[:num_shown]),
        reconstructions=decode_rows(z),
        interpolations=decode_rows(to_sphere(paths) if on_sphere else paths),
        traversals=decode_rows(moved),
        latents=latents,
        values=values,
    )


def _traversals(
    z: jax.Array, latents: np.ndarray, num_steps: int, on_sphere: bool
) -> tuple[np.ndarray, jax.Array]:
    """Values that each latent of z is set to, and z with these values: [S] and [L, S, *z.shape].

    The values go from -3 to 3; on the sphere from -0.95 to 0.95, with the other coordinates scaled
    to unit norm; one-hot latents take each category in turn.
    """
    values = np.linspace(-3, 3, num_steps)
    if z.ndim == 2:
        values = np.arange(z.shape[1], dtype=float)
        at_rest = jnp.tile(z[None], (len(values), 1, 1))
        states = jnp.eye(z.shape[1], dtype=z.dtype)
        return values, jnp.stack([at_rest.at[:, i].set(states) for i in latents])
    if not on_sphere:
        at_rest = jnp.tile(z[None], (num_steps, 1))
        return values, jnp.stack([at_rest.at[:, i].set(values.astype(z.dtype)) for i in latents])
    values = np.linspace(-0.95, 0.95, num_steps)
    others = [to_sphere(z.at[i].set(0.0))[None] for i in latents]
    shrunk = [jnp.sqrt(1 - values**2)[:, None] * other for other in others]
    return values, jnp.stack([r.at[:, i].set(values) for i, r in zip(latents, shrunk, strict=True)])


def to_sphere(z: Any) -> jax.Array:
    """Scale latents [..., Z] to unit norm."""
    return z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)


def write_pictures(drawing: Drawing, folder: Path) -> None:
    """Write samples.png, reconstructions.png, interpolations.png and traversals.png."""
    folder.mkdir(parents=True, exist_ok=True)
    limits, note = _limits(drawing.originals)
    shown: dict[str, Any] = {
        "samples": pictures.grid(drawing.samples, limits=limits),
        "reconstructions": pictures.reconstructions(
            drawing.originals, drawing.reconstructions, limits=limits
        ),
        "interpolations": pictures.interpolations(drawing.interpolations, limits=limits),
        "traversals": pictures.traversals(
            drawing.traversals, drawing.latents.tolist(), drawing.values.tolist(), limits=limits
        ),
    }
    for name, picture in shown.items():
        noted = pictures.noted(picture, note) if note else picture
        pictures.save_png(folder / f"{name}.png", noted)


def _limits(examples: np.ndarray) -> tuple[tuple[Any, Any], str]:
    """Limits of a drawing, and a line that explains them.

    The columns of vectors may have any unit, so each is drawn between its own least and largest.
    """
    if examples.ndim != 2:
        return (float(examples.min()), float(examples.max())), ""
    lo, hi = examples.min(0), examples.max(0)
    if len(lo) > MOST_COLUMNS:
        lo, hi = float(lo.min()), float(hi.max())
        scale = f"upwards from {lo:.3g} to {hi:.3g}"
    else:
        scale = "each upwards from its least to its largest value in the data: " + "; ".join(
            f"x[{i}] {low:.3g} to {high:.3g}"
            for i, (low, high) in enumerate(zip(lo, hi, strict=True))
        )
    return (lo, hi), f"Across: columns x[0] to x[{examples.shape[1] - 1}], {scale}."


def prepared_head(dataset: Dataset, preprocessing: Preprocessing, most: int = 1000) -> np.ndarray:
    """Prepare the first examples of the test split, or else of training: [M, *data_shape]."""
    return prepared(preprocessing, (dataset.test if len(dataset.test) else dataset.train)[:most])


def prepared(preprocessing: Preprocessing, head: np.ndarray) -> np.ndarray:
    """Prepare examples [M, ...] as stored, always with the same keys."""
    keys = jax.random.split(root_key(0), len(head))
    return np.asarray(jax.jit(jax.vmap(preprocessing.prepare))(keys, head))
