"""Find the first example, term, operation and gradient of a step that is not finite."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run.replayed_run import Step
from jaxvae.leaves import at_rows, combine, is_trained, partition
from jaxvae.testing import first_not_finite
from jaxvae.training.step import prepare_rows

TERMS = ("reconstruction", "kl", "elbo", "objective")
MOST_OPERATIONS = 3


def diagnose(step: Step) -> list[str]:
    """Describe the first number that is not finite, in lines; empty if all are finite."""
    parameters = list(_leaves_not_finite(step.params))
    if parameters:
        return [f"the parameters were not finite before this step: {', '.join(parameters)}"]
    options = step.options
    keys, examples = prepare_rows(
        options["prepare"],
        step.vae.condition,
        options.get("drop_condition", 0.0),
        step.keys,
        jax.tree.map(jnp.asarray, step.stored),
    )
    xs = examples if step.vae.condition is None else examples.x
    for i in np.flatnonzero(~_finite_rows(xs)):
        where = np.argwhere(~np.isfinite(np.asarray(xs[i])))[0].tolist()
        value = float(xs[i][tuple(where)])
        return [f"{_name(step, i)} has {value} at {where} after preprocessing"]
    scheduled = {name: of(step.number) for name, of in step.options["schedules"].items()}

    def bound(params: Any, key: jax.Array, example: Any) -> Any:
        vae, x = step.vae.of_example(example)
        decode = lambda z: vae.decode(params, z)
        return step.options["objective"](
            key,
            x,
            encode=lambda x: vae.encode(params, x),
            decode=decode,
            prior=vae.prior(params),
            **scheduled,
        )

    trained, rest = partition(step.params, is_trained)

    def of_row(row: tuple[jax.Array, jax.Array]) -> tuple[dict[str, jax.Array], Any]:
        objective = lambda trained: bound(combine(trained, rest), *row).objective
        found = bound(step.params, *row)
        finite = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), jax.grad(objective)(trained))
        return {name: getattr(found, name) for name in TERMS}, finite

    terms, finite = jax.device_get(jax.lax.map(of_row, (keys, examples)))
    whole = np.all([np.isfinite(value) for value in terms.values()], axis=0)
    whole &= np.all(jax.tree.leaves(finite), axis=0)
    bad = np.flatnonzero(~whole)
    if not len(bad):
        return []
    first = int(bad[0])
    said = ", ".join(f"{name} {values[first]:.6g}" for name, values in terms.items())
    lines = [f"{_name(step, first)}, the first of {len(bad)}: {said}"]
    gradient = jax.grad(lambda trained, *row: bound(combine(trained, rest), *row).objective)
    for found in first_not_finite(gradient, trained, keys[first], at_rows(examples, first))[
        :MOST_OPERATIONS
    ]:
        lines.append(f"  {found}")
    at_fault = [
        path for path, ok in _paths(jax.tree.map(lambda rows: rows[first], finite)) if not ok
    ]
    if at_fault:
        lines.append(f"  its gradient is not finite for {', '.join(at_fault)}")
    return lines


def _name(step: Step, row: Any) -> str:
    return f"example {step.indices[row]} of the training split (row {row} of the batch)"


def _finite_rows(array: jax.Array) -> np.ndarray:
    values = np.asarray(array)
    return np.isfinite(values).reshape(len(values), -1).all(1)


def _leaves_not_finite(tree: Any) -> Iterator[str]:
    for path, leaf in _paths(tree):
        count = int((~np.isfinite(np.asarray(leaf))).sum())
        if count:
            yield f"{path} ({count} of {np.size(leaf)})"


def _paths(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf
