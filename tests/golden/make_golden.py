"""Make golden.json, the float64 reference values of densities and divergences.

Densities come from scipy. Divergences come from the textbook formula, with inverses and
determinants in exact fractions and 60-digit logarithms, so that nothing here shares a method
with jaxvae. Every input is a float32 number, so that float32 tests have the same inputs.

`terms` is the sum of the absolute values of all intermediate summands: times a unit of rounding, it
bounds the error of any order of summation.

Run: python -m tests.golden.make_golden
"""

import json
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
import scipy.stats

HALF_LOG_TWO_PI = 0.5 * np.log(2 * np.pi)
Case = dict[str, Any]


def float32(values: Any) -> np.ndarray:
    """Round `values` to float32, stored as float64."""
    return np.asarray(values, np.float32).astype(np.float64)


def case(name: str, **entries: Any) -> Case:
    return {"name": name} | {k: np.asarray(v).tolist() for k, v in entries.items()}


def solve_by_absolute_values(tril: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Forward substitution with every term made positive: M(L)^-1 |right|.

    Times a unit of rounding it bounds the error of the signed one (Higham, Accuracy and Stability,
    2002, chapter 8).
    """
    comparison = np.diag(np.abs(np.diag(tril))) - np.abs(np.tril(tril, -1))
    return scipy.linalg.solve_triangular(comparison, np.abs(right), lower=True)


def random_tril(rng: np.random.Generator, dim: int) -> np.ndarray:
    below = 0.5 * np.tril(rng.normal(size=(dim, dim)), -1)
    return float32(below + np.diag(np.exp(0.5 * rng.normal(size=dim))))


def gaussian_case(name: str, x: Any, loc: Any, log_scale: Any) -> Case:
    x, loc, log_scale = float32(x), float32(loc), float32(log_scale)
    log_prob = scipy.stats.norm.logpdf(x, loc, np.exp(log_scale)).sum()
    eps = (x - loc) * np.exp(-log_scale)
    terms = np.sum(0.5 * eps**2 + np.abs(log_scale) + HALF_LOG_TWO_PI)
    return case(name, x=x, loc=loc, log_scale=log_scale, log_prob=log_prob, terms=terms)


def gaussian_cases(rng: np.random.Generator) -> list[Case]:
    draw = rng.normal
    cases = [
        gaussian_case("vector", draw(size=5), draw(size=5), draw(size=5)),
        gaussian_case("vector, one scale", draw(size=5), draw(size=5), draw()),
        gaussian_case("image", draw(size=(2, 3, 1)), draw(size=(2, 3, 1)), draw(size=(2, 3, 1))),
        gaussian_case("image, one scale", draw(size=(2, 3, 1)), draw(size=(2, 3, 1)), draw()),
    ]
    corners = [(x, loc, s) for s in (-20, 20) for loc in (-100, 100) for x in (0, loc)]
    return cases + [gaussian_case(f"corner {c}", *[[v] for v in c]) for c in corners]


def full_gaussian_case(rng: np.random.Generator, dim: int) -> Case:
    x, loc, tril = (
        float32(rng.normal(size=dim)),
        float32(rng.normal(size=dim)),
        random_tril(rng, dim),
    )
    log_prob = scipy.stats.multivariate_normal.logpdf(x, loc, tril @ tril.T)
    eps = solve_by_absolute_values(tril, x - loc)
    terms = np.sum(0.5 * eps**2 + np.abs(np.log(np.diag(tril))) + HALF_LOG_TWO_PI)
    return case(f"dim {dim}", x=x, loc=loc, scale_tril=tril, log_prob=log_prob, terms=terms)


def bernoulli_case(name: str, x: Any, logits: Any) -> Case:
    x, logits = float32(x), float32(logits)
    log_prob = np.where(x == 1, scipy.special.log_expit(logits), scipy.special.log_expit(-logits))
    if np.abs(logits).max() < 4:  # beyond, scipy's Bernoulli of probabilities loses digits
        by_probability = scipy.stats.bernoulli.logpmf(x, scipy.special.expit(logits))
        np.testing.assert_allclose(by_probability, log_prob, rtol=1e-14)
    terms = np.sum(np.abs(x * logits) + np.logaddexp(0, logits))
    gradient = x - scipy.special.expit(logits)
    return case(name, x=x, logits=logits, log_prob=log_prob.sum(), gradient=gradient, terms=terms)


def bernoulli_cases(rng: np.random.Generator) -> list[Case]:
    image, vector = (2, 3, 1), (5,)
    cases = [
        bernoulli_case("image", rng.integers(2, size=image), rng.uniform(-3, 3, size=image)),
        bernoulli_case("vector", rng.integers(2, size=vector), rng.uniform(-3, 3, size=vector)),
    ]
    edges = [(x, logit) for logit in (-1e4, -90, -20, 0, 20, 90, 1e4) for x in (0, 1)]
    return cases + [bernoulli_case(f"edge {e}", [e[0]], [e[1]]) for e in edges]


Matrix = list[list[Fraction]]


def determinant_and_inverse(matrix: Matrix) -> tuple[Fraction, Matrix]:
    """Gauss-Jordan elimination in exact fractions, for a positive definite matrix."""
    dim = len(matrix)
    rows = [row + [Fraction(int(i == j)) for j in range(dim)] for i, row in enumerate(matrix)]
    determinant = Fraction(1)
    for i in range(dim):
        pivot = rows[i][i]
        determinant *= pivot
        rows[i] = [entry / pivot for entry in rows[i]]
        for k in set(range(dim)) - {i}:
            rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i], strict=True)]
    return determinant, [row[dim:] for row in rows]


def covariance(gaussian: Case) -> Matrix:
    """Sigma: L L^T, exact, or diag(exp(2 log_scale)), to 60 digits."""
    dim = len(gaussian["loc"])
    if "scale_tril" in gaussian:
        tril = [[Fraction(entry) for entry in row] for row in gaussian["scale_tril"]]
        return [[sum(a * b for a, b in zip(r, s, strict=True)) for s in tril] for r in tril]
    log_scale = np.broadcast_to(gaussian["log_scale"], dim)
    variance = [Fraction((2 * Decimal(float(entry))).exp()) for entry in log_scale]
    return [[variance[i] if i == j else Fraction(0) for j in range(dim)] for i in range(dim)]


def exact_kl(q: Case, p: Case) -> float:
    """KL: 1/2 (tr(P^-1 Q) + (m_p - m_q)^T P^-1 (m_p - m_q) - k + log(det P / det Q))."""
    with localcontext(prec=60):
        cov_q, cov_p = covariance(q), covariance(p)
        indices = range(len(cov_q))
        det_q, _ = determinant_and_inverse(cov_q)
        det_p, inverse_p = determinant_and_inverse(cov_p)
        shift = [Fraction(b) - Fraction(a) for a, b in zip(q["loc"], p["loc"], strict=True)]
        pairs = [(i, j) for i in indices for j in indices]
        trace = sum(inverse_p[i][j] * cov_q[j][i] for i, j in pairs)
        square = sum(shift[i] * inverse_p[i][j] * shift[j] for i, j in pairs)
        rest, ratio = trace + square - len(cov_q), det_p / det_q
        log_ratio = (Decimal(ratio.numerator) / Decimal(ratio.denominator)).ln()
        return float((Decimal(rest.numerator) / Decimal(rest.denominator) + log_ratio) / 2)


def as_tril(gaussian: Case) -> np.ndarray:
    if "scale_tril" in gaussian:
        return np.array(gaussian["scale_tril"])
    return np.diag(np.exp(np.broadcast_to(gaussian["log_scale"], len(gaussian["loc"]))))


def kl_case(name: str, q: Case, p: Case) -> Case:
    q = {k: float32(v).tolist() for k, v in q.items()}
    p = {k: float32(v).tolist() for k, v in p.items()}
    tril_q, tril_p = as_tril(q), as_tril(p)
    ratio = solve_by_absolute_values(tril_p, tril_q)
    shift = solve_by_absolute_values(tril_p, np.subtract(q["loc"], p["loc"]))
    logs = np.abs(np.log(np.diag(tril_q))) + np.abs(np.log(np.diag(tril_p)))
    terms = 0.5 * (np.sum(ratio**2) + np.sum(shift**2) + len(shift)) + np.sum(logs)
    moved = scipy.linalg.solve_triangular(tril_p, tril_q - tril_p, lower=True)
    distance = max(np.abs(moved).max(), shift.max())
    return {"name": name, "q": q, "p": p} | {
        "kl": exact_kl(q, p),
        "terms": float(terms),
        "distance": float(distance),  # between L_p^-1 L_q and I, or the means in units of p
    }


def kl_cases(rng: np.random.Generator) -> list[Case]:
    def diagonal(dim: int = 3) -> Case:
        return {"loc": rng.normal(size=dim), "log_scale": 0.5 * rng.normal(size=dim)}

    def one_scale(dim: int = 3) -> Case:
        return {"loc": rng.normal(size=dim), "log_scale": 0.5 * rng.normal()}

    def full(dim: int = 3) -> Case:
        return {"loc": rng.normal(size=dim), "scale_tril": random_tril(rng, dim)}

    standard = {"loc": np.zeros(3), "log_scale": np.zeros(3)}
    kinds = {"diagonal": diagonal, "one scale": one_scale, "full": full}
    cases = [kl_case(f"{a} from {b}", kinds[a](), kinds[b]()) for a in kinds for b in kinds]
    cases += [kl_case(f"{a} from standard", make(), standard) for a, make in kinds.items()]
    cases += [kl_case("full from full, 6", full(6), full(6))]
    return cases + [
        kl_case(
            f"corner {(s, t, m)}",
            {"loc": [m] * 3, "log_scale": [s] * 3},
            {"loc": [-m] * 3, "log_scale": [t] * 3},
        )
        for s in (-20, 20)
        for t in (-20, 20)
        for m in (0, 100)
    ]


def nearly_equal_cases(rng: np.random.Generator) -> list[Case]:
    """Pairs of Gaussians whose parameters all differ by about 1e-4."""
    cases = []
    for seed in range(4):
        loc, log_scale, tril = rng.normal(size=3), rng.normal(size=3), random_tril(rng, 3)
        q = {"loc": loc + 1e-4 * rng.normal(size=3)}
        near = log_scale + 1e-4 * rng.normal(size=3)
        near_tril = tril + 1e-4 * np.tril(rng.normal(size=(3, 3)))
        cases += [
            kl_case(
                f"diagonal {seed}", q | {"log_scale": near}, {"loc": loc, "log_scale": log_scale}
            ),
            kl_case(
                f"full {seed}", q | {"scale_tril": near_tril}, {"loc": loc, "scale_tril": tril}
            ),
        ]
    return cases


def make_golden() -> dict[str, list[Case]]:
    rng = np.random.default_rng(1606_05908)
    return {
        "gaussian": gaussian_cases(rng),
        "full_covariance_gaussian": [full_gaussian_case(rng, dim) for dim in (1, 3, 6)],
        "bernoulli": bernoulli_cases(rng),
        "kl": kl_cases(rng),
        "kl_nearly_equal": nearly_equal_cases(rng),
    }


if __name__ == "__main__":
    groups = [
        f'"{name}": [\n' + ",\n".join(f"  {json.dumps(entry)}" for entry in cases) + "\n]"
        for name, cases in make_golden().items()
    ]
    path = Path(__file__).with_name("golden.json")
    path.write_text("{\n" + ",\n".join(groups) + "\n}\n")
    print(f"wrote {path}")
