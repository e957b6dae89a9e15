"""Distributions over a chain of latents, each given those that are drawn before it."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxvae.distributions.distribution import NoClosedForm, sample_and_log_prob
from jaxvae.leaves import is_array

Step = Callable[[Any, Any], tuple[Any, Callable[[Any], Any]]]
"""(params, carry) -> the distribution of a level, and a function from its draw to the next carry.

The first level gets None as its carry."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hierarchy:
    """A distribution over a chain of latents z = (z_1, ..., z_L), the top level first.

        p(z) = p_1(z_1) p_2(z_2 | z_1) ... p_L(z_L | z_1, ..., z_(L-1))

    Priors and posteriors are both Hierarchies. If they draw the levels in the same order, the KL of
    a bound is the sum over levels of the KL of both conditionals given the draws above, which
    varies less than its sampled value.

    Args:
        params: any pytree of arrays with every number that the steps read: parameters, features.
            The gradient of estimators such as "dreg" is wrong for a number that is not in here.
        steps: for each level a function of the module, not one that encloses arrays:
            (params, carry) -> (distribution of the level's latents, advance), where advance maps
            the draw to the carry of the next level. The first carry is None. In a Markov chain
            advance is `lambda z: z`; in a network it may add z to features and go on from there.
        top_down: True: z_1 is drawn first. False: z_L is, and each level given those below.
        reparameterized: False if the draws of any level carry no gradient.

    Raises:
        ValueError: a step encloses arrays.

    Ref: Sonderby et al., Ladder Variational Autoencoders, 2016, NeurIPS; Child, Very Deep VAEs,
    2021, ICLR.

    >>> import jax.numpy as jnp
    >>> from jaxvae.distributions import Gaussian
    >>> def top(params, carry):
    ...     return Gaussian.standard(2), lambda z: z
    >>> def bottom(params, z):
    ...     return Gaussian(params["weight"] @ z, jnp.array(0.0)), lambda z: z
    >>> prior = Hierarchy({"weight": jnp.ones((3, 2))}, (top, bottom))
    >>> [z.shape for z in prior.sample(jax.random.key(0))]
    [(2,), (3,)]
    """

    params: Any
    steps: tuple[Step, ...] = field(metadata={"static": True})
    top_down: bool = field(default=True, metadata={"static": True})
    reparameterized: bool = field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        for step in self.steps:
            if _encloses_arrays(step):
                raise ValueError(
                    f"Hierarchy: {getattr(step, '__name__', 'a step')} encloses arrays, whose "
                    "gradient estimators such as 'dreg' would get wrong. Pass them in params."
                )

    def walk(self, choose: Callable[[int, Any], Any]) -> tuple[Any, ...]:
        """Go through the levels in the order of drawing, and return the latents, top first.

        Args:
            choose: (index of the level, its distribution) -> its latents.
        """
        found: dict[int, Any] = {}
        carry = None
        for level in self._order():
            p, advance = self.steps[level](self.params, carry)
            found[level] = choose(level, p)
            carry = advance(found[level])
        return tuple(found[level] for level in range(len(self.steps)))

    def levels(self, z: tuple[Any, ...]) -> tuple[Any, ...]:
        """The distributions of all levels, top first, each given the latents of z before it.

        Raises:
            ValueError: z is not a tuple of as many latents as there are levels.
        """
        if not isinstance(z, tuple | list) or len(z) != len(self.steps):
            got = f"{len(z)} entries" if isinstance(z, tuple | list) else f"a {type(z).__name__}"
            raise ValueError(
                f"Hierarchy: a value must be a tuple of the latents of {len(self.steps)} levels, "
                f"got {got}. Give them top first."
            )
        found: dict[int, Any] = {}

        def note(level: int, p: Any) -> Any:
            found[level] = p
            return z[level]

        self.walk(note)
        return tuple(found[level] for level in range(len(self.steps)))

    def sample(self, key: jax.Array) -> tuple[Any, ...]:
        """One draw: a tuple of the latents of each level, top first."""
        return self.sample_and_log_prob(key)[0]

    def sample_and_log_prob(self, key: jax.Array) -> tuple[tuple[Any, ...], jax.Array]:
        """One draw and its log density [] in nats.

        Raises:
            ValueError: a level's draws carry no gradient, but `reparameterized` is True.
        """
        keys = jax.random.split(key, len(self.steps))
        terms = []

        def draw(level: int, p: Any) -> Any:
            if self.reparameterized and not getattr(p, "reparameterized", True):
                raise ValueError(
                    f"Hierarchy: draws of level {level + 1}, {type(p).__name__}, carry no "
                    "gradient. Give reparameterized=False."
                )
            z, log_prob = sample_and_log_prob(p, keys[level])
            terms.append(log_prob)
            return z

        return self.walk(draw), sum(terms[1:], terms[0])

    def log_prob(self, value: tuple[Any, ...]) -> jax.Array:
        """Log density of a tuple of latents, top first: a scalar in nats."""
        terms = [p.log_prob(z) for p, z in zip(self.levels(value), value, strict=True)]
        return sum(terms[1:], terms[0])

    def mean(self) -> tuple[Any, ...]:
        """Has no formula.

        Raises:
            NoClosedForm: always.
        """
        raise NoClosedForm("a Hierarchy")

    def _order(self) -> Iterator[int]:
        levels = range(len(self.steps))
        return iter(levels if self.top_down else reversed(levels))


def _encloses_arrays(function: Any) -> bool:
    """True if a function holds arrays that are not among its arguments."""
    if isinstance(function, functools.partial):
        given = (function.args, function.keywords)
        return _has_array(given) or _encloses_arrays(function.func)
    held = [_content(cell) for cell in getattr(function, "__closure__", None) or ()]
    bound = getattr(function, "__self__", None)  # of a method
    return _has_array((held, getattr(function, "__defaults__", None), bound))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is defined later
        return None


def _has_array(tree: Any) -> bool:
    return any(isinstance(leaf, jax.Array) or is_array(leaf) for leaf in jax.tree.leaves(tree))
