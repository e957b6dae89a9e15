"""Make latents.json, the float64 reference values of distributions over latents.

Gaussians of low rank: the textbook formulas, with the covariance's inverse and determinant in exact
fractions. Von Mises-Fisher: the power series of the Bessel function in 60 digits, compared with
scipy's. The rest: the textbook formula in 60 digits, or scipy. Every input is a float32 number;
unit vectors have coordinates that are powers of two, so that their products are exact.

`terms` is the sum of the absolute values of all intermediate summands: times a unit of rounding, it
bounds the error of any order of summation.

Run: python -m tests.golden.make_latents
"""

import json
from decimal import Decimal, localcontext
from fractions import Fraction
from math import lgamma, log, pi
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from tests.golden.make_golden import (
    Case,
    Matrix,
    case,
    covariance,
    determinant_and_inverse,
    float32,
    random_tril,
    solve_by_absolute_values,
)

KINDS = ("diagonal", "low rank", "full")


def random_gaussian(rng: np.random.Generator, kind: str, dim: int = 3) -> Case:
    loc = float32(rng.normal(size=dim))
    if kind == "full":
        return {"loc": loc, "scale_tril": random_tril(rng, dim)}
    log_scale = float32(0.5 * rng.normal(size=dim))
    if kind == "diagonal":
        return {"loc": loc, "log_scale": log_scale}
    return {"loc": loc, "factor": float32(rng.normal(size=(dim, 2))), "log_scale": log_scale}


def exact_covariance(gaussian: Case) -> Matrix:
    plain = covariance({k: np.asarray(v).tolist() for k, v in gaussian.items() if k != "factor"})
    rows = [[Fraction(float(entry)) for entry in row] for row in gaussian.get("factor", [])]
    for i, j in np.ndindex(len(rows), len(rows)):
        plain[i][j] += sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
    return plain


def decimal(fraction: Fraction) -> Decimal:
    return Decimal(fraction.numerator) / Decimal(fraction.denominator)


def square(inverse: Matrix, x: np.ndarray, loc: np.ndarray) -> Fraction:
    """Exact quadratic form (x - loc)^T inverse (x - loc)."""
    shift = [Fraction(float(a)) - Fraction(float(b)) for a, b in zip(x, loc, strict=True)]
    pairs = np.ndindex(len(shift), len(shift))
    return sum((shift[i] * inverse[i][j] * shift[j] for i, j in pairs), Fraction(0))


def low_rank_case(name: str, x: Any, loc: Any, factor: Any, log_scale: Any) -> Case:
    x, loc, factor, log_scale = map(float32, (x, loc, factor, log_scale))
    with localcontext(prec=60):
        gaussian = {"loc": loc, "factor": factor, "log_scale": log_scale}
        determinant, inverse = determinant_and_inverse(exact_covariance(gaussian))
        value = -(decimal(square(inverse, x, loc)) + decimal(determinant).ln()) / 2
    log_prob = float(value) - 0.5 * len(loc) * log(2 * pi)
    log_scales = np.broadcast_to(log_scale, loc.shape)
    eps = (x - loc) * np.exp(-log_scales)
    capacitance = float(decimal(determinant).ln()) / 2 - log_scales.sum()
    terms = np.sum(eps**2 / 2 + np.abs(log_scales) + log(2 * pi) / 2) + capacitance
    return case(
        name,
        x=x,
        loc=loc,
        factor=factor,
        log_scale=log_scale,
        log_prob=log_prob,
        terms=terms,
    )


def low_rank_cases(rng: np.random.Generator) -> list[Case]:
    draw = rng.normal
    return [
        low_rank_case("rank 2", draw(size=4), draw(size=4), draw(size=(4, 2)), draw(size=4)),
        low_rank_case("one scale", draw(size=5), draw(size=5), draw(size=(5, 1)), draw()),
        low_rank_case("rank above Z", draw(size=2), draw(size=2), draw(size=(2, 3)), draw(size=2)),
        low_rank_case("narrow", draw(size=6), draw(size=6), draw(size=(6, 2)), -4 + draw(size=6)),
        low_rank_case("wide", draw(size=3), [100, -100, 0], draw(size=(3, 1)), [7, -7, 7]),
    ]


