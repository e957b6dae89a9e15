"""Make flows.json, the float64 reference values of flows and their layers.

All values are computed in 50-digit decimals by the papers' formulas, except the log-normal, which
is scipy's: the spline by section 3.1 of Durkan et al. 2019, its inverse by bisection, networks by
loops over single weights, masked networks by the entries that each unit may see (Germain et al.
2015). Every input is a float32 number, so that float32 tests have the same inputs.

`terms` is the sum of the absolute values of all intermediate summands, each times the derivative of
the value with respect to its sum: times a unit of rounding, it is the allowed error.

Run: python -m tests.golden.make_flows
"""

import json
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

BOUND, NUM_BINS, MIN_BIN, MIN_SLOPE = Decimal(5), 8, Decimal("0.001"), Decimal("0.001")
CLAMP = Decimal(7)
Case = dict[str, Any]
Numbers = list[Decimal]


def float32(values: Any) -> Any:
    return np.asarray(values, np.float32).astype(np.float64).tolist()


def decimals(values: Any) -> Any:
    """Convert nested lists of numbers exactly."""
    return [decimals(v) for v in values] if isinstance(values, list) else Decimal(values)


def floats(values: Any) -> Any:
    return [floats(v) for v in values] if isinstance(values, list) else float(values)


def tanh(x: Decimal) -> Decimal:
    return 1 - 2 / ((2 * x).exp() + 1)


def sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def soft_clamp(x: Decimal) -> Decimal:
    return CLAMP * tanh(x / CLAMP)


def knots(raw: Numbers) -> Numbers:
    powers = [entry.exp() for entry in raw]
    places = [-BOUND]
    for power in powers:
        fraction = MIN_BIN + (1 - MIN_BIN * NUM_BINS) * power / sum(powers)
        places.append(places[-1] + 2 * BOUND * fraction)
    return places


def slopes(raw: Numbers) -> Numbers:
    at_zero = ((1 - MIN_SLOPE).exp() - 1).ln()
    inner = [MIN_SLOPE + (1 + (entry + at_zero).exp()).ln() for entry in raw]
    return [Decimal(1), *inner, Decimal(1)]


