"""Make observations.json, the float64 reference values of families of observations.

Log masses and densities are the textbook formulas in 90-digit decimals, which lose nothing to
cancellation, so that nothing here shares a method with jaxvae; they are compared with scipy where
it has the family. Gradients are central differences, accurate to about 35 digits. Every input is a
float32 number, so that float32 tests have the same inputs.

For each entry, `terms` is the sum of the absolute values of all intermediate summands, plus the
change of the value by one rounding of the parameters' exponentials and logarithms: times a unit of
rounding, it is the largest error of a correct formula. `gradient_terms` is the same for the
gradient, parameter by parameter.

Run: python -m tests.golden.make_observations
"""

import json
from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from fractions import Fraction
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
from scipy.special import expit, gammaln, log_expit, logsumexp, softmax

NUM_VALUES = 256
STEP = Decimal("1e-22")
Values = dict[str, Any]
LogProb = Callable[..., Decimal]


def float32(values: Any) -> np.ndarray:
    """Round `values` to float32, stored as float64."""
    return np.asarray(values, np.float32).astype(np.float64)


def significant(values: Any) -> Any:
    """Round to three digits, which is enough for a tolerance."""
    return [float(f"{v:.3g}") for v in values] if np.ndim(values) else float(f"{values:.3g}")


# Textbook formulas, entry by entry


def bernoulli_numbers(count: int) -> list[Fraction]:
    numbers = [Fraction(1)]
    for m in range(1, count):
        numbers.append(-sum(comb(m + 1, k) * numbers[k] for k in range(m)) / Fraction(m + 1))
    return numbers


STIRLING = [b / (2 * n * (2 * n - 1)) for n, b in enumerate(bernoulli_numbers(82)[2::2], 1)]
PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899863"
)


def log_gamma(x: Decimal) -> Decimal:
    """log Gamma(x), by Stirling's series beyond 60 and the recurrence below."""
    product_below = Decimal(1)
    while x < 60:
        product_below *= x
        x += 1
    terms = (Decimal(c.numerator) / c.denominator for c in STIRLING)
    series = sum(term / x ** (2 * n + 1) for n, term in enumerate(terms))
    return (x - Decimal("0.5")) * x.ln() - x + (2 * PI).ln() / 2 + series - product_below.ln()


def continuous_bernoulli(x: Decimal, logits: Decimal) -> Decimal:
    normalizer = (logits.exp() - 1) / logits if logits else Decimal(1)
    return x * logits - normalizer.ln()


def laplace(x: Decimal, loc: Decimal, log_scale: Decimal) -> Decimal:
    return -abs(x - loc) / log_scale.exp() - (2 * log_scale.exp()).ln()


def sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def logistic_mass(x: Decimal, loc: Decimal, log_scale: Decimal) -> Decimal:
    """Difference of two sigmoids, taken on the side where both are small."""
    scale, half = log_scale.exp(), Decimal("0.5")
    above, below = (x + half - loc) / scale, (x - half - loc) / scale
    if x == 0:
        return sigmoid(above)
    if x == NUM_VALUES - 1:
        return sigmoid(-below)
    return sigmoid(-below) - sigmoid(-above) if below > 0 else sigmoid(above) - sigmoid(below)


def discretized_logistic(x: Decimal, loc: Decimal, log_scale: Decimal) -> Decimal:
    return logistic_mass(x, loc, log_scale).ln()


def logistic_mixture(x: Decimal, *parameters: Decimal) -> Decimal:
    """Log mass of a mixture with M logits, M locs and M log scales."""
    m = len(parameters) // 3
    weights = [logit.exp() for logit in parameters[:m]]
    masses = [
        logistic_mass(x, *p) for p in zip(*np.split(np.array(parameters[m:]), 2), strict=True)
    ]
    return (sum(w * p for w, p in zip(weights, masses, strict=True)) / sum(weights)).ln()


def categorical(x: Decimal, *logits: Decimal) -> Decimal:
    return logits[int(x)] - sum(logit.exp() for logit in logits).ln()


def poisson(x: Decimal, log_rate: Decimal) -> Decimal:
    return x * log_rate - log_rate.exp() - log_gamma(x + 1)


