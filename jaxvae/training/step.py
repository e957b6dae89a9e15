"""One training step as a pure function.

Its parts are: prepare, optimal sigma, value and gradient, mean over the batch, update, guard.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import all_leaves

from jaxvae.bounds import Bound, elbo
from jaxvae.cpu.row_product import is_explicit
from jaxvae.distributions import NoClosedForm, flattened, flattened_draw
from jaxvae.leaves import combine, count_rows, is_trained, partition
from jaxvae.models.condition import Conditioned
from jaxvae.models.vae import VAE, Params
from jaxvae.regularizers import Regularizer, gathered
from jaxvae.training.guard import Metrics, all_finite, guard
from jaxvae.training.reduction import Reduction, make_reduction
from jaxvae.training.sigma import running_error, squared_error, with_optimal_sigma
from jaxvae.training.state import TrainState, check_state

ACTIVE_VARIANCE = 0.01
"""Variance over the data of a latent's posterior mean above which the latent is active."""

Objective = Callable[..., Bound]
"""(key, x, *, encode, decode, prior) -> Bound: `jaxvae.elbo` or another bound."""
Prepare = Callable[[jax.Array, Any], Any]
"""(key, one stored example) -> x: scaling, binarization, dequantization."""


class Penalized(NamedTuple):
    """A penalty [], and the posteriors [B] and first draws [B, Z] that it was computed from."""

    penalty: jax.Array
    posteriors: Any
    draws: jax.Array


