"""A model with any pytree as its parameters, as one whose parameters are arrays to be trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.leaves import combine, is_array, is_trained, partition, path_of
from jaxvae.models.vae import VAE, Params


class Parameters(NamedTuple):
    """What the parameters of a model are made of.

    Attributes:
        arrays: the types and shapes of its arrays, None in place of all other leaves.
        rest: those other leaves, None in place of the arrays; None where there are none.
    """

    arrays: Any
    rest: Any

    def is_stored(self) -> bool:
        """Whether a train state can hold the parameters as they are."""
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
    """A model whose `init` returns arrays alone, of a model with any pytree as its parameters.

    `init_state`, `make_train_step` and checkpoints take the result; give it to all of them, and
    use its own `encode`, `decode` and `prior`.

    * Floating point arrays are trained. bfloat16 and float16 ones are held as float32 and rounded
      where the model uses them: Adam's moments and the running average need the digits.
    * Integer and boolean arrays are held in the state and in checkpoints, and do not change.
    * All other leaves (functions, strings, Python numbers, arrays of size 0) are what `vae.init`
      makes, whatever its key. Make a number that is to be trained an array.

    A model whose parameters are float32 arrays is returned as it is.

    Args:
        vae: the model; its `init` is traced once.

    Raises:
        TypeError: a leaf that is a complex array or a key.

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
    """What `vae.init` makes: types and shapes of arrays, and all other leaves.

    Raises:
        TypeError: as `trainable`.
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
        TypeError: a leaf that is no array of real numbers, or a narrow one that is averaged.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        narrow = averaging and is_array(leaf) and _is_narrow(leaf)
        if narrow or not (is_array(leaf) or isinstance(leaf, (bool, int, float))):
            why = "which an average loses the digits of" if narrow else "which is no array"
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
            f"parameter {path_of(path)} is {_kind(leaf)}, which has no update. {remedy}."
        )


def _split(params: Params) -> tuple[Any, Any]:
    """The arrays that a train state holds, and all other leaves."""
    held = lambda leaf: is_array(leaf) and 0 not in leaf.shape  # orbax saves no array of size 0
    arrays, rest = partition(params, held)
    # An empty array may be a tracer, which must not outlive its trace; its shape is all it has.
    empty = lambda leaf: np.zeros(leaf.shape, leaf.dtype) if is_array(leaf) else leaf
    return arrays, jax.tree.map(empty, rest)


def _is_narrow(leaf: Any) -> bool:
    """Whether a leaf is of a floating point type with fewer digits than float32."""
    return is_trained(leaf) and jnp.finfo(leaf.dtype).bits < 32


def _stored_type(leaf: Any) -> Any:
    return jnp.float32 if _is_narrow(leaf) else leaf.dtype


def _kind(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    return type(leaf).__name__ if dtype is None else f"{dtype}{list(leaf.shape)}"
