"""Adapter that gives other libraries' distributions the methods that the bounds call."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.distributions import Gaussian, NoClosedForm

KNOWN = ("numpyro", "distrax", "tensorflow_probability")
"""Packages whose distributions `Adapted.native` recognises by the names of their classes."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted:
    """A distribution of another library as a `jaxvae.Distribution`; make it with `adapt`.

    If `inner` is a pytree, as in numpyro, distrax and TFP, this is a pytree with the same leaves,
    and so passes through jit, vmap and stop_gradient.

    Args:
        inner: the adapted distribution, with all its library's methods.
    """

    inner: Any

    def sample(self, key: jax.Array) -> jax.Array:
        """One draw of `inner`."""
        return _with_key(self.inner.sample, key)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density or log mass of `value` in nats: a scalar where `inner` is one event."""
        return self.inner.log_prob(value)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A draw and its log density, by `inner`'s method of that name if it exists."""
        for name in ("sample_and_log_prob", "experimental_sample_and_log_prob"):
            if hasattr(self.inner, name):
                return _with_key(getattr(self.inner, name), key)
        z = self.sample(key)
        return z, self.log_prob(z)

    def mean(self) -> jax.Array:
        """Expectation, by `inner`'s method or property `mean`.

        Raises:
            NoClosedForm: `inner` has no mean, or does not implement it.
        """
        family = type(self.inner).__name__
        if "mean" not in dir(self.inner):  # hasattr would run a property and hide its errors
            raise NoClosedForm(family)
        try:
            mean = self.inner.mean
            return mean() if callable(mean) else mean
        except NotImplementedError as error:
            raise NoClosedForm(family) from error

    @property
    def log_prob_per_entry(self) -> Callable[[jax.Array], jax.Array]:
        """The log density of each independent entry of a value, for `mask`.

        Raises:
            AttributeError: `inner` is not an Independent (numpyro's `to_event` makes one).
        """
        base = _base_of(self.inner)
        if base is None:
            raise AttributeError(f"{type(self.inner).__name__} has no independent entries.")
        return base.log_prob

    def native(self) -> Any:
        """Return the same distribution as a class of this library, if there is one; else self.

        Independent normals over a vector become a `Gaussian`, for which `jaxvae.kl` has formulas.
        """
        if root(self.inner) not in KNOWN:  # equal names elsewhere may mean other parameters
            return self
        base = _base_of(self.inner)
        if base is not None and type(base).__name__ == "Normal":
            gaussian = _gaussian(base.loc, base.scale)
            dimensions = getattr(self.inner, "reinterpreted_batch_ndims", None)
            return gaussian if dimensions == gaussian.loc.ndim == 1 else self
        if type(self.inner).__name__ == "MultivariateNormalDiag":
            return _gaussian(self.inner.mean(), self.inner.stddev())
        return self

    def kl_to(self, other: Any) -> jax.Array | None:
        """KL(self || other) by the formula of their own library; None without one.

        Args:
            other: `inner` of another adapted distribution.
        """
        if root(self.inner) != root(other):
            return None
        try:
            if hasattr(self.inner, "kl_divergence"):  # distrax and TFP
                return jnp.asarray(self.inner.kl_divergence(other))
            if root(self.inner) != "numpyro":
                return None
            divergence = importlib.import_module("numpyro.distributions").kl_divergence
            return jnp.asarray(divergence(self.inner, other))
        except NotImplementedError:
            return None

    @property
    def reparameterized(self) -> bool:
        """True if draws carry gradients: as `inner` declares, else if they are floating point."""
        if hasattr(self.inner, "has_rsample"):
            return bool(self.inner.has_rsample)
        if hasattr(self.inner, "reparameterization_type"):
            return "FULLY" in repr(self.inner.reparameterization_type)
        draw = jax.eval_shape(self.sample, jax.random.key(0))
        return jnp.issubdtype(draw.dtype, jnp.floating)


def adapt(distribution: Any) -> Adapted:
    """Adapt a numpyro, distrax or TFP distribution, or a similar one, to this library's methods.

    The signatures of its methods decide how they are called, when a function is traced; no library
    is imported. The key is passed as `seed=` where `sample` has that argument (distrax, TFP), else
    as the first argument (numpyro). `mean` may be a method or a property. `jaxvae.kl` has closed
    forms for adapted independent normals, against this library's Gaussians too, and where the other
    library has one.

    * One object is one event: numpyro `Normal(loc, scale).to_event(1)`, distrax and TFP
      `Independent(Normal(loc, scale), 1)`. The bounds reject a log_prob that is not a scalar.
    * log_prob is computed in the type of the parameters: make them float32, not bfloat16.
    * numpyro's batch_shape ignores the axis that vmap adds to the leaves: take one row of a batch
      with another vmap.
    * distrax and TFP promote ranks: `jax_numpy_rank_promotion` must not be "raise". distrax's
      MultivariateNormalDiag cannot leave the jit in which it was built; its Independent can.
    * Estimators that need gradients of draws are rejected where the library declares that its draws
      carry none; for a numpyro posterior that is not adapted the bounds cannot see that. distrax
      declares nothing: there, integer draws are rejected, but a mixture is not.

    Args:
        distribution: an object with `log_prob` and `sample`; a pytree, to pass transformations.

    Raises:
        TypeError: `log_prob` is missing, or `sample` is missing or needs more than a key.

    >>> from numpyro.distributions import Normal
    >>> q = adapt(Normal(jnp.zeros(3), 1.0).to_event(1))
    >>> q.mean().shape, q.sample(jax.random.key(0)).shape, q.log_prob(q.mean()).shape
    ((3,), (3,), ())
    """
    sample = getattr(distribution, "sample", None)
    if not callable(getattr(distribution, "log_prob", None)) or not _takes_a_key(sample):
        raise TypeError(
            "adapt: a distribution must have log_prob(value) and sample(key) or sample(seed=key), "
            f"but {type(distribution).__name__} lacks one of them. Pass an instance with both."
        )
    return Adapted(distribution)


def root(distribution: Any) -> str:
    """Name of the package that defines a distribution."""
    return type(distribution).__module__.partition(".")[0]


def _base_of(distribution: Any) -> Any:
    """The base of an Independent of numpyro, distrax or TFP; None for another distribution."""
    if type(distribution).__name__ not in ("Independent", "DistraxIndependent"):
        return None
    named = (getattr(distribution, name, None) for name in ("base_dist", "distribution"))
    return next((base for base in named if base is not None), None)


def _gaussian(loc: jax.Array, scale: jax.Array) -> Gaussian:
    shape = jnp.broadcast_shapes(jnp.shape(loc), jnp.shape(scale))
    loc, scale = (jnp.broadcast_to(jnp.asarray(leaf), shape) for leaf in (loc, scale))
    return Gaussian(loc, jnp.log(scale))


def _with_key(method: Callable[..., Any], key: jax.Array) -> Any:
    return method(seed=key) if _takes_seed(method) else method(key)


def _takes_seed(method: Callable[..., Any]) -> bool:
    return "seed" in inspect.signature(method).parameters


def _takes_a_key(method: Any) -> bool:
    """True if a call needs nothing but a key, by name or position."""
    try:
        signature = inspect.signature(method)
        if _takes_seed(method):
            signature.bind(seed=None)
        else:
            signature.bind(None)
    except TypeError:
        return False
    return True
