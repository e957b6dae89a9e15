"""Conversion of a model with any pytree as parameters to one with arrays only."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.leaves import combine, is_array, is_trained, partition, path_of
from jaxvae.models.vae import VAE, Params


class Parameters(NamedTuple):
    """Structure of the parameters of a model.

    Attributes:
        arrays: types and shapes of its arrays, with None in place of all other leaves.
        rest: the other leaves, with None in place of the arrays; None if all leaves are arrays.
    """

    arrays: Any
    rest: Any

    def is_stored(self) -> bool:
        """True if a train state can hold the parameters as they are."""
        return self.rest is None and not any(map(_is_narrow, jax.tree.leaves(self.arrays)))

    def stored(self, params: Params) -> Any:
        """The arrays of the model's own parameters, narrow floats as float32."""
        arrays, _ = _split(params)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, _stored_type(leaf)), arrays)

    def model_own(self, stored: Any) -> Params:
        """The model's own parameters, from the arrays as a train state holds them."""
        restore = lambda of, leaf: jnp.asarray(leaf, of.dtype) if _is_narrow(of) else leaf
        return combine(jax.tree.map(restore, self.arrays, stored), self.rest)


def trainable(vae: VAE) -> VAE:
    """Convert a model with any pytree as parameters to one whose `init` returns only arrays.

    Pass the result to `init_state`, `make_train_step` and checkpoints, and use its `encode`,
    `decode` and `prior`.

    * Floating point arrays are trained. bfloat16 and float16 arrays are stored as float32 and
      rounded where the model uses them: Adam's moments and the running average need the digits.
    * Integer and boolean arrays are stored in the state and in checkpoints, and do not change.
    * All other leaves (functions, strings, Python numbers, arrays of size 0) are taken from
      `vae.init`, and must not depend on its key. To train a number, make it an array.

    A model whose parameters are float32 arrays is returned as it is.

    Args:
        vae: the model; its `init` is traced once.

    Raises:
        TypeError: a leaf is a complex array or a key.

    >>> from jaxvae import Bernoulli, Gaussian
    >>> vae = VAE(
    ...     init=lambda key: {"weight": jnp.ones((2, 8), jnp.bfloat16), "activation": jnp.tanh},
    ...     encode=lambda params, x: Gaussian(params["weight"] @ x, jnp.zeros(2)),
    ...     decode=lambda params, z: Bernoulli(params["activation"](z @ params["weight"])),
    ...     prior=lambda params: Gaussian.standard(2),
    ... )
    >>> params = trainable(vae).init(jax.random.key(0))
    >>> params["weight"].dtype.name, params["activation"]
    ('float32', None)
    """
    made = parameters_of(vae)
    if made.is_stored():
        return vae

    def of_model(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *arguments: function(made.model_own(params), *arguments)

    follow = vae.with_log_scale
    return vae._replace(
        init=lambda key: made.stored(vae.init(key)),
        encode=of_model(vae.encode),
        decode=of_model(vae.decode),
        prior=of_model(vae.prior),
        with_log_scale=follow
        and (lambda params, log_scale: made.stored(follow(made.model_own(params), log_scale))),
    )


def parameters_of(vae: VAE) -> Parameters:
    """Structure of what `vae.init` returns: types and shapes of arrays, and all other leaves.

    Raises:
        TypeError: as in `trainable`.
    """
    rest: Any = None

    def arrays_of(key: jax.Array) -> Any:
        nonlocal rest
        params = vae.init(key)
        _check(params)
        arrays, rest = _split(params)
        return arrays

    return Parameters(jax.eval_shape(arrays_of, jax.random.key(0)), rest)


def check_stored(params: Params, *, averaging: bool) -> None:
    """Reject parameters that a train state cannot hold as they are.

    Raises:
        TypeError: a leaf is not an array of real numbers, or is averaged and narrower than float32.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        narrow = averaging and is_array(leaf) and _is_narrow(leaf)
        if narrow or not (is_array(leaf) or isinstance(leaf, (bool, int, float))):
            why = "which is too narrow to average" if narrow else "which is not an array"
            raise TypeError(
                f"parameter {path_of(path)} is {_kind(leaf)}, {why}. Use "
                "vae = jaxvae.trainable(vae) everywhere."
            )
    _check(params)


def _check(params: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            remedy = "Keep jax.random.key_data(key) in the parameters, and wrap it where it is used"
        elif is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            remedy = "Make it two real arrays"
        else:
            continue
        raise TypeError(
            f"parameter {path_of(path)} is {_kind(leaf)}, which cannot be trained. {remedy}."
        )


def _split(params: Params) -> tuple[Any, Any]:
    """The arrays that a train state holds, and all other leaves."""
    held = lambda leaf: is_array(leaf) and 0 not in leaf.shape  # orbax cannot save size 0
    arrays, rest = partition(params, held)
    # An empty array may be a tracer, which must not outlive its trace: replace it by numpy zeros.
    empty = lambda leaf: np.zeros(leaf.shape, leaf.dtype) if is_array(leaf) else leaf
    return arrays, jax.tree.map(empty, rest)


def _is_narrow(leaf: Any) -> bool:
    """True for a floating point array with fewer bits than float32."""
    return is_trained(leaf) and jnp.finfo(leaf.dtype).bits < 32


def _stored_type(leaf: Any) -> Any:
    return jnp.float32 if _is_narrow(leaf) else leaf.dtype


def _kind(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    return type(leaf).__name__ if dtype is None else f"{dtype}{list(leaf.shape)}"