def negative_binomial(x: Decimal, log_mean: Decimal, log_dispersion: Decimal) -> Decimal:
    mean, theta = log_mean.exp(), log_dispersion.exp()
    choose = log_gamma(x + theta) - log_gamma(theta) - log_gamma(x + 1)
    return choose + theta * (theta / (theta + mean)).ln() + x * (mean / (theta + mean)).ln()


def zero_inflated(x: Decimal, log_mean: Decimal, log_disp: Decimal, zero: Decimal) -> Decimal:
    mass = sigmoid(-zero) * negative_binomial(x, log_mean, log_disp).exp()
    return (mass + (sigmoid(zero) if x == 0 else 0)).ln()


def value_and_gradient(log_prob: LogProb, x: float, parameters: list[float]) -> Any:
    """Compute log p(x) and its gradient in decimals; return them as floats."""
    with localcontext(Context(prec=90, Emax=MAX_EMAX, Emin=MIN_EMIN)):
        exact, point = Decimal(x), [Decimal(p) for p in parameters]
        slopes = []
        for i in range(len(point)):
            moved = [[*point[:i], point[i] + d, *point[i + 1 :]] for d in (STEP, -STEP)]
            ahead, behind = (log_prob(exact, *p) for p in moved)
            slopes.append(float((ahead - behind) / (2 * STEP)))
        return float(log_prob(exact, *point)), slopes


# Absolute terms: tolerances of the value and of each parameter's gradient


def continuous_bernoulli_terms(x: float, logits: float) -> Any:
    return abs(x * logits) + max(logits, 0.0) + abs(np.log(abs(logits) + 1.0)) + 1.0, [x + 5.0]


def laplace_terms(x: float, loc: float, log_scale: float) -> Any:
    eps = abs(x - loc) * np.exp(-log_scale)
    return eps + abs(log_scale) + np.log(2.0), [np.exp(-log_scale), eps + 1.0]


def logistic_terms(x: float, loc: float, log_scale: float) -> Any:
    """Terms of three logarithms, two sigmoids and the bin's width; end bins have fewer."""
    t = np.exp(-log_scale)
    a, b = (x + 0.5 - loc) * t, (x - 0.5 - loc) * t
    below, above = float(x < NUM_VALUES - 1), float(x > 0)
    both = below * above
    slope_a, slope_b = below * expit(-a), above * expit(b)
    error_a, error_b = slope_a * (1 + abs(a) * expit(a)), slope_b * (1 + abs(b) * expit(-b))
    width = both * t / np.expm1(min(t, 700.0))
    logs = -below * log_expit(a) - above * log_expit(-b)
    logs += both * abs(np.log(-np.expm1(-t)) if t < 0.5 else np.log1p(-np.exp(-t)))
    value = logs + abs(a) * slope_a + abs(b) * slope_b + width
    return value, [
        t * (error_a + error_b),
        abs(a) * error_a + abs(b) * error_b + width * (1 + t),
    ]


def mixture_terms(x: float, *parameters: float) -> Any:
    """Terms of the components, weighted by their shares; errors of shares change the gradient."""
    logits, locs, log_scales = np.split(np.asarray(parameters), 3)
    log_weights = logits - logsumexp(logits)
    pairs = list(zip(locs, log_scales, strict=True))
    parts = [logistic_terms(x, *pair) for pair in pairs]
    weighing = [abs(logit) + abs(logsumexp(logits)) for logit in logits]
    values = np.array([part[0] for part in parts]) + weighing
    log_masses = [value_and_gradient(discretized_logistic, x, pair) for pair in pairs]
    share = softmax(log_weights + [mass for mass, _ in log_masses])
    total = float(share @ values)
    gradient_logits = (share + np.exp(log_weights)) * (1 + values + total)
    gradients = [
        [
            s * (part[1][i] + abs(mass[1][i]) * (value + total))
            for s, part, mass, value in zip(share, parts, log_masses, values, strict=True)
        ]
        for i in range(2)
    ]
    return total + 1.0, [*gradient_logits, *gradients[0], *gradients[1]]