def make_train_step(
    vae: VAE,
    optimizer: optax.GradientTransformation,
    *,
    objective: Objective = elbo,
    schedules: Mapping[str, optax.Schedule] = MappingProxyType({}),
    regularizer: Regularizer | None = None,
    prepare: Prepare = lambda key, x: x,
    drop_condition: float = 0.0,
    average_decay: float | None = None,
    microbatch_size: int | None = None,
    virtual_shards: int | None = None,
    axis_name: str | None = None,
) -> Callable[[TrainState, jax.Array, Any], tuple[TrainState, Metrics]]:
    """Make a pure training step (state, keys [B], examples [B, ...]) -> (state, metrics).

    Examples may be any pytree of arrays [B, ...].

    It maximises the mean of the objective over the batch, minus the regularizer's penalty. If
    `axis_name` is given, each device differentiates its local loss, and the gradients are averaged
    over that axis, so that every device takes the same step. A step whose loss, gradient norm or
    new regularizer state is not finite is skipped: it changes only the counters step, skipped and
    skipped_in_row. Each key is split into one for `prepare`, one for the bound and one for the
    regularizer, which uses that of the first row.

    Args:
        vae: the model.
        optimizer: any optax transformation; use optax for clipping and gradient accumulation.
        objective: `jaxvae.elbo`, or partial(jaxvae.iwae, num_samples=...), or your own.
        schedules: keyword of the objective -> its schedule over steps: {"beta":
            optax.linear_schedule(0.0, 1.0, 1000)}, and likewise capacity, alpha, ...: any keyword
            that may be traced.
        regularizer: a penalty (`jaxvae.regularizers`) on the posteriors and the first draws of
            the global batch, which every device gathers; its state is updated after the penalty.
        prepare: (key, stored example) -> x; of a `Conditioned` example, its x alone.
        drop_condition: probability that a condition is replaced by `vae.condition.absent()`, so
            that a conditional model learns p(x) too.
        average_decay: decay of the running average, below 1; None: no average. The decay is
            (1 + step) / (10 + step) while that is smaller.
        microbatch_size: number of examples whose gradient is computed at once; it must divide the
            batch. Use it for batches whose intermediate values exceed a cache or the memory.
            None: the whole batch, which a regularizer needs.
        virtual_shards: number of equal parts of the global batch, whose gradients are added in a
            fixed order. The step is then bit-for-bit the same on any number of devices that divides
            virtual_shards, with one backend and one release of jax. Each device holds the gradients
            of all parts. Not with `microbatch_size` or a regularizer.
        axis_name: name of the mapped axis to average over; None: this batch is the global one.

    The metrics are scalars, means over the global batch in nats: objective, elbo, reconstruction,
    kl, gradient_norm; kl_1, ..., kl_L of the levels of a hierarchy; active_units if q has a mean in
    closed form; each scheduled keyword; and the
    counts skipped and skipped_in_row after the step. With a regularizer, `objective` is the
    maximised value, after subtracting the penalty; `regularizer` is the penalty; and `elbo` is
    still the ELBO.

    Raises:
        ValueError: microbatch_size or virtual_shards is combined with a regularizer, or with each
            other. At the first call: the state and the step differ in having an average or a
            regularizer; the batch is empty; microbatch_size or virtual_shards does not divide it;
            or it is sharded over Explicit axes of a mesh, and the state is not on that mesh or
            microbatch_size or virtual_shards is given.

    >>> from jaxvae import init_state, mlp_vae
    >>> vae, optimizer = mlp_vae(data_shape=(8,), latent_dim=2, hidden=()), optax.adam(1e-3)
    >>> state = init_state(vae, optimizer, jax.random.key(0))
    >>> train_step = jax.jit(make_train_step(vae, optimizer))
    >>> state, metrics = train_step(state, jax.random.split(jax.random.key(1), 4), jnp.ones((4, 8)))
    >>> int(state.step), int(metrics["skipped"])
    (1, 0)
    """
    reduction = make_reduction(
        partial(prepare_rows, prepare, vae.condition, drop_condition),
        microbatch_size,
        virtual_shards,
        regularizer,
        axis_name,
    )
    penalize = partial(_penalize, regularizer, axis_name)

    def train_step(state: TrainState, keys: jax.Array, examples: Any) -> tuple[TrainState, Metrics]:
        check_state(state, average_decay, regularizer)
        _check_batch(state, examples)
        with jax.numpy_dtype_promotion("standard"):  # as for optax's updates
            scheduled = {name: jnp.asarray(of(state.step)) for name, of in schedules.items()}

        rows = reduction.prepare_batch(keys, examples)
        batch_error = _batch_error(vae, state.params, reduction, rows)
        params = with_optimal_sigma(vae, state.params, batch_error)
        key_penalty, key_update = _keys_of_batch(keys, regularizer, axis_name)

        def value_and_gradient(keys: jax.Array, stored: Any) -> tuple[Any, Any]:
            keys, xs = reduction.prepare_part(keys, stored)
            bounds_of = partial(_bounds, vae, partial(objective, **scheduled), keys, xs)
            penalty = partial(penalize, state.regularizer, key_penalty)
            gradients, (bounds, means, kept) = _gradient(bounds_of, penalty, params)
            return (gradients, _batch_means(bounds), _moments(means)), kept

        (gradients, metrics, moments), penalized = reduction.mean(value_and_gradient, *rows)
        metrics |= scheduled | {"gradient_norm": optax.tree.norm(gradients)}
        if moments:
            metrics["active_units"] = sum(jax.tree.leaves(jax.tree.map(active_units, *moments)))
        carried = state.regularizer
        if regularizer is not None:
            carried, more = _after_penalty(regularizer, carried, key_update, penalized, metrics)
            metrics |= more

        def update(state: TrainState) -> TrainState:
            new = _updated(vae, optimizer, state, params, gradients, batch_error)
            new = _averaged(vae, new, average_decay)._replace(regularizer=carried)
            # In x64 the error, and sigma with it, may be wider than the parameters.
            return jax.tree.map(_of_type, new, state)

        is_finite = jnp.isfinite(metrics["objective"] + metrics["gradient_norm"])
        return guard(is_finite & all_finite(carried), update, state, metrics)

    return train_step


def _of_type(new: jax.Array, old: jax.Array) -> jax.Array:
    return new if new.dtype == old.dtype else new.astype(old.dtype)  # a typed key has no astype


def _check_batch(state: TrainState, examples: Any) -> None:
    """Reject, at trace time, an empty batch and a state that is not on the mesh of the batch."""
    if count_rows(examples) == 0:
        raise ValueError("a batch must have at least one example, got none.")
    any_explicit = any(map(is_explicit, jax.tree.leaves(examples)))
    if any_explicit and not is_explicit(state.step):  # which jax cannot mix
        raise ValueError(
            "the batch is sharded over Explicit axes of a mesh, and the state is not on that mesh. "
            "Place it: jax.device_put(state, NamedSharding(mesh, PartitionSpec()))."
        )


