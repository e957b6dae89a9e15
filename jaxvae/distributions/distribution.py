"""What every distribution here offers: one event, summed log density, float32 at least."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxvae.distributions.requirements import check_array


class Distribution(Protocol):
    """A distribution over one event, as encoders, decoders and priors return it.

    Anything with `sample` and `log_prob` serves the bounds; `mean` is for pictures and
    evaluation. A class may also offer `sample_and_log_prob(key)`, which the bounds then prefer;
    `log_prob_per_entry(value)`, which masked data need; and `reparameterized = False`, where draws
    carry no gradient.
    """

    def sample(self, key: jax.Array) -> jax.Array:
        """One draw, reparameterized where the family allows it."""
        ...

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density or log mass of `value` in nats: a scalar, summed over the event."""
        ...

    def mean(self) -> jax.Array:
        """Expectation, of the event's shape; `NoClosedForm` is raised where it has no formula."""
        ...


class NoClosedForm(ValueError):
    """What `mean()` raises, at trace time, in a family whose expectation has no formula.

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
    """The arrays in their widest float type, of 32 bits or more: log densities need no less.

    The promotion is meant, so it holds under `jax_numpy_dtype_promotion=strict` too.

    >>> [a.dtype.name for a in at_least_float32(jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.uint8))]
    ['float32', 'float32']
    """
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def check_event(value: jax.Array, event_shape: tuple[int, ...], family: str, remedy: str) -> None:
    """Refuse a value that is not one event, at trace time.

    Raises:
        ValueError: `value` has another shape than the event.
    """
    if jnp.shape(value) != event_shape:
        raise ValueError(
            f"log_prob: value has shape {jnp.shape(value)}, this {family} has event shape "
            f"{event_shape}. {remedy}"
        )


def check_shape(family: str, name: str, leaf: jax.Array, leader: str, shape: tuple) -> None:
    """Refuse a parameter that would have to be broadcast, at trace time.

    Raises:
        ValueError: `leaf` is neither a scalar nor of the leading parameter's shape.
    """
    if jnp.shape(leaf) not in ((), shape):
        raise ValueError(
            f"{family}: {name} must be a scalar or have {leader}'s shape {shape}, it has "
            f"{jnp.shape(leaf)}. Reshape it: nothing is broadcast."
        )


def sample_and_log_prob(q: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A draw of q and its log density: by q's own method where it has one, as a flow does."""
    if hasattr(q, "sample_and_log_prob"):
        return q.sample_and_log_prob(key)
    z = q.sample(key)
    return z, q.log_prob(z)


def mean_of(q: Any, key: jax.Array, num_samples: int = 64) -> jax.Array:
    """E_q[z], of the event's shape: q's own mean, or the mean of draws where it has no formula.

    Args:
        q: any distribution.
        key: for the draws; not read where there is a closed form.
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
    return jnp.mean(jax.vmap(q.sample)(jax.random.split(key, num_samples)), axis=0)


def check_summed(what: str, per_sample: jax.Array) -> None:
    """Refuse log probabilities [K] of K events that are not scalars, at trace time.

    Raises:
        TypeError: they are no array.
        ValueError: there is more than the one axis.
    """
    check_array(what, per_sample)
    if per_sample.ndim != 1:
        raise ValueError(
            f"{what} must be a scalar, summed over the event; for one z it has shape "
            f"{per_sample.shape[1:]}. Sum it (numpyro: Independent or .to_event(n)), and pass one "
            "example: jax.vmap adds the batch."
        )