def categorical_terms(x: float, *logits: float) -> Any:
    return abs(logits[int(x)]) + abs(logsumexp(logits)), [2.0] * len(logits)


def excess_terms(x: float) -> float:
    """Terms of log x! - (x log x - x): Stirling's remainder for large x, else the difference."""
    if x > 10:
        return 0.5 * np.log(2 * np.pi * x) + 0.1
    return abs(gammaln(x + 1)) + abs(x * np.log(x)) + x


def poisson_terms(x: float, log_rate: float) -> Any:
    rate = np.exp(log_rate)
    if x == 0:
        return rate, [rate]
    rounding = abs(log_rate) + np.log(x) + 1
    r = log_rate - np.log(x)
    value = x * (abs(np.expm1(r)) + abs(r)) + excess_terms(x) + abs(x - rate) * rounding
    return value, [abs(x - rate) + rate * rounding]


def negative_binomial_terms(x: float, log_mean: float, log_dispersion: float) -> Any:
    mean, theta = np.exp(log_mean), np.exp(log_dispersion)
    shrunk = theta / (theta + mean)
    if x == 0:
        rounding = 1 + abs(log_mean) + abs(log_dispersion)
        log_zero = theta * np.logaddexp(0, log_mean - log_dispersion)
        slope = mean * shrunk * rounding
        return log_zero + slope, [slope, log_zero + slope]
    n, rounding = x + theta, 1 + abs(log_mean) + np.log(x)
    tilt = theta * abs(np.log1p((mean - x) / n))
    deviance = tilt + x * abs(np.log1p((mean - x) / n) - log_mean + np.log(x))
    rest = abs(np.log(theta / n)) + excess_terms(n) + excess_terms(theta) + excess_terms(x)
    off = abs(x - mean) * shrunk
    small = theta * (6 + abs(log_dispersion)) if theta < 10 else 1.0
    value = deviance + rest + off * rounding + 1 + small + tilt
    return value, [
        (x + mean) * shrunk * rounding,
        1 + tilt + off + small + mean * shrunk * rounding,
    ]


def zero_inflated_terms(x: float, log_mean: float, log_disp: float, zero: float) -> Any:
    value, gradients = negative_binomial_terms(x, log_mean, log_disp)
    value -= log_expit(-zero)
    if x > 0:
        return value, [*gradients, 1.0]
    log_zero, slopes = value_and_gradient(negative_binomial, x, [log_mean, log_disp])
    kept = expit(log_zero + log_expit(-zero) - log_expit(zero))
    total = kept * value - (1 - kept) * log_expit(zero)
    gradients = [
        kept * (g + abs(s) * (1 + value + total)) for g, s in zip(gradients, slopes, strict=True)
    ]
    return total + abs(zero) * expit(-abs(zero)), [*gradients, 2.0 + abs(zero)]


# Cases


def family(
    log_prob: LogProb, terms: Callable[..., Any], names: tuple[str, ...], entries: list[Any]
) -> Values:
    """Make columns from entries (x, parameter, ...); each parameter is a number or a list."""
    columns: Values = {name: [] for name in ("x", *names, "log_prob", "terms")}
    columns |= {"gradient": {name: [] for name in names}}
    columns |= {"gradient_terms": {name: [] for name in names}}
    for x, *parameters in entries:
        arrays = [float32(p) for p in parameters]
        flat = [float(v) for array in arrays for v in array.ravel()]
        value, slopes = value_and_gradient(log_prob, float(float32(x)), flat)
        value_terms, slope_terms = terms(float(float32(x)), *flat)
        columns["x"].append(float(float32(x)))
        columns["log_prob"].append(value)
        columns["terms"].append(significant(value_terms))
        cuts = np.cumsum([array.size for array in arrays])[:-1]
        split = np.split(slopes, cuts), np.split(np.asarray(slope_terms), cuts)
        for name, array, slope, bound in zip(names, arrays, *split, strict=True):
            columns[name].append(array.tolist())
            columns["gradient"][name].append(slope.reshape(array.shape).tolist())
            bound = bound.reshape(array.shape)
            columns["gradient_terms"][name].append(significant(bound))
    return columns


