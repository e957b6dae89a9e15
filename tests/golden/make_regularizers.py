"""Make regularizers.json, the float64 reference values of regularizers.

Densities come from scipy and are summed example by example; covariances and kernels come from
scikit-learn, so that nothing here shares a method with jaxvae. Every input is a float32 number, so
that float32 tests have the same inputs.

`terms` is the sum of the absolute values of all intermediate summands: times a unit of rounding, it
bounds the error of any order of summation.

Run: python -m tests.golden.make_regularizers
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logsumexp
from scipy.stats import norm
from sklearn.covariance import empirical_covariance
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel

HALF_LOG_TWO_PI = 0.5 * np.log(2 * np.pi)
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
Case = dict[str, Any]


def float32(values: Any) -> np.ndarray:
    """Round `values` to float32, stored as float64."""
    return np.asarray(values, np.float32).astype(np.float64)


def case(name: str, **entries: Any) -> Case:
    return {"name": name} | {k: np.asarray(v).tolist() for k, v in entries.items()}


def importance(estimator: str, batch_size: int, num_data: int) -> np.ndarray:
    """Importance weights w_in, entry by entry; "exact": the batch is the whole data set."""
    weights = np.empty((batch_size, batch_size))
    for i in range(batch_size):
        for n in range(batch_size):
            others = (num_data - 1) / (batch_size - 1) / num_data
            stratified = 1 / num_data if i == n else others
            weights[i, n] = {
                "mss": stratified,
                "mws": 1 / (batch_size * num_data),
                "exact": 1 / batch_size,
            }[estimator]
    return weights


def log_mixture(log_probs: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """log sum_n w_n exp(log_probs_n), and absolute terms, each component weighted by its share."""
    value = logsumexp(log_probs, b=weights)
    share = weights * np.exp(log_probs - value)
    return np.array([value, np.sum(share * (sizes + np.abs(np.log(weights))))])


def decomposition_case(name: str, estimator: str, batch_size: int, num_data: int) -> Case:
    rng = np.random.default_rng(batch_size)
    loc, log_scale, eps = float32(rng.normal(size=(3, batch_size, 3)))
    log_scale = float32(0.5 * log_scale - 0.5)
    z = float32(loc + np.exp(log_scale) * eps)
    weights = importance(estimator, batch_size, num_data)
    log_probs = norm.logpdf(z[:, None], loc[None], np.exp(log_scale)[None])
    squares = 0.5 * ((z[:, None] - loc[None]) / np.exp(log_scale)) ** 2
    sizes = squares + np.abs(log_scale)[None] + HALF_LOG_TWO_PI
    own = np.arange(batch_size)
    log_q = np.array([log_probs[own, own].sum(1), sizes[own, own].sum(1)])
    prior = np.array([norm.logpdf(z).sum(1), (0.5 * z**2 + HALF_LOG_TWO_PI).sum(1)])
    joint = [log_mixture(log_probs[i].sum(1), sizes[i].sum(1), weights[i]) for i in own]
    marginals = [
        sum(log_mixture(log_probs[i, :, j], sizes[i, :, j], weights[i]) for j in range(3))
        for i in own
    ]
    joint, marginals = np.transpose(joint), np.transpose(marginals)
    pairs = [(log_q, joint), (joint, marginals), (marginals, prior)]
    return case(
        name,
        estimator=estimator,
        num_data=num_data,
        loc=loc,
        log_scale=log_scale,
        z=z,
        values=[np.mean(one[0] - other[0]) for one, other in pairs],
        terms=[np.mean(one[1] + other[1]) for one, other in pairs],
    )


def dip_case(name: str, full: bool) -> Case:
    rng = np.random.default_rng(3)
    loc = float32(rng.normal(size=(6, 3)) * [1.0, 0.5, 2.0])
    if full:
        tril = float32(np.tril(rng.normal(size=(6, 3, 3))))
        scale = {"scale_tril": tril}
        within = np.mean([matrix @ matrix.T for matrix in tril], 0)
    else:
        scale = {"log_scale": float32(0.5 * rng.normal(size=(6, 3)))}
        within = np.diag(np.mean(np.exp(2 * scale["log_scale"]), 0))
    off_diagonal, diagonal = 2.5, 7.0
    weights = np.where(np.eye(3) == 1, diagonal, off_diagonal)
    means = empirical_covariance(loc)
    spread = np.abs(loc) + np.abs(loc.mean(0))
    sizes = (spread.T @ spread / 6, np.abs(within))
    values = [np.sum(weights * (c - np.eye(3)) ** 2) for c in (means, means + within)]
    terms = [np.sum(weights * (c + np.eye(3)) ** 2) for c in (sizes[0], sizes[0] + sizes[1])]
    return case(
        name,
        loc=loc,
        **scale,
        off_diagonal=off_diagonal,
        diagonal=diagonal,
        values=values,
        terms=terms,
    )


def mmd_case(kernel: str, statistic: str) -> Case:
    rng = np.random.default_rng(4)
    x, y = float32(rng.normal(size=(5, 3)) + 0.5), float32(1.5 * rng.normal(size=(4, 3)))

    def kernels(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        constants = [2 * 3 * s for s in SCALES]
        if kernel == "rbf":
            return sum(rbf_kernel(x, y, gamma=1 / c) for c in constants)
        return sum(c / (c + euclidean_distances(x, y, squared=True)) for c in constants)

    def within(x: np.ndarray) -> float:
        pairs = [
            kernels(x[i : i + 1], x[j : j + 1])[0, 0]
            for i in range(len(x))
            for j in range(len(x))
            if i != j or statistic == "biased"
        ]
        return float(np.mean(pairs))

    parts = np.array([within(x), within(y), 2 * kernels(x, y).mean()])
    value, terms = parts @ [1, 1, -1], parts.sum()
    return case(
        f"{kernel}, {statistic}",
        kernel=kernel,
        statistic=statistic,
        x=x,
        y=y,
        value=value,
        terms=terms,
    )


def discriminator_case(hidden: tuple[int, ...]) -> Case:
    rng = np.random.default_rng(5)
    sizes = (3, *hidden, 1)
    layers = [
        {"kernel": float32(rng.normal(size=sizes[i : i + 2])), "bias": float32(rng.normal())}
        for i in range(len(sizes) - 1)
    ]
    z = float32(rng.normal(size=(4, 3)))
    out, terms = z, np.abs(z)
    for i, layer in enumerate(layers):
        out = out @ layer["kernel"] + layer["bias"]
        terms = terms @ np.abs(layer["kernel"]) + np.abs(layer["bias"])
        if i < len(layers) - 1:
            out = np.where(out > 0, out, 0.2 * out)
    labels = np.arange(4) < 2
    loss = log_loss(labels, expit(out[:, 0]))
    return case(
        f"hidden {hidden}",
        **{f"kernel_{i}": layer["kernel"] for i, layer in enumerate(layers)},
        **{f"bias_{i}": np.full(sizes[i + 1], layer["bias"]) for i, layer in enumerate(layers)},
        z=z,
        logits=out[:, 0],
        terms=terms[:, 0],
        loss=loss,
    )


def make_regularizers() -> dict[str, list[Case]]:
    return {
        "decomposition": [
            decomposition_case("mss", "mss", 5, 40),
            decomposition_case("mss, whole data set", "mss", 6, 6),
            decomposition_case("mws", "mws", 5, 40),
            decomposition_case("exact", "exact", 7, 7),
        ],
        "dip": [dip_case("diagonal", False), dip_case("full", True)],
        "mmd": [mmd_case(k, s) for k in ("rbf", "imq") for s in ("unbiased", "biased")],
        "discriminator": [discriminator_case(hidden) for hidden in [(4,), (5, 4)]],
    }


if __name__ == "__main__":
    groups = [
        f'"{name}": [\n' + ",\n".join(f"  {json.dumps(entry)}" for entry in cases) + "\n]"
        for name, cases in make_regularizers().items()
    ]
    path = Path(__file__).with_name("regularizers.json")
    path.write_text("{\n" + ",\n".join(groups) + "\n}\n")
    print(f"wrote {path}")