def prepare_rows(
    prepare: Prepare, condition: Any, drop_rate: float, keys: jax.Array, stored: Any
) -> tuple[jax.Array, Any]:
    """Keys [B] of the bounds, and the examples [B, ...] as a step prepares them.

    Args:
        prepare: (key, stored example) -> x.
        condition: `VAE.condition`.
        drop_rate: share of the examples that lose their condition.
        keys: [B] keys of the step's rows.
        stored: [B, ...] examples as stored.
    """

    def of_one(key: jax.Array, stored: Any) -> tuple[jax.Array, Any]:
        key_data, key_bound, _ = jax.random.split(key, 3)
        if not isinstance(stored, Conditioned):
            return key_bound, prepare(key_data, stored)
        x, y = prepare(key_data, stored.x), stored.y
        if condition is not None and drop_rate > 0:
            drop = jax.random.bernoulli(jax.random.fold_in(key_data, 1), drop_rate)
            y = condition.without(drop, y)
        return key_bound, Conditioned(x, y)

    with jax.named_scope("prepare"):
        return jax.vmap(of_one)(keys, stored)


def _batch_error(
    vae: VAE, params: Params, reduction: Reduction, rows: tuple[Any, ...]
) -> jax.Array:
    """The squared error of the batch that an optimal sigma is computed from; else 0: []."""
    if vae.with_log_scale is None:
        return jnp.zeros(())
    of_rows = lambda *rows: (squared_error(vae, params, *reduction.prepare_part(*rows)), None)
    return reduction.mean(of_rows, *rows)[0]


def _keys_of_batch(
    keys: jax.Array, regularizer: Regularizer | None, axis_name: str | None
) -> tuple[Any, Any]:
    """Keys of the penalty and of its update, from the first row, so the same on every device."""
    if regularizer is None:
        return None, None
    _, _, key_batch = jax.random.split(keys[0], 3)
    key_penalty, key_update = jax.random.split(gathered(key_batch[None], axis_name)[0])
    return key_penalty, key_update


def _bounds(
    vae: VAE, objective: Objective, keys: jax.Array, xs: Any, params: Params
) -> tuple[Bound, Any, Any]:
    """Bounds of a batch [B, ...], the means of their posteriors [B, ...] or None, and the prior."""

    def of_one(key: jax.Array, example: Any) -> tuple[Bound, Any]:
        given, x = vae.of_example(example)
        encode, decode = partial(given.encode, params), partial(given.decode, params)
        bound = objective(key, x, encode=encode, decode=decode, prior=given.prior(params))
        return bound, _mean_if_known(bound.posterior)

    return *jax.vmap(of_one)(keys, xs), vae.prior(params) if vae.condition is None else None


def _mean_if_known(q: Any) -> Any:
    if not callable(getattr(q, "mean", None)):
        return None
    try:
        return q.mean()
    except (NoClosedForm, NotImplementedError):  # the latter of other libraries
        return None


def _gradient(
    bounds_of: Callable[[Params], tuple[Bound, Any, Any]],
    penalize: Callable[[Bound, Any], Any],
    params: Params,
) -> tuple[Params, tuple[Bound, Any, Any]]:
    """Gradient of penalty - mean(objective), and (bounds, posterior means, penalty's result)."""
    trained, rest = partition(params, is_trained)

    def loss(trained: Params) -> tuple[jax.Array, tuple[Bound, Any, Any]]:
        bounds, means, prior = bounds_of(combine(trained, rest))
        kept = penalize(bounds, prior)
        value = -bounds.objective.mean()
        return (value if kept is None else kept[0] + value), (bounds, means, kept)

    return jax.grad(loss, has_aux=True)(trained)


def _penalize(
    regularizer: Regularizer | None,
    axis_name: str | None,
    carried: Any,
    key: Any,
    bounds: Bound,
    prior: Any,
) -> Penalized | None:
    """Penalty, posteriors and first draws of the global batch; None without a regularizer."""
    if regularizer is None:
        return None
    if prior is None:
        raise ValueError(
            "a regularizer compares the posteriors with one prior, but a conditional model has one "
            "for each condition. Train without a regularizer."
        )
    if bounds.posterior is None:
        raise ValueError(
            "a regularizer needs the posteriors, but the objective's Bound has none. Let `encode` "
            "return a pytree, and let your own objective set `posterior` of its Bound."
        )
    if not getattr(bounds.posterior, "reparameterized", True):
        raise ValueError(
            "a regularizer needs draws that carry a gradient, but those of "
            f"{type(bounds.posterior).__name__} do not. Use a reparameterized posterior, or train "
            "without a regularizer."
        )
    if not all_leaves([bounds.samples]):
        raise ValueError(
            f"a regularizer compares one array of latents with the prior, but those of "
            f"{type(bounds.posterior).__name__} are a tree. Train without a regularizer."
        )
    z = jax.vmap(flattened_draw)(bounds.posterior, bounds.samples[:, 0])
    q, z = gathered((jax.vmap(flattened)(bounds.posterior), z), axis_name)
    return Penalized(regularizer.penalty(carried, key, q, z, flattened(prior)), q, z)