def kl_case(name: str, q: Case, p: Case) -> Case:
    with localcontext(prec=60):
        cov_q, cov_p = exact_covariance(q), exact_covariance(p)
        det_q, _ = determinant_and_inverse(cov_q)
        det_p, inverse_p = determinant_and_inverse(cov_p)
        dim = len(cov_q)
        trace = sum(inverse_p[i][j] * cov_q[j][i] for i, j in np.ndindex(dim, dim))
        distance = square(inverse_p, q["loc"], p["loc"])
        value = (decimal(trace + distance - dim) + decimal(det_p / det_q).ln()) / 2
    tril_q, tril_p = (np.linalg.cholesky(np.array(c, float)) for c in (cov_q, cov_p))
    ratio = solve_by_absolute_values(tril_p, tril_q)
    shift = solve_by_absolute_values(tril_p, q["loc"] - p["loc"])
    logs = np.abs(np.log(np.diag(tril_q))) + np.abs(np.log(np.diag(tril_p)))
    terms = 0.5 * (np.sum(ratio**2) + np.sum(shift**2) + dim) + np.sum(logs)
    sides = [{k: v.tolist() for k, v in side.items()} for side in (q, p)]
    return {"name": name, "q": sides[0], "p": sides[1]} | {"kl": float(value), "terms": terms}


def kl_cases(rng: np.random.Generator) -> list[Case]:
    pairs = [(a, b) for a in KINDS for b in KINDS if "low rank" in (a, b)]
    return [
        kl_case(f"{a} from {b}", random_gaussian(rng, a), random_gaussian(rng, b))
        for a, b in pairs
        for _ in range(2)
    ]


def series(dim: int, k: Decimal) -> tuple[Decimal, Decimal]:
    """log E exp(k (cos - 1)) over the sphere in Z = dim dimensions, and its derivative by k.

    E exp(k cos) = sum_j (k^2 / 4)^j / (j! (Z/2)_j) = Gamma(v + 1) (2 / k)^v I_v(k).
    """
    quarter, term, total, slope = k * k / 4, Decimal(1), Decimal(1), Decimal(0)
    j = 0
    while j < 10 or term > total.scaleb(-55):
        j += 1
        term *= quarter / (j * (Decimal(dim) / 2 + j - 1))
        total += term
        slope += 2 * j * term
    return total.ln() - k, slope / k / total - 1


def sphere_case(dim: int, log_concentration: float, cosine: int) -> Case:
    with localcontext(prec=60):
        log_concentration = float(np.float32(log_concentration))
        k = Decimal(log_concentration).exp()
        log_mean, slope = series(dim, k)
        drop = k * (1 - cosine)
        kl = float(k * slope - log_mean)
        kl_terms = float(abs(k * slope) + abs(log_mean))
    v, concentration = dim / 2 - 1, float(k)
    by_scipy = np.log(scipy.special.ive(v, concentration)) + lgamma(v + 1)
    by_scipy -= v * log(concentration / 2)
    np.testing.assert_allclose(by_scipy, float(log_mean), rtol=1e-12, atol=1e-12)
    uniform = lgamma(dim / 2) - log(2) - dim / 2 * log(pi)
    return case(
        f"Z {dim}, log k {log_concentration:.4g}, cosine {cosine}",
        dim=dim,
        log_concentration=log_concentration,
        cosine=cosine,
        log_mean=float(log_mean),
        slope=float(slope),
        log_prob=uniform - float(drop) - float(log_mean),
        terms=abs(uniform) + float(drop) + abs(float(log_mean)),
        kl=kl,
        kl_terms=kl_terms,
    )


def sphere_cases() -> list[Case]:
    """Cases with cosines 1, 0 and -1 to loc, and k from 1e-3 to 1e5."""
    log_concentrations = [log(k) for k in (1e-3, 0.3, 1, 7, 60, 1e3)]
    cases = [
        sphere_case(dim, log_concentration, 1 - i % 3)
        for dim in (2, 3, 64)
        for i, log_concentration in enumerate(log_concentrations)
    ]
    return [*cases, *[sphere_case(dim, log(1e5), 0) for dim in (2, 64)]]


def one_hot_case(name: str, states: list[int], logits: Any, other: Any) -> Case:
    logits, other = float32(logits), float32(other)
    log_q, log_p = (scipy.special.log_softmax(side, axis=1) for side in (logits, other))
    kl = scipy.special.rel_entr(np.exp(log_q), np.exp(log_p)).sum(1)
    if not np.isfinite(kl).all():  # a probability rounds to 0: use its logarithm
        kl = np.sum(np.exp(log_q) * (log_q - log_p), 1)
    sizes = [np.abs(side) + scipy.special.logsumexp(np.abs(side)) for side in (logits, other)]
    return case(
        name,
        states=states,
        logits=logits,
        other=other,
        log_prob=log_q[np.arange(len(states)), states].sum(),
        kl_per_latent=kl,
        terms=np.sum(sizes),
    )


