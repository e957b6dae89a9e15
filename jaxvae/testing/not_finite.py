"""Search for NaN and infinity: run a function's operations one by one, and check each result."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun


class NotFinite(NamedTuple):
    """An operation whose operands were finite and whose result was not.

    Attributes:
        where: the functions and layers around the operation, outermost first, and its own name.
        what: "nan" or "inf".
        operands: smallest and largest value of each operand.
    """

    where: str
    what: str
    operands: tuple[tuple[float, float], ...]

    def __str__(self) -> str:
        ranges = ", ".join(f"[{low:.6g}, {high:.6g}]" for low, high in self.operands)
        return f"{self.where} gave {self.what} from {ranges or 'nothing'}"


def first_not_finite(function: Callable[..., Any], *arguments: Any) -> list[NotFinite]:
    """Find all operations with finite operands and a result that is not, in order of computation.

    The first is the cause, unless a later operation discards its result, as `jnp.where` can. The
    list is empty if the function's results are finite. A loop counts as one operation.

    Args:
        function: a traceable function of arrays; pass `jax.grad` of one to examine a gradient.
        arguments: pytrees of arrays.

    >>> [found] = first_not_finite(lambda x: jnp.log(x - 1) * 2, jnp.float32(0.5))
    >>> print(found)
    log gave nan from [-0.5, -0.5]
    """
    closed = jax.make_jaxpr(function)(*arguments)
    found: list[NotFinite] = []
    results = _run(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), "", found)
    return [] if all(map(_finite, results)) else found


def _run(
    jaxpr: Jaxpr, consts: Any, arguments: Any, scope: str, found: list[NotFinite]
) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        names = [scope, str(equation.source_info.name_stack), equation.primitive.name]
        where = "/".join(name for name in names if name)
        inner = _inner(equation, operands)
        if inner is not None:
            closed, operands = inner
            results = _run(closed.jaxpr, closed.consts, operands, "/".join(filter(None, names[:2])),
                           found)  # fmt: skip
        else:
            results = _results(jaxpr, equation, read)
            if all(map(_finite, operands)) and not all(map(_finite, results)):
                bad = next(result for result in results if not _finite(result))
                what = "nan" if bool(jnp.isnan(bad).any()) else "inf"
                found.append(NotFinite(where, what, tuple(_ranges(operands))))
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(jaxpr: Jaxpr, equation: Any, read: Callable[[Any], Any]) -> list[Any]:
    """Results of a single operation."""
    atoms = (atom for atom in equation.invars if not isinstance(atom, Literal))
    variables = list(dict.fromkeys(atoms))
    outputs = list(equation.outvars)
    one = jaxpr.replace(constvars=[], invars=variables, outvars=outputs, eqns=[equation])
    return list(jaxpr_as_fun(ClosedJaxpr(one, ()))(*map(read, variables)))


def _inner(equation: Any, operands: list[Any]) -> tuple[ClosedJaxpr, list[Any]] | None:
    """The function that an operation calls exactly once, and its operands; else None."""
    if equation.primitive.name == "cond":
        index, *operands = operands
        return equation.params["branches"][int(index)], operands
    if equation.primitive.name in ("scan", "while"):
        return None
    for name in ("jaxpr", "call_jaxpr"):
        inner = equation.params.get(name)
        if isinstance(inner, ClosedJaxpr):
            return inner, operands
        if isinstance(inner, Jaxpr):
            return ClosedJaxpr(inner, ()), operands
    return None


def _finite(value: Any) -> bool:
    inexact = jnp.issubdtype(jnp.result_type(value), jnp.inexact)
    return not inexact or bool(jnp.isfinite(value).all())


def _ranges(operands: list[Any]) -> Iterator[tuple[float, float]]:
    for operand in operands:
        if jnp.issubdtype(jnp.result_type(operand), jnp.inexact) and jnp.size(operand):
            yield float(jnp.min(operand)), float(jnp.max(operand))