def _after_penalty(
    regularizer: Regularizer,
    carried: Any,
    key: jax.Array,
    penalized: Penalized,
    metrics: Metrics,
) -> tuple[Any, Metrics]:
    """New state of the regularizer, and its metrics."""
    penalty, *batch = penalized
    added = {"objective": metrics["objective"] - penalty, "regularizer": penalty}
    if regularizer.update is None:
        return carried, added
    carried, more = regularizer.update(carried, key, *batch)
    return carried, added | more


def _batch_means(bounds: Bound) -> Metrics:
    names = ("objective", "elbo", "reconstruction", "kl")
    means = {name: getattr(bounds, name).mean() for name in names}
    return means | {name: kl.mean() for name, kl in kl_of_levels(bounds.kl_per_latent).items()}


def kl_of_levels(kl_per_latent: Any) -> dict[str, jax.Array]:
    """kl_1, ..., kl_L: the KL [N] of each level of N hierarchies; {} for other latents.

    Args:
        kl_per_latent: that of N bounds.

    >>> kl_of_levels((jnp.ones((1, 3)), jnp.ones(1)))["kl_1"].tolist()
    [3.0]
    """
    levels = kl_per_latent if isinstance(kl_per_latent, tuple) else ()
    return {f"kl_{i + 1}": kl.reshape(len(kl), -1).sum(1) for i, kl in enumerate(levels)}


def _moments(means: Any) -> tuple[Any, ...]:
    """Means over the batch of the posterior mean and of its square; () if it is unknown."""
    if means is None:
        return ()
    mean_of = lambda function: jax.tree.map(lambda leaf: function(leaf).mean(0), means)
    return mean_of(lambda mean: mean), mean_of(jnp.square)


def active_units(first_moment: jax.Array, second_moment: jax.Array) -> jax.Array:
    """Number of latents whose posterior mean varies over the data by more than 0.01: [].

        A_z = Var_x(E_q[z|x]) > 0.01

    Args:
        first_moment: [Z] mean over the data of the posterior mean, or [h, w, c]; with a last axis
            [C] for one-hot latents, which are active if any of their entries is.
        second_moment: mean over the data of its square, of the same shape.

    Ref: Burda, Grosse & Salakhutdinov 2016, section 5.2.

    >>> int(active_units(jnp.zeros(3), jnp.array([1.0, 0.02, 0.001])))
    2
    """
    active = second_moment - jnp.square(first_moment) > ACTIVE_VARIANCE
    one_hot = active.ndim % 2 == 0
    return jnp.sum(jnp.any(active, axis=-1) if one_hot else active)


def _updated(
    vae: VAE,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    params: Params,
    gradients: Params,
    error: jax.Array,
) -> TrainState:
    """State after the optimizer's step, with the running optimum of sigma."""
    trained, rest = partition(params, is_trained)
    # optax multiplies its integer counts with floats, which strict promotion rejects.
    with jax.named_scope("update"), jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = combine(optax.apply_updates(trained, updates), rest)
    running = running_error(state.squared_error, error, state.step - state.skipped)
    return state._replace(
        params=with_optimal_sigma(vae, params, running), opt_state=opt_state, squared_error=running
    )


def _averaged(vae: VAE, state: TrainState, average_decay: float | None) -> TrainState:
    """State with an updated running average of the parameters, if it has one."""
    if average_decay is None:
        return state
    with jax.named_scope("average"):
        decay = jnp.minimum(average_decay, (1 + state.step) / (10 + state.step))
        trained, rest = partition(state.params, is_trained)
        averaged, _ = partition(state.average, is_trained)
        average = combine(optax.incremental_update(trained, averaged, 1 - decay), rest)
        return state._replace(average=with_optimal_sigma(vae, average, state.squared_error))
