"""What a trained model makes, as arrays and as pictures."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import pictures
from experiments.datasets import Dataset
from experiments.datasets.preprocessing import Preprocessing
from jaxvae.vae import VAE, Params


class Drawing(NamedTuple):
    """What a model makes, as numpy arrays in the units of x; means of p(x|z) throughout.

    Attributes:
        samples: [N, ...] from z ~ p(z).
        originals, reconstructions: [M, ...], z the mean of q(z|x).
        interpolations: [R, S, ...] along straight lines between pairs of posterior means.
        traversals: [L, S, ...] of the first example, one latent moved per row.
        latents: [L] those latents, the one that varies most over the examples first.
        values: [S] what they are set to.
    """

    samples: np.ndarray
    originals: np.ndarray
    reconstructions: np.ndarray
    interpolations: np.ndarray
    traversals: np.ndarray
    latents: np.ndarray
    values: np.ndarray


def draw(
    vae: VAE,
    params: Params,
    xs: np.ndarray,
    key: jax.Array,
    *,
    num_samples: int = 100,
    num_shown: int = 20,
    num_steps: int = 11,
    num_latents: int = 10,
) -> Drawing:
    """Samples, reconstructions, interpolations and traversals of a model.

    Args:
        vae, params: the model.
        xs: [M, *data_shape] prepared examples; all say which latents vary, the first are shown.
        key: of the samples.
        num_samples: N.
        num_shown: examples to reconstruct and to interpolate between, in pairs.
        num_steps: S.
        num_latents: most rows of traversals.
    """
    decode = jax.jit(jax.vmap(lambda z: vae.decode(params, z).mean()))
    encode = jax.jit(jax.vmap(lambda x: vae.encode(params, x).mean()))
    z_prior = jax.vmap(vae.prior(params).sample)(jax.random.split(key, num_samples))
    z = encode(xs)
    latents = np.argsort(-np.var(z, axis=0), kind="stable")[:num_latents]
    z = z[:num_shown]
    along = jnp.linspace(0, 1, num_steps)[None, :, None]
    ends = (z[1::2] if len(z) > 1 else z)[:, None]
    starts = z[::2][: len(ends), None]
    values = np.linspace(-3, 3, num_steps)
    at_rest = jnp.tile(z[0][None], (num_steps, 1))

    def decode_rows(rows: jax.Array) -> np.ndarray:
        flat = np.asarray(decode(rows.reshape(-1, rows.shape[-1])))
        return flat.reshape(*rows.shape[:-1], *flat.shape[1:])

    return Drawing(
        samples=decode_rows(z_prior),
        originals=np.asarray(xs[:num_shown]),
        reconstructions=decode_rows(z),
        interpolations=decode_rows(starts + along * (ends - starts)),
        traversals=decode_rows(jnp.stack([at_rest.at[:, i].set(values) for i in latents])),
        latents=latents,
        values=values,
    )


def write_pictures(drawing: Drawing, folder: Path) -> None:
    """`samples.png`, `reconstructions.png`, `interpolations.png`, `traversals.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    limits = (float(drawing.originals.min()), float(drawing.originals.max()))
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
        pictures.save_png(folder / f"{name}.png", picture)


def prepared_head(dataset: Dataset, preprocessing: Preprocessing, most: int = 1000) -> np.ndarray:
    """The first test examples (training examples where there are none), as x [M, *data_shape]."""
    head = (dataset.test if len(dataset.test) else dataset.train)[:most]
    keys = jax.random.split(jax.random.key(0), len(head))
    return np.asarray(jax.jit(jax.vmap(preprocessing.prepare))(keys, head))
