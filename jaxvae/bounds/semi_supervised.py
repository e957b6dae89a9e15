"""The bound of semi-supervised learning: a label that is known for some examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.bounds.bound import Bound, Decode, Encode, Example, observe, over_draws
from jaxvae.distributions import Hierarchy, OneHotCategorical, at_least_float32
from jaxvae.divergences import kl_per_level, same_order
from jaxvae.leaves import arrays_only


class Labelled(NamedTuple):
    """An example x and its label, from 0 to C - 1; -1 where the label is not known.

    >>> Labelled(jnp.zeros(8), jnp.int32(-1)).label.item()
    -1
    """

    x: Any
    label: Any


class _Term(NamedTuple):
    """Parts of the bound for one label and one draw: nats, and the draw."""

    log_likelihood: jax.Array
    rate: jax.Array
    samples: Any


def semi_supervised(
    key: jax.Array,
    x: Labelled,
    *,
    encode: Encode,
    decode: Decode,
    prior: Hierarchy,
    num_samples: int = 1,
    classifier_weight: jax.Array | float = 1.0,
) -> Bound:
    """A bound on log p(x, y) where the label y is known, else on log p(x), in nats.

        L_y(x) = E_q(z|x,y) log p(x|y,z) - KL(q(z|x,y) || p(z|y)) + log p(y)
        label known:      L_y(x) + a log q(y|x)
        label not known:  sum_y q(y|x) (L_y(x) - log q(y|x))

    y is the first level of the latents (y, z, ...), one-hot, and z all others. The sum runs over
    all labels, so that y is never drawn and its gradient has no noise. As an objective of
    `make_train_step`, examples are `Labelled`.

    Args:
        key: consumed here; use one per example.
        x: an example with its label, or -1.
        encode: x -> q(y, z|x), a `Hierarchy` from the top whose first level, the classifier
            q(y|x), is a `OneHotCategorical`.
        decode: (y, z, ...) -> p(x|y, z).
        prior: p(y, z), a Hierarchy with as many levels; its first is p(y).
        num_samples: K draws of z for each label.
        classifier_weight: [] a: weight of log q(y|x) where the label is known, without which the
            classifier learns from the other examples alone. Kingma et al. use 0.1 times the ratio
            of all examples to those with a label.

    The `Bound` is that of one example: `elbo` is L_y or the sum, `samples` those of the label, or
    of the likeliest one, and there are no `log_weights` per label.

    Raises:
        TypeError, ValueError: q and prior are not such hierarchies, or as in `jaxvae.elbo`.

    Ref: Kingma, Rezende, Mohamed & Welling, Semi-supervised Learning with Deep Generative Models
    (M2), 2014, NeurIPS, equations 6 to 9.

    >>> from jaxvae.testing import LinearGaussian, LinearGaussianMixture
    >>> model = LinearGaussianMixture(
    ...     jnp.zeros(2), jnp.array([[3.0], [-3.0]]),
    ...     LinearGaussian(jnp.zeros((1, 1)), jnp.zeros(1), jnp.zeros(())))
    >>> bound = semi_supervised(jax.random.key(0), Labelled(jnp.ones(1), jnp.int32(-1)),
    ...     encode=model.posterior, decode=model.decode, prior=model.prior())
    >>> print(f"{bound.elbo:.4f} {model.log_prob(jnp.ones(1)):.4f}")
    -3.6096 -3.6096
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    values, label = x
    example = observe(values, encode, decode, prior, None)
    q_label, p_label = _first_levels(example)
    states = q_label.enumerate_support()
    keys = jax.random.split(key, num_samples)
    each = lambda state: over_draws(lambda key: _term(example, state, key), keys)
    # [C, K]; each label's intermediate values are computed again for the gradient.
    terms = jax.lax.map(jax.checkpoint(each), states)
    log_q, log_p = _log_masses(q_label, states), _log_masses(p_label, states)
    log_x, rate = jnp.mean(terms.log_likelihood, axis=1), jnp.mean(terms.rate, axis=1)
    log_x, rate, log_q, log_p = at_least_float32(log_x, rate, log_q, log_p)
    known = label >= 0
    q = jnp.where(known, jax.nn.one_hot(label, len(states), dtype=log_q.dtype), jnp.exp(log_q))
    # A label of probability 0 adds 0, and no NaN to value or gradient.
    log_q, log_p, log_x, rate = (jnp.where(q > 0, each, 0) for each in (log_q, log_p, log_x, rate))
    kl = q @ (rate - log_p) + jnp.where(known, 0.0, q @ log_q)
    # A label that there is not makes the bound NaN: its class would be learned by nobody.
    reconstruction = jnp.where(label < len(states), q @ log_x, jnp.nan)
    elbo = reconstruction - kl
    classified = jnp.where(known, q @ log_q, 0.0)
    shown = jnp.argmax(q)
    return Bound(
        objective=elbo + jnp.asarray(classifier_weight, elbo.dtype) * classified,
        elbo=elbo,
        reconstruction=reconstruction,
        kl=kl,
        log_weights=jnp.broadcast_to(elbo, (num_samples,)),
        kl_per_latent=None,
        samples=jax.tree.map(lambda draws: draws[shown], terms.samples),
        posterior=arrays_only(example.q),
    )


def _log_masses(p: OneHotCategorical, states: jax.Array) -> jax.Array:
    """log p of each state [C, ...]: [C]; -inf where it is 0, which p.log_prob makes NaN."""
    chosen = jnp.where(states > 0, jax.nn.log_softmax(p.logits)[None], 0)
    return jnp.sum(chosen, axis=tuple(range(1, chosen.ndim)))


def _first_levels(example: Example) -> tuple[OneHotCategorical, OneHotCategorical]:
    """q(y|x) and p(y), after checking that q and the prior are hierarchies of these."""
    q, prior = example.q, example.prior
    if not same_order(q, prior) or not q.top_down:
        raise ValueError(
            "semi_supervised: encode(x) and prior must be Hierarchies from the top with equally "
            f"many levels, got {type(q).__name__} and {type(prior).__name__}. Make the label their "
            "first level."
        )
    first = [distribution.steps[0](distribution.params, None)[0] for distribution in (q, prior)]
    for level in first:
        if not isinstance(level, OneHotCategorical):
            raise ValueError(
                "semi_supervised: the first level must be a OneHotCategorical of the label, got "
                f"{type(level).__name__}."
            )
    return first[0], first[1]


def _term(example: Example, state: jax.Array, key: jax.Array) -> _Term:
    """The parts of L_y for one y, a one-hot state, at a draw of all levels below."""
    q, keys = example.q, jax.random.split(key, len(example.q.steps))

    def choose(level: int, p: Any) -> Any:
        if level and not getattr(p, "reparameterized", True):
            raise ValueError(
                f"semi_supervised: draws of level {level + 1}, {type(p).__name__}, carry no "
                "gradient. Make the label the only level without one, or use elbo and 'score'."
            )
        return p.sample(keys[level]) if level else state

    z = q.walk(choose)
    levels = kl_per_level(q, example.prior, z)[1:]
    rate = sum((jnp.sum(level) for level in levels), jnp.zeros(()))
    return _Term(example.log_likelihood(z), rate, z)