def spline_forward(raw: Numbers, x: Decimal) -> tuple[Decimal, Decimal, Decimal, Decimal]:
    """Return y, log dy/dx and the terms of both."""
    if abs(x) >= BOUND:
        return x, Decimal(0), abs(x), Decimal(0)
    xs, ys, d = knots(raw[:NUM_BINS]), knots(raw[NUM_BINS : 2 * NUM_BINS]), slopes(raw[16:])
    k = max(i for i in range(NUM_BINS) if xs[i] <= x)
    width, height = xs[k + 1] - xs[k], ys[k + 1] - ys[k]
    s, xi = height / width, (x - xs[k]) / width
    beta = s + (d[k + 1] + d[k] - 2 * s) * xi * (1 - xi)
    y = ys[k] + height * (s * xi**2 + d[k] * xi * (1 - xi)) / beta
    above = d[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + d[k] * (1 - xi) ** 2
    log_slope = (s**2 * above / beta**2).ln()
    by_xi = abs(2 * d[k + 1] * xi + 2 * s * (1 - 2 * xi) - 2 * d[k] * (1 - xi)) / above
    by_xi += 2 * abs((d[k + 1] + d[k] - 2 * s) * (1 - 2 * xi)) / beta
    steepest = max(s, d[k], d[k + 1], log_slope.exp())
    terms = BOUND * (1 + steepest)
    terms_log = 2 * BOUND * (1 / width + 1 / height) * (1 + by_xi)
    terms_log += 2 * abs(s.ln()) + 2 * abs(beta.ln()) + abs(above.ln())
    return y, log_slope, terms, terms_log


def spline_inverse(raw: Numbers, y: Decimal) -> Decimal:
    """Invert the spline by bisection: spline_forward is increasing."""
    low, high = -BOUND, BOUND
    if abs(y) >= BOUND:
        return y
    for _ in range(70):
        middle = (low + high) / 2
        if spline_forward(raw, middle)[0] < y:
            low = middle
        else:
            high = middle
    return low


def spline_case(name: str, raw: Any, xs: Any) -> Case:
    raw, xs = float32(raw), float32(xs)
    exact = decimals(raw)
    columns = list(zip(*(spline_forward(exact, Decimal(x)) for x in xs), strict=True))
    y, log_slope, terms, terms_log = (floats(list(column)) for column in columns)
    back = [spline_inverse(exact, Decimal(x)) for x in xs]
    at_back = [spline_forward(exact, x) for x in back]
    return {
        "name": name,
        "raw": raw,
        "x": xs,
        "y": y,
        "log_slope": log_slope,
        "terms": terms,
        "terms_log": terms_log,
        "inverse": floats(back),
        # An error in y changes x by dx/dy times it, and that change of x changes the log slope.
        "terms_inverse": [float(BOUND + row[2] / row[1].exp()) for row in at_back],
        "log_slope_inverse": [-float(row[1]) for row in at_back],
        "terms_log_inverse": [float(row[3] * (1 + 1 / row[1].exp())) for row in at_back],
    }


def spline_cases(rng: np.random.Generator) -> list[Case]:
    xs = [-100.0, -5.0, -4.9, -2.0, -0.3, 0.0, 0.7, 3.3, 4.999, 5.0, 100.0]
    size = 3 * NUM_BINS - 1
    corner = np.zeros(size)
    corner[[2, 9, 18]] = 100.0, -100.0, 100.0
    return [
        spline_case("identity", np.zeros(size), xs),
        spline_case("smooth", rng.normal(size=size), xs),
        spline_case("steep", 2.0 * rng.normal(size=size), xs),
        spline_case("corner", corner, xs),
    ]


def network(layers: list[Any], inputs: Numbers, context: Numbers, sees: Any) -> tuple[Any, Any]:
    """Return outputs and their terms; `sees(layer, i, unit)`: whether that weight exists."""
    values, errors = inputs, [Decimal(0)] * len(inputs)
    for index, layer in enumerate(layers):
        totals, terms = [], []
        for unit, bias in enumerate(layer["bias"]):
            kernel = layer.get("kernel", [])
            seen = zip(values, errors, strict=True)
            parts = [(kernel[i][unit], v, e) for i, (v, e) in enumerate(seen)]
            parts = [p for i, p in enumerate(parts) if sees(index, i, unit)]
            if "context" in layer:
                parts += [
                    (row[unit], c, Decimal(0))
                    for row, c in zip(layer["context"], context, strict=True)
                ]
            totals.append(bias + sum(w * v for w, v, _ in parts))
            terms.append(abs(bias) + sum(abs(w) * (abs(v) + e) for w, v, e in parts))
        last = index == len(layers) - 1
        values = totals if last else [tanh(total) for total in totals]
        errors = terms if last else [1 + t for t in terms]
    return values, errors


def random_layers(rng: np.random.Generator, sizes: Any, context_dim: int) -> list[Any]:
    layers = []
    for i in range(len(sizes) - 1):
        layer = {"bias": float32(rng.normal(size=sizes[i + 1]))}
        if sizes[i]:
            layer["kernel"] = float32(rng.normal(size=(sizes[i], sizes[i + 1])))
        if i == 0 and context_dim:
            layer["context"] = float32(rng.normal(size=(context_dim, sizes[1])))
        layers.append(layer)
    return layers


def exact_layers(layers: list[Any]) -> list[Any]:
    return [{name: decimals(array) for name, array in layer.items()} for layer in layers]


def autoregressive_case(rng: np.random.Generator, dim: int, hidden: Any, context_dim: int) -> Case:
    """One step of algorithm 1 of Kingma et al. 2016: z = sigma * z + (1 - sigma) * m."""
    sizes = (dim, *hidden, 2 * dim)
    layers, z = random_layers(rng, sizes, context_dim), float32(rng.normal(size=dim))
    context = float32(rng.normal(size=context_dim))

    def entries_seen(index: int, unit: int) -> int:
        """Number of leading entries of z that reach a unit; index 0: the inputs themselves."""
        if index == 0:
            return unit + 1
        return unit % dim if index == len(sizes) - 1 else unit * dim // sizes[index]

    sees = lambda layer, i, unit: entries_seen(layer, i) <= entries_seen(layer + 1, unit)
    raw, errors = network(exact_layers(layers), decimals(z), decimals(context), sees)
    moved, log_det, terms, terms_log = [], Decimal(0), [], Decimal(0)
    for d in range(dim):
        entry, m, a = Decimal(z[d]), raw[d], soft_clamp(raw[dim + d])
        gate = sigmoid(a)
        moved.append(gate * entry + (1 - gate) * m)
        size = abs(entry) + abs(m)
        terms.append(2 * size + errors[d] + errors[dim + d] * gate * (1 - gate) * size)
        log_det += gate.ln()
        terms_log += abs(gate.ln()) + errors[dim + d] * (1 - gate)
    case = {"name": f"dim {dim}, context {context_dim}", "layers": layers, "z": z}
    case |= {"context": context, "forward": floats(moved), "log_det": float(log_det)}
    return case | {"terms": floats(terms), "terms_log": float(terms_log)}


def coupling_case(
    rng: np.random.Generator, kind: str, dim: int, hidden: Any, context_dim: int
) -> Case:
    """Coupling layer of Dinh et al. 2017; with splines, of Durkan et al. 2019, section 3.2."""
    kept, per_entry = dim // 2, {"affine": 2, "spline": 3 * NUM_BINS - 1}[kind]
    sizes = (kept, *hidden, (dim - kept) * per_entry)
    layers, z = random_layers(rng, sizes, context_dim), float32(rng.normal(size=dim))
    if kind == "spline":
        layers[-1]["kernel"] = float32(0.5 * np.array(layers[-1]["kernel"]))
    context = float32(rng.normal(size=context_dim))
    exact = decimals(z)
    raw, errors = network(exact_layers(layers), exact[:kept], decimals(context), lambda *_: True)
    moved, log_det, terms, terms_log = exact[:kept], Decimal(0), [abs(v) for v in exact[:kept]], 0
    for i, entry in enumerate(exact[kept:]):
        mine = slice(i * per_entry, (i + 1) * per_entry)
        if kind == "affine":
            (shift, rough), (shift_terms, rough_terms) = raw[mine], errors[mine]
            log_slope = soft_clamp(rough)
            y = entry * log_slope.exp() + shift
            term = shift_terms + abs(entry) * log_slope.exp() * (1 + rough_terms)
            term_log = rough_terms + abs(log_slope)
        else:
            y, log_slope, term, term_log = spline_forward(raw[mine], entry)
            worst = max(errors[mine])
            term, term_log = term * (1 + worst), term_log * (1 + worst)
        moved, log_det = [*moved, y], log_det + log_slope
        terms, terms_log = [*terms, term], terms_log + term_log
    case = {"name": f"{kind}, dim {dim}, context {context_dim}", "kind": kind, "layers": layers}
    case |= {"z": z, "context": context, "forward": floats(moved), "log_det": float(log_det)}
    return case | {"terms": floats(terms), "terms_log": float(terms_log)}


def log_normal_case(name: str, loc: Any, log_scale: Any, x: Any) -> Case:
    """Density of exp(z) with z from N(loc, exp(log_scale)^2), by scipy."""
    loc, log_scale, x = float32(loc), float32(log_scale), float32(x)
    scale = np.exp(log_scale)
    log_prob = scipy.stats.lognorm.logpdf(x, scale, scale=np.exp(loc)).sum()
    # log x has an error of eps |log x|, which changes the square by its slope times that.
    log_x, eps = np.log(x), (np.log(x) - loc) / scale
    terms = 0.5 * eps**2 + np.abs(log_scale) + 0.5 * np.log(2 * np.pi) + np.abs(log_x)
    terms += np.abs(eps) * (np.abs(log_x) + np.abs(loc)) / scale
    case = {"name": name, "loc": loc, "log_scale": log_scale, "x": x}
    return case | {"log_prob": float(log_prob), "terms": float(np.sum(terms))}


def make_flows() -> dict[str, list[Case]]:
    rng = np.random.default_rng(0)
    with localcontext(prec=50):
        return {
            "log_normal": [
                log_normal_case("vector", rng.normal(size=3), rng.normal(size=3), [0.1, 1.0, 7.0]),
                log_normal_case("far", [-30.0, 40.0], [-2.0, 2.0], [1e-13, 1e17]),
            ],
            "spline": spline_cases(rng),
            "autoregressive": [
                autoregressive_case(rng, 3, (4, 5), 2),
                autoregressive_case(rng, 4, (6,), 0),
            ],
            "coupling": [
                coupling_case(rng, kind, dim, (4,), context_dim)
                for kind in ("affine", "spline")
                for dim, context_dim in ((1, 2), (4, 2))
            ],
        }


if __name__ == "__main__":
    groups = [
        f'"{name}": [\n' + ",\n".join(f"  {json.dumps(entry)}" for entry in cases) + "\n]"
        for name, cases in make_flows().items()
    ]
    path = Path(__file__).with_name("flows.json")
    path.write_text("{\n" + ",\n".join(groups) + "\n}\n")
    print(f"wrote {path}")
