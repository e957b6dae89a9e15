"""Samples, reconstructions, interpolations and traversals of a model: arrays and pictures."""

import math
from collections.abc import Callable, Sequence
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
from jaxvae.leaves import at_rows, count_rows
from jaxvae.models.condition import Conditioned
from jaxvae.models.vae import VAE, Params
from jaxvae.preprocessing import Preprocessing

MOST_COLUMNS = 16
"""Columns of vectors up to which each has a scale of its own in pictures."""
MOST_CLASSES, MOST_OF_CLASS = 50, 10
"""Most categories in the picture of samples, and most samples of each."""
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
        classes: [N] names of the samples' categories; None for a model without.
    """

    samples: np.ndarray
    originals: np.ndarray
    reconstructions: np.ndarray
    interpolations: np.ndarray
    traversals: np.ndarray
    latents: np.ndarray
    values: np.ndarray
    classes: list[str] | None = None


def make_decoder(vae: VAE, params: Params) -> Callable[..., np.ndarray]:
    """Make the function that decodes latents [N, ...] to means of p(x|z) [N, *data_shape], N >= 1.

    A conditional model also takes the conditions [N], or none for a model without.
    """
    of_one = lambda params, z, y: vae.given(y).decode(params, z).mean()
    decode = jax.jit(jax.vmap(of_one, in_axes=(None, 0, 0)))

    def decode_rows(latents: Any, conditions: Any = None) -> np.ndarray:
        rows = (np.asarray(latents), conditions)
        count = len(rows[0])
        index = np.minimum(np.arange(-(-count // DECODED_AT_ONCE) * DECODED_AT_ONCE), count - 1)
        blocks = index.reshape(-1, DECODED_AT_ONCE)
        return np.concatenate(
            [np.asarray(decode(params, *at_rows(rows, block))) for block in blocks]
        )[:count]

    return decode_rows


def conditions_of(examples: Any) -> Any:
    """Conditions [N] of examples; None if they have none."""
    return examples.y if isinstance(examples, Conditioned) else None


def draw(
    vae: VAE,
    params: Params,
    examples: Any,
    key: jax.Array,
    *,
    decode: Callable[..., np.ndarray] | None = None,
    categories: Sequence[str] | None = None,
    num_samples: int = 100,
    num_shown: int = 20,
    num_steps: int = 11,
    num_latents: int = 10,
) -> Drawing:
    """Compute samples, reconstructions, interpolations and traversals of a model.

    Args:
        vae, params: the model and its parameters.
        examples: [M, *data_shape] prepared examples, of a conditional model with their conditions.
            The latents are ranked by their variance over all of them; the first `num_shown` are
            drawn.
        key: random key.
        decode: the model's decoder, from `make_decoder`; None: make one.
        categories: names of the labels of a conditional model: each gets equally many samples.
        num_samples: N; of a conditional model the largest multiple of its categories below it.
        num_shown: number of examples to reconstruct, and to interpolate between in pairs.
        num_steps: S.
        num_latents: largest number of traversals.
    """
    decode = make_decoder(vae, params) if decode is None else decode
    key_samples, key_means = jax.random.split(key)
    classes = _sampled_classes(categories, num_samples)
    from_prior = jax.jit(jax.vmap(lambda key, y: vae.given(y).prior(params).sample(key)))
    count = num_samples if classes is None else len(classes)
    z_prior = from_prior(jax.random.split(key_samples, count), classes)

    def posterior(example: Any) -> Any:
        given, x = vae.of_example(example)
        return flattened(given.encode(params, x))  # a feature map is a vector until it is decoded

    center = jax.jit(jax.vmap(lambda key, example: center_of(posterior(example), key)))
    z = center(jax.random.split(key_means, count_rows(examples)), examples)
    on_sphere = isinstance(
        posterior(jax.tree.map(jnp.asarray, at_rows(examples, 0))), VonMisesFisher
    )
    spread = np.var(z, axis=0).reshape(z.shape[1], -1).sum(1)
    latents = np.argsort(-spread, kind="stable")[:num_latents]
    z, ys = z[:num_shown], conditions_of(at_rows(examples, slice(num_shown)))
    along = jnp.linspace(0, 1, num_steps).reshape(1, -1, *[1] * (z.ndim - 1))
    ends = (z[1::2] if len(z) > 1 else z)[:, None]
    starts = z[::2][: len(ends), None]
    paths = starts + along * (ends - starts)
    values, moved = _traversals(z[0], latents, num_steps, on_sphere)

    def decode_rows(rows: jax.Array, first: Any) -> np.ndarray:
        leading = rows.shape[: rows.ndim - z.ndim + 1]
        # The steps of a row have the condition of its first example.
        each = None if first is None else np.repeat(first, math.prod(leading) // len(first))
        flat = decode(rows.reshape(-1, *z_prior.shape[1:]), each)
        return flat.reshape(*leading, *flat.shape[1:])

    return Drawing(
        samples=decode(z_prior, classes),
        originals=np.asarray(vae.of_example(at_rows(examples, slice(num_shown)))[1]),
        reconstructions=decode_rows(z, ys),
        interpolations=decode_rows(
            to_sphere(paths) if on_sphere else paths, None if ys is None else ys[::2][: len(ends)]
        ),
        traversals=decode_rows(moved, None if ys is None else ys[:1]),
        latents=latents,
        values=values,
        classes=None if categories is None or classes is None else [categories[i] for i in classes],
    )


def _sampled_classes(categories: Sequence[str] | None, num_samples: int) -> np.ndarray | None:
    """Categories of the samples, equally many of each; None for a model without."""
    if categories is None:
        return None
    shown = np.arange(min(len(categories), num_samples), dtype=np.int32)
    return np.repeat(shown, num_samples // len(shown))


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
        "samples": _samples(drawing, limits),
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


def _samples(drawing: Drawing, limits: pictures.Limits) -> np.ndarray:
    """Picture of the samples; of a conditional model a row of up to ten for each category."""
    if drawing.classes is None:
        return pictures.grid(drawing.samples, limits=limits)
    names = list(dict.fromkeys(drawing.classes))[:MOST_CLASSES]
    each = len(drawing.classes) // len(set(drawing.classes))
    rows = drawing.samples.reshape(-1, each, *drawing.samples.shape[1:])
    return pictures.by_class(rows[: len(names), :MOST_OF_CLASS], names, limits=limits)


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


def shown_split(dataset: Dataset) -> str:
    """Name of the split whose examples are drawn: test, or train if that has none."""
    return "test" if len(dataset.test) else "train"


def prepared_head(examples: Any, preprocessing: Preprocessing, most: int = 1000) -> Any:
    """Prepare the first examples: [M, *data_shape]; conditions stay as they are."""
    return prepared(preprocessing, at_rows(examples, slice(most)))


def prepared(preprocessing: Preprocessing, head: Any) -> Any:
    """Prepare examples [M, ...] as stored, always with the same keys."""
    if isinstance(head, Conditioned):
        return Conditioned(prepared(preprocessing, head.x), head.y)
    keys = jax.random.split(root_key(0), len(head))
    return np.asarray(jax.jit(jax.vmap(preprocessing.prepare))(keys, head))