def one_hot_cases(rng: np.random.Generator) -> list[Case]:
    wide = [[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]]
    return [
        one_hot_case("3 of 4", [0, 3, 1], rng.normal(size=(3, 4)), rng.normal(size=(3, 4))),
        one_hot_case("1 of 2", [1], rng.normal(size=(1, 2)), rng.normal(size=(1, 2))),
        one_hot_case("extreme", [2, 2], wide, wide[::-1]),
    ]


def relaxed_case(name: str, x: Any, logits: Any, temperature: float) -> Case:
    """Density (C-1)! t^(C-1) prod_c a_c x_c^(-t-1) / (sum_c a_c x_c^(-t))^C of each row."""
    x, logits, temperature = float32(x), float32(logits), float(np.float32(temperature))
    total, terms, num_classes = Decimal(0), Decimal(0), x.shape[1]
    with localcontext(prec=60):
        t = Decimal(temperature)
        for row, logits_row in zip(x, logits, strict=True):
            logs = [Decimal(float(entry)).ln() for entry in row]
            weights = [Decimal(float(entry)) for entry in logits_row]
            sums = sum((w - t * y).exp() for w, y in zip(weights, logs, strict=True))
            parts = [w - (t + 1) * y for w, y in zip(weights, logs, strict=True)]
            parts += [-num_classes * sums.ln(), (num_classes - 1) * t.ln()]
            parts.append(Decimal(scipy.special.factorial(num_classes - 1, exact=True)).ln())
            total, terms = total + sum(parts), terms + sum(map(abs, parts))
    return case(
        name, x=x, logits=logits, temperature=temperature, log_prob=float(total), terms=float(terms)
    )


def relaxed_cases(rng: np.random.Generator) -> list[Case]:
    simplex = rng.dirichlet(np.ones(4), size=3)
    return [
        relaxed_case("t 0.5", simplex, rng.normal(size=(3, 4)), 0.5),
        relaxed_case("t 2", simplex[:1, :3], rng.normal(size=(1, 3)), 2.0),
        relaxed_case("near a corner", [[1.0, 1e-20, 1e-30]], [[3.0, 0.0, -3.0]], 0.1),
        relaxed_case("extreme logits", [[0.5, 0.5], [0.25, 0.75]], [[1e4, -1e4]] * 2, 1.0),
    ]


def mixture_case(name: str, x: Any, logits: Any, loc: Any, log_scale: Any) -> Case:
    x, logits, loc, log_scale = map(float32, (x, logits, loc, log_scale))
    each = scipy.stats.norm.logpdf(x, loc, np.exp(log_scale)).sum(1)
    log_weights = scipy.special.log_softmax(logits)
    return case(
        name,
        x=x,
        logits=logits,
        loc=loc,
        log_scale=log_scale,
        log_prob=scipy.special.logsumexp(log_weights + each),
        terms=np.max(np.abs(each)) + np.abs(logits).sum() + len(logits),
        mean=np.exp(log_weights) @ loc,
    )


def mixture_cases(rng: np.random.Generator) -> list[Case]:
    draw = rng.normal
    return [
        mixture_case("5 in 2", draw(size=2), draw(size=5), draw(size=(5, 2)), draw(size=(5, 2))),
        mixture_case("1 in 3", draw(size=3), draw(size=1), draw(size=(1, 3)), draw(size=(1, 3))),
        mixture_case("far away", [100.0], [1e4, 0.0], [[-100.0], [90.0]], [[0.0], [-2.0]]),
    ]


def make_golden() -> dict[str, list[Case]]:
    rng = np.random.default_rng(1804_00891)
    return {
        "low_rank_gaussian": low_rank_cases(rng),
        "kl": kl_cases(rng),
        "von_mises_fisher": sphere_cases(),
        "one_hot_categorical": one_hot_cases(rng),
        "relaxed_categorical": relaxed_cases(rng),
        "mixture": mixture_cases(rng),
    }


if __name__ == "__main__":
    groups = [
        f'"{name}": [\n' + ",\n".join(f"  {json.dumps(entry)}" for entry in cases) + "\n]"
        for name, cases in make_golden().items()
    ]
    path = Path(__file__).with_name("latents.json")
    path.write_text("{\n" + ",\n".join(groups) + "\n}\n")
    print(f"wrote {path}")
