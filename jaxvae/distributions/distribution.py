"""The interface `Distribution`: one event, a summed log density, at least float32."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxvae.distributions.requirements import check_array


class Distribution(Protocol):
    """A distribution over one event, as returned by encoders, decoders and priors.

    An event of latents may be any pytree of arrays, such as the levels of a `Hierarchy`.
    The bounds need only `sample` and `log_prob`; `mean` is for pictures and evaluation. A class
    may also have `sample_and_log_prob(key)`, which the bounds then prefer;
    `log_prob_per_entry(value)`, which masked data need; and `reparameterized = False` if its draws
    carry no gradient.
    """

    def sample(self, key: jax.Array) -> jax.Array:
        """One draw, reparameterized where the family allows it."""
        ...

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density or log mass of `value` in nats: a scalar, summed over the event."""
        ...

    def mean(self) -> jax.Array:
        """Expectation, of the event's shape; raises `NoClosedForm` if it has no formula."""
        ...


class NoClosedForm(ValueError):
    """Raised by `mean()`, at trace time, in a family whose expectation has no formula.

    >>> raise NoClosedForm("a flow")
    Traceback (most recent call last):
    jaxvae.distributions.distribution.NoClosedForm: mean: the expectation of a flow must have a \
closed form, it has none. Use mean_of(q, key, num_samples), the mean of draws.
    """

    def __init__(self, family: str) -> None:
        super().__init__(
            f"mean: the expectation of {family} must have a closed form, it has none. Use "
            "mean_of(q, key, num_samples), the mean of draws."
        )


def at_least_float32(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Convert arrays to their widest float type, at least float32, which log densities need.

    The promotion is intended, so it also works under `jax_numpy_dtype_promotion=strict`.

    >>> [a.dtype.name for a in at_least_float32(jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.uint8))]
    ['float32', 'float32']
    """
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def check_event(value: jax.Array, event_shape: tuple[int, ...], family: str, remedy: str) -> None:
    """Check, at trace time, that a value is one event.

    Raises:
        ValueError: the shape of `value` is not that of the event.
    """
    if jnp.shape(value) != event_shape:
        raise ValueError(
            f"log_prob: value has shape {jnp.shape(value)}, this {family} has event shape "
            f"{event_shape}. {remedy}"
        )


def check_shape(family: str, name: str, leaf: jax.Array, leader: str, shape: tuple) -> None:
    """Check, at trace time, that a parameter is a scalar or needs no broadcasting.

    Raises:
        ValueError: `leaf` is neither a scalar nor of the leading parameter's shape.
    """
    if jnp.shape(leaf) not in ((), shape):
        raise ValueError(
            f"{family}: {name} must be a scalar or have {leader}'s shape {shape}, got "
            f"{jnp.shape(leaf)}. Reshape it: nothing is broadcast."
        )


def sample_and_log_prob(q: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw from q with its log density, by q's method of this name if it has one, as flows do."""
    if hasattr(q, "sample_and_log_prob"):
        return q.sample_and_log_prob(key)
    z = q.sample(key)
    return z, q.log_prob(z)


def mean_of(q: Any, key: jax.Array, num_samples: int = 64) -> Any:
    """E_q[z], of the event's shape: q's own mean, or the mean of draws if it has no formula.

    Args:
        q: any distribution.
        key: for the draws; unused with a closed form.
        num_samples: draws; the standard error is the spread of q over the root of this number.

    >>> class Square:
    ...     sample = lambda self, key: jnp.square(jax.random.normal(key))
    ...     def mean(self): raise NoClosedForm("Square")
    >>> print(f"{mean_of(Square(), jax.random.key(0), 10_000):.1f}")
    1.0
    """
    try:
        if callable(getattr(q, "mean", None)):
            return q.mean()
    except NoClosedForm:
        pass
    draws = jax.vmap(q.sample)(jax.random.split(key, num_samples))
    return jax.tree.map(lambda draws: jnp.mean(draws, axis=0), draws)


def check_summed(what: str, per_sample: jax.Array) -> None:
    """Check, at trace time, that log probabilities [K] of K events are scalars.

    Raises:
        TypeError: they are not an array.
        ValueError: they have more than one axis.
    """
    check_array(what, per_sample)
    if per_sample.ndim != 1:
        raise ValueError(
            f"{what} must be a scalar, summed over the event; for one z it has shape "
            f"{per_sample.shape[1:]}. Sum it (numpyro: Independent or .to_event(n)), and pass one "
            "example: jax.vmap adds the batch."
        )
