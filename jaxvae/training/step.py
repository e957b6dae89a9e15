"""One training step as a pure function: bound, gradient, update, metrics."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxvae.bounds import Bound, elbo, posterior_samples
from jaxvae.cpu.row_product import is_explicit
from jaxvae.distributions import Gaussian, NoClosedForm
from jaxvae.leaves import arrays_only, combine, is_trained, partition
from jaxvae.models.vae import VAE, Params
from jaxvae.regularizers import Regularizer, gathered
from jaxvae.training.batch_parts import (
    check_microbatch_size,
    mean_over_microbatches,
    mean_over_shards,
)
from jaxvae.training.state import TrainState, check_state

ACTIVE_VARIANCE = 0.01
"""A latent is active when its posterior mean varies by more than this over the data."""
MIN_VARIANCE = 1e-6
"""Floor of an optimal sigma^2, in the unit of the data that the model sees squared."""

Metrics = dict[str, jax.Array]
Objective = Callable[..., Bound]
"""(key, x, *, encode, decode, prior) -> Bound: `jaxvae.elbo` and its kin."""
Prepare = Callable[[jax.Array, jax.Array], jax.Array]
"""(key, one example as it is stored) -> x: scaling, binarization, dequantization."""


def make_train_step(
    vae: VAE,
    optimizer: optax.GradientTransformation,
    *,
    objective: Objective = elbo,
    schedules: Mapping[str, optax.Schedule] = MappingProxyType({}),
    regularizer: Regularizer | None = None,
    prepare: Prepare = lambda key, x: x,
    average_decay: float | None = None,
    microbatch_size: int | None = None,
    virtual_shards: int | None = None,
    axis_name: str | None = None,
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, Metrics]]:
    """A pure function (state, keys [B], examples [B, ...]) -> (state, metrics).

    It maximises the mean of the objective over the batch, less the regularizer's penalty, and
    over `axis_name` where one is bound: the local loss is differentiated first and the gradients
    averaged then, so that every device takes the same step. A step whose loss or gradient is
    not finite changes nothing but the counters. Each key is split into one for
    `prepare`, one for the bound and one for the regularizer, which has that of the first row.

    Args:
        vae: the model.
        optimizer: any optax transformation; clipping and micro-batches are optax's.
        objective: `jaxvae.elbo`, or partial(jaxvae.iwae, num_samples=...), or your own.
        schedules: keyword of the objective -> what it is at a step: {"beta": optax.linear_schedule(
            0.0, 1.0, 1000)}, and likewise capacity, alpha, ...: any that may be traced.
        regularizer: a penalty (`jaxvae.regularizers`) on the posteriors and the first draws of
            the global batch, which every device gathers; what it carries is updated after them.
        prepare: (key, stored example) -> x.
        average_decay: decay of the running average, below 1; None: no average. It starts as
            (1 + step) / (10 + step) while that is smaller.
        microbatch_size: examples whose gradient is computed at once, one block after another; it
            divides the batch. For batches whose intermediate values outgrow a cache or a memory.
            None: the whole batch. A regularizer needs it whole.
        virtual_shards: parts of the global batch whose gradients are added up in a fixed order,
            whichever device computes them: then the step is the same bit for bit on every number
            of devices that divides it, of one backend and one release of jax. Every device holds
            that many gradients. In place of `microbatch_size`; not with a regularizer.
        axis_name: of the mapped axis to average over; None: this batch is the whole one.

    The metrics are scalars, means over the global batch in nats: objective, elbo,
    reconstruction, kl, gradient_norm; active_units where q has a mean in closed form; whatever has
    a schedule; and the counts skipped and skipped_in_row after the step. With a regularizer
    `objective` is what is maximised, the penalty taken off; `regularizer` is the penalty; and
    `elbo` stays the ELBO.

    Raises:
        ValueError: microbatch_size or virtual_shards with a regularizer, or with each other; and
            when first called, if the state has an average or a regularizer's state and the step
            none, or the other way round, if the batch is empty, or if microbatch_size or
            virtual_shards does not divide it.

    >>> from jaxvae import init_state, mlp_vae
    >>> vae, optimizer = mlp_vae(data_shape=(8,), latent_dim=2, hidden=()), optax.adam(1e-3)
    >>> state = init_state(vae, optimizer, jax.random.key(0))
    >>> train_step = jax.jit(make_train_step(vae, optimizer))
    >>> state, metrics = train_step(state, jax.random.split(jax.random.key(1), 4), jnp.ones((4, 8)))
    >>> int(state.step), int(metrics["skipped"])
    (1, 0)
    """

    parts = {"microbatch_size": microbatch_size, "virtual_shards": virtual_shards}
    given = [f"{name}={value}" for name, value in parts.items() if value is not None]
    if given and regularizer is not None:
        raise ValueError(
            f"a regularizer needs the whole batch at once, got {' and '.join(given)}. Use None."
        )
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other. Give one of them.")

    def over_devices(tree: Any) -> Any:
        alone = axis_name is None or jax.lax.axis_size(axis_name) == 1
        return tree if alone else jax.lax.pmean(tree, axis_name)

    def with_sigma(params: Params, error: jax.Array) -> Params:
        if vae.with_log_scale is None:
            return params
        return vae.with_log_scale(params, _log_scale(error))

    def prepared(key: jax.Array, stored: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        key_data, key_bound, key_batch = jax.random.split(key, 3)
        return key_bound, prepare(key_data, stored), key_batch

    def over_shards(function: Callable[..., Any], stored: tuple[jax.Array, jax.Array]) -> Any:
        def of_shard(keys: jax.Array, examples: jax.Array) -> Any:
            keys, xs, _ = jax.vmap(prepared)(keys, examples)
            return function(keys, xs)

        assert virtual_shards is not None
        return mean_over_shards(of_shard, virtual_shards, axis_name, *stored)

    def loss(
        trained: Params,
        carried_params: Params,
        keys: jax.Array,
        xs: jax.Array,
        scheduled: dict[str, Any],
        key: Any,
        carried: Any,
    ) -> tuple[jax.Array, tuple[Bound, jax.Array | None, Any, jax.Array]]:
        params = combine(trained, carried_params)

        def bound_of(key: jax.Array, x: jax.Array) -> tuple[Bound, jax.Array | None, Any]:
            q, prior = vae.encode(params, x), vae.prior(params)
            decode = lambda z: vae.decode(params, z)
            encode = lambda seen: q if seen is x else vae.encode(params, seen)
            bound = objective(key, x, encode=encode, decode=decode, prior=prior, **scheduled)
            return bound, _mean_if_known(q), None if regularizer is None else arrays_only(q)

        bounds, means, q = jax.vmap(bound_of)(keys, xs)
        batch, penalty = (q, bounds.samples[:, 0]), jnp.zeros(())
        if regularizer is not None:
            _check_draws(q)
            q, z = batch = gathered(batch, axis_name)
            penalty = regularizer.penalty(carried, key, q, z, vae.prior(params))
        return penalty - bounds.objective.mean(), (bounds, means, batch, penalty)

    def train_step(
        state: TrainState, keys: jax.Array, examples: jax.Array
    ) -> tuple[TrainState, Metrics]:
        check_state(state, average_decay, regularizer)
        _check_placed(state, examples)
        check_microbatch_size(microbatch_size, len(examples))
        stored = keys, examples
        with jax.named_scope("prepare"):
            keys, xs, keys_batch = jax.vmap(prepared)(keys, examples)
        if len(examples) == 0:
            raise ValueError("a batch must have at least one example, got none.")
        with jax.numpy_dtype_promotion("standard"):  # as for optax's updates
            scheduled = {name: jnp.asarray(of(state.step)) for name, of in schedules.items()}
        error = jnp.zeros(())
        if vae.with_log_scale is not None and virtual_shards is None:
            error = over_devices(_squared_error(vae, state.params, keys, xs))
        elif vae.with_log_scale is not None:
            error = over_shards(lambda *rows: _squared_error(vae, state.params, *rows), stored)
        trained, carried_params = partition(with_sigma(state.params, error), is_trained)
        key_penalty: Any = None
        if regularizer is not None:
            key_penalty, key_update = jax.random.split(gathered(keys_batch[:1], axis_name)[0])

        def gradient(keys: jax.Array, xs: jax.Array) -> tuple[tuple[Any, Any, Any], Any, jax.Array]:
            gradients, (bounds, means, batch, penalty) = jax.grad(loss, has_aux=True)(
                trained, carried_params, keys, xs, scheduled, key_penalty, state.regularizer
            )
            moments = () if means is None else (means.mean(0), jnp.square(means).mean(0))
            return (gradients, _batch_means(bounds), moments), batch, penalty

        if virtual_shards is not None:
            averages = over_shards(lambda *rows: gradient(*rows)[0], stored)
        elif microbatch_size is None or microbatch_size == len(xs):
            local, batch, penalty = gradient(keys, xs)
            averages = over_devices(local)
        else:
            local = mean_over_microbatches(
                lambda *block: gradient(*block)[0], microbatch_size, keys, xs
            )
            averages = over_devices(local)
        gradients, metrics, moments = averages
        metrics |= scheduled | {"gradient_norm": optax.tree.norm(gradients)}
        if moments:
            metrics["active_units"] = active_units(*moments)
        if regularizer is not None:
            metrics |= {"objective": metrics["objective"] - penalty, "regularizer": penalty}
        carried = state.regularizer
        if regularizer is not None and regularizer.update is not None:
            carried, more = regularizer.update(state.regularizer, key_update, *batch)
            metrics |= more

        def moved(state: TrainState) -> TrainState:
            trained, rest = partition(with_sigma(state.params, error), is_trained)
            # optax multiplies its integer counts with floats, which strict promotion rejects.
            with jax.named_scope("update"), jax.numpy_dtype_promotion("standard"):
                updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
                params = combine(optax.apply_updates(trained, updates), rest)
            new = state._replace(params=params, opt_state=opt_state, regularizer=carried)
            with jax.named_scope("average"):
                new = _with_running_values(vae, new, error, average_decay)
            # In x64 the error, and sigma with it, may be wider than the parameters.
            return jax.tree.map(lambda new, old: new.astype(old.dtype), new, state)

        sound = jnp.isfinite(metrics["objective"] + metrics["gradient_norm"])
        return _if_sound(sound & _all_finite(carried), moved, state, metrics)

    return train_step


def _check_placed(state: TrainState, examples: jax.Array) -> None:
    """Reject a state that is not on the mesh of the batch, at trace time: jax cannot mix them."""
    if is_explicit(examples) and not is_explicit(state.step):
        raise ValueError(
            "the batch is sharded over Explicit axes of a mesh, and the state is not on that mesh. "
            "Place it: jax.device_put(state, NamedSharding(mesh, PartitionSpec()))."
        )


def _check_draws(q: Any) -> None:
    """Refuse draws whose penalty would have no gradient, at trace time."""
    if not getattr(q, "reparameterized", True):
        raise ValueError(
            f"a regularizer needs draws that carry a gradient, those of {type(q).__name__} do not. "
            "Use a reparameterized posterior, or train without it."
        )


def _mean_if_known(q: Any) -> jax.Array | None:
    if not callable(getattr(q, "mean", None)):
        return None
    try:
        return q.mean()
    except NoClosedForm:
        return None


def _squared_error(vae: VAE, params: Params, keys: jax.Array, xs: jax.Array) -> jax.Array:
    """Mean squared error per dimension of a batch, at the first draw that the bound makes.

        1/D sum_d ((x_d - f_d(z)) / unit_d)^2

    The unit is the scale of p(x|z) at log sigma = 0: 1, or that of `jaxvae.in_units`.
    """
    assert vae.with_log_scale is not None
    at_unit = vae.with_log_scale(params, jnp.zeros((), xs.dtype))

    def of_one(key: jax.Array, x: jax.Array) -> jax.Array:
        z, _ = posterior_samples(key, vae.encode(params, x), 1)
        errors = jax.vmap(lambda z: _error(vae.decode(at_unit, z), x))(z)  # as the bound: merged
        return jnp.square(errors[0]).mean()

    return jax.vmap(of_one)(keys, xs).mean()


def _error(p: Any, x: jax.Array) -> jax.Array:
    """x less the mean of p, over the scale of each entry where p, a Gaussian, has one."""
    error = x - p.mean()
    if not isinstance(p, Gaussian) or jnp.ndim(p.log_scale) == 0:  # 1: the data's own unit
        return error
    return error * jnp.exp(-jnp.broadcast_to(p.log_scale, error.shape))


def _log_scale(squared_error: jax.Array) -> jax.Array:
    """log sigma of the sigma^2 that maximises the likelihood of this squared error."""
    return 0.5 * jnp.log(jnp.maximum(squared_error, MIN_VARIANCE))


def _with_running_values(
    vae: VAE, state: TrainState, error: jax.Array, average_decay: float | None
) -> TrainState:
    """The state with its running squared error (so sigma) and its parameter average moved on."""
    params, average = state.params, state.average
    rate = jnp.maximum(1 / (state.step - state.skipped + 1), 0.01)
    squared_error = state.squared_error + rate * (error - state.squared_error)
    if vae.with_log_scale is not None:
        params = vae.with_log_scale(params, _log_scale(squared_error))
    if average_decay is not None:
        decay = jnp.minimum(average_decay, (1 + state.step) / (10 + state.step))
        trained, rest = partition(params, is_trained)
        averaged, _ = partition(average, is_trained)
        average = combine(optax.incremental_update(trained, averaged, 1 - decay), rest)
        if vae.with_log_scale is not None:
            average = vae.with_log_scale(average, _log_scale(squared_error))
    return state._replace(params=params, average=average, squared_error=squared_error)


def _if_sound(
    sound: jax.Array, moved: Callable[[TrainState], TrainState], old: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """The state moved on where all is finite, else the old one; the counters in either case.

    A branch, on CPUs: a choice element by element makes XLA copy the old state first. On GPUs a
    branch would wait for the host, and the choice costs nothing.
    """

    def branch(sound: jax.Array, old: TrainState) -> TrainState:
        return jax.lax.cond(sound, moved, lambda old: old, old)

    def choice(sound: jax.Array, old: TrainState) -> TrainState:
        return jax.tree.map(lambda new, old: jnp.where(sound, new, old), moved(old), old)

    kept = jax.lax.platform_dependent(sound, old, cpu=branch, default=choice)
    skipped = 1 - sound.astype(jnp.int32)
    new = kept._replace(
        step=old.step + 1,
        skipped=old.skipped + skipped,
        skipped_in_row=(old.skipped_in_row + skipped) * skipped,
    )
    counts = {"skipped": new.skipped, "skipped_in_row": new.skipped_in_row}
    return new, metrics | counts


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def active_units(first_moment: jax.Array, second_moment: jax.Array) -> jax.Array:
    """Number of latents whose posterior mean varies over the data by more than 0.01: [].

        A_z = Var_x(E_q[z|x]) > 0.01

    Args:
        first_moment: [Z] mean over the data of the posterior mean; [Z, C] of one-hot latents,
            which are active when one of their entries is.
        second_moment: of the same shape, mean over the data of its square.

    Ref: Burda, Grosse & Salakhutdinov 2016, section 5.2.

    >>> int(active_units(jnp.zeros(3), jnp.array([1.0, 0.02, 0.001])))
    2
    """
    active = second_moment - jnp.square(first_moment) > ACTIVE_VARIANCE
    return jnp.sum(jnp.any(active.reshape(len(active), -1), axis=1))


def _batch_means(bounds: Bound) -> Metrics:
    names = ("objective", "elbo", "reconstruction", "kl")
    return {name: getattr(bounds, name).mean() for name in names}