def agrees(columns: Values, where: Any, expected: Any) -> None:
    """Assert agreement with scipy on the entries where scipy is accurate."""
    found = np.asarray(columns["log_prob"])[where]
    np.testing.assert_allclose(found, np.asarray(expected)[where], rtol=1e-9, atol=1e-9)


def make_continuous_bernoulli() -> Values:
    sizes = [0, 1e-6, 1e-3, 0.1, 0.49, 0.51, 1, 3, 20, 90, 1e4]
    logits = sorted({sign * size for size in sizes for sign in (-1, 1)})
    entries = [(x, logit) for logit in logits for x in (0, 0.3, 1)]
    names = ("logits",)
    columns = family(continuous_bernoulli, continuous_bernoulli_terms, names, entries)
    x, logits = np.asarray(columns["x"]), np.asarray(columns["logits"])
    # exp(l x) on [0, 1] is an exponential truncated at 1, mirrored if l > 0.
    scale = 1 / np.where(logits == 0, 1.0, np.abs(logits))
    distance = np.where(logits > 0, 1 - x, x)
    expected = scipy.stats.truncexpon.logpdf(distance, 1 / scale, scale=scale)
    agrees(columns, np.abs(logits) >= 0.1, expected)
    with localcontext(prec=60):
        exact = [Decimal(logit) for logit in logits]
        columns["mean"] = [float(1 / (1 - (-e).exp()) - 1 / e) if e else 0.5 for e in exact]
    return columns


def make_laplace() -> Values:
    rng = np.random.default_rng(1)
    entries = list(rng.normal(size=(12, 3)))
    entries += [(x, loc, s) for s in (-20, 20) for loc in (-100, 100) for x in sorted({0, 1, loc})]
    columns = family(laplace, laplace_terms, ("loc", "log_scale"), entries)
    x, loc, log_scale = (np.asarray(columns[name]) for name in ("x", "loc", "log_scale"))
    agrees(columns, np.abs(log_scale) < 10, scipy.stats.laplace.logpdf(x, loc, np.exp(log_scale)))
    return columns


def logistic_mean(loc: float, log_scale: float) -> Any:
    """Mean sum_v v P(v), and its terms."""
    with localcontext(Context(prec=90, Emax=MAX_EMAX, Emin=MIN_EMIN)):
        point = Decimal(loc), Decimal(log_scale)
        mean = float(sum(v * logistic_mass(Decimal(v), *point) for v in range(NUM_VALUES)))
    c = (loc - np.arange(0.5, NUM_VALUES - 1)) * np.exp(-log_scale)
    return mean, float(np.sum(expit(c) * (1 + np.abs(c) * expit(-c)))) + 1e-30


def make_discretized_logistic() -> Values:
    rng = np.random.default_rng(2)
    loc, log_scale = rng.uniform(-5, 260, 24), rng.uniform(-3, 5, 24)
    near = np.clip(np.round(loc + np.exp(log_scale) * rng.logistic(size=24)), 0, 255)
    entries = list(zip(near, loc, log_scale, strict=True))
    # loc far below, on a bin, on an edge, and far above.
    corners = product((0, 1, 128, 255), (-100, 128, 128.5, 300), (-20, -3, 0, 20))
    names = ("loc", "log_scale")
    columns = family(discretized_logistic, logistic_terms, names, entries + list(corners))
    x, loc, log_scale = (np.asarray(columns[name]) for name in ("x", *names))
    scale = np.exp(log_scale)
    edges = np.where(x == 255, np.inf, x + 0.5), np.where(x == 0, -np.inf, x - 0.5)
    upper, lower = (scipy.stats.logistic.cdf(edge, loc, scale) for edge in edges)
    moderate = (upper - lower > 1e-4) & (log_scale > -10)
    agrees(columns, moderate, np.log(np.where(moderate, upper - lower, 1.0)))
    pairs = sorted(set(zip(columns["loc"], columns["log_scale"], strict=True)))[::3]
    means = [logistic_mean(*pair) for pair in pairs]
    columns["mean"] = {
        "loc": [pair[0] for pair in pairs],
        "log_scale": [pair[1] for pair in pairs],
        "mean": [mean for mean, _ in means],
        "terms": [significant(terms) for _, terms in means],
    }
    return columns


def make_discretized_logistic_mixture() -> Values:
    rng = np.random.default_rng(3)
    entries = [
        (rng.integers(256), rng.normal(size=3), rng.uniform(0, 255, 3), rng.uniform(-2, 4, 3))
        for _ in range(10)
    ]
    corners = product((0, 128, 255), (-20, 0, 20), ((0, 0, 0), (1e4, 0, -1e4)))
    entries += [(x, logits, (-100, 128, 300), [s, s + 0.5, s - 0.5]) for x, s, logits in corners]
    names = ("logits", "loc", "log_scale")
    return family(logistic_mixture, mixture_terms, names, entries)


def make_categorical() -> Values:
    rng = np.random.default_rng(4)
    entries = [(rng.integers(5), 3 * rng.normal(size=5)) for _ in range(10)]
    entries += [(x, (1e4, 0, -1e4, 1e4, 5)) for x in range(5)]
    columns = family(categorical, categorical_terms, ("logits",), entries)
    logits, index = np.asarray(columns["logits"]), np.asarray(columns["x"], int)[:, None]
    expected = np.take_along_axis(scipy.special.log_softmax(logits, axis=1), index, axis=1)
    agrees(columns, ..., expected[:, 0])
    return columns


def counts_near_their_means() -> list[tuple[int, float]]:
    """Pairs of x and the log of a mean 0, 1 or 2 standard deviations from x."""
    return [
        (x, np.log(x + shift * np.sqrt(x)))
        for x in (3, 9, 10, 11, 100, 10_000, 1_000_000)
        for shift in (-1, 0, 2)
    ]


def make_poisson() -> Values:
    entries = counts_near_their_means()
    entries += list(product((0, 1, 5, 1000, 1_000_000), (-20, 0, 5, 20)))
    columns = family(poisson, poisson_terms, ("log_rate",), entries)
    x, rate = np.asarray(columns["x"]), np.exp(columns["log_rate"])
    agrees(columns, (x <= 1000) & (rate < 1e4), scipy.stats.poisson.logpmf(x, rate))
    return columns


def make_negative_binomial() -> Values:
    entries = [
        (x, log_mean, log_dispersion)
        for x, log_mean in counts_near_their_means()
        for log_dispersion in (-3, 1, 6)
    ]
    entries += list(product((0, 1, 1_000_000), (-20, 0, 5, 20), (-20, 0, 20)))
    names = ("log_mean", "log_dispersion")
    columns = family(negative_binomial, negative_binomial_terms, names, entries)
    x, mean, theta = np.asarray(columns["x"]), *(np.exp(columns[name]) for name in names)
    moderate = (x <= 1000) & (np.abs(columns["log_dispersion"]) < 10) & (mean < 1e4)
    moderate &= mean > 1e-3
    expected = scipy.stats.nbinom.logpmf(x, theta, theta / (theta + mean))
    agrees(columns, moderate, expected)
    return columns


def make_zero_inflated_negative_binomial() -> Values:
    entries = list(product((0, 1, 1000), (-20, 0, 6), (-20, 0.5, 20), (-1e4, 0.3, 1e4)))
    names = ("log_mean", "log_dispersion", "zero_logits")
    return family(zero_inflated, zero_inflated_terms, names, entries)


FAMILIES = {
    "continuous_bernoulli": make_continuous_bernoulli,
    "laplace": make_laplace,
    "discretized_logistic": make_discretized_logistic,
    "discretized_logistic_mixture": make_discretized_logistic_mixture,
    "categorical": make_categorical,
    "poisson": make_poisson,
    "negative_binomial": make_negative_binomial,
    "zero_inflated_negative_binomial": make_zero_inflated_negative_binomial,
}


if __name__ == "__main__":
    rows = [f'"{name}": {json.dumps(make())}' for name, make in FAMILIES.items()]
    path = Path(__file__).with_name("observations.json")
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    print(f"wrote {path}")
