"""Flows of every kind as distributions: densities, draws and the gradients of both."""

from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import Bernoulli, elbo, iwae
from jaxvae.distributions import Flow, Gaussian, NoClosedForm, mean_of, sample_and_log_prob
from jaxvae.flows import (
    autoregressive_flow,
    autoregressive_init,
    coupling_flow,
    coupling_init,
)
from tests.files import golden

CASES = golden("flows")["log_normal"]
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
INIT = {
    "autoregressive": autoregressive_init,
    "affine": coupling_init,
    "spline": partial(coupling_init, kind="spline"),
}
FLOW = {
    "autoregressive": autoregressive_flow,
    "affine": coupling_flow,
    "spline": partial(coupling_flow, kind="spline"),
}
CONTEXT_DIM = 3
NUM_DRAWS = 4000
DIM = 5
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiler options for programs that run for less time than they take to compile."""

every_kind = pytest.mark.parametrize("kind", INIT)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Exp:
    """z -> exp(z): no parameters."""

    def forward(self, z):
        return jnp.exp(z), jnp.sum(z)

    def inverse(self, z):
        return jnp.log(z), -jnp.sum(jnp.log(z))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ShiftAndScale:
    """z -> loc + exp(log_scale) z."""

    loc: jax.Array
    log_scale: jax.Array

    def forward(self, z):
        return self.loc + jnp.exp(self.log_scale) * z, jnp.sum(self.log_scale)

    def inverse(self, z):
        return (z - self.loc) * jnp.exp(-self.log_scale), -jnp.sum(self.log_scale)


def parameters(kind, dim, spread, context_dim=CONTEXT_DIM):
    """Parameters of a flow far from its initialization: noise of size `spread`."""
    sizes = {"context_dim": context_dim, "hidden": (6,), "num_layers": 2}
    init = INIT[kind]
    shapes = jax.eval_shape(lambda key: init(key, dim, **sizes), jax.random.key(0))
    rng = np.random.default_rng(dim)
    return jax.tree.map(lambda leaf: jnp.asarray(spread * rng.normal(size=leaf.shape)), shapes)


def flow(kind, phi):
    """A flow with phi = (params, loc, log_scale, context), as an encoder might return."""
    params, loc, log_scale, context = phi
    return FLOW[kind](params, Gaussian(loc, log_scale), context)


def phi_of(kind, dim, spread=0.7, scale=1.0):
    rng = np.random.default_rng(0)
    loc = jnp.asarray(scale * rng.normal(size=dim))
    context = jnp.asarray(rng.normal(size=CONTEXT_DIM))
    return parameters(kind, dim, spread), loc, jnp.full(dim, -0.3), context


def stopped(q):
    return jax.tree.map(jax.lax.stop_gradient, q)


def target(z):
    """An unnormalised log p(z) that is not Gaussian."""
    return -jnp.sum(jnp.log(jnp.cosh(z - 0.3)))


def sticking_the_landing(make, phi, key):
    """log p(z) - log q(z), with a gradient only through z (Roeder et al. 2017)."""
    q = make(phi)
    z = q.sample(key)
    return target(z) - stopped(q).log_prob(z)


def undo(q, z):
    """The draw of the base."""
    for transform in reversed(q.transforms):
        z, _ = transform.inverse(z)
    return z


def all_at_once(kind, key, phi):
    """Values that the tests below compare: a forward and an inverse pass, and their gradients."""
    draw = lambda phi: flow(kind, phi).sample_and_log_prob(key)
    (z, log_q), pull = jax.vjp(draw, phi)
    density = lambda q, z: q.log_prob(z)
    log_prob, (by_q, by_z) = jax.value_and_grad(density, (0, 1))(flow(kind, phi), z)
    _, pull_q = jax.vjp(partial(flow, kind), phi)
    # Cotangents of (z, log q): those of the Jacobian's rows, of log q alone, and by_z of z.
    dim = z.shape[0]
    of_z = jnp.concatenate([jnp.eye(dim), jnp.zeros((1, dim)), by_z[None]])
    of_log_q = jnp.zeros(dim + 2).at[dim].set(1.0)
    pulled = jax.vmap(lambda *cotangents: pull(cotangents)[0])(of_z, of_log_q)
    z_0 = flow(kind, phi).base.sample(key)
    return {
        "z": z,
        "log_q": log_q,
        "log_prob": log_prob,
        "z_0": z_0,
        "back": undo(flow(kind, phi), z),
        "log_det": flow(kind, phi).base.log_prob(z_0) - log_q,
        "jacobian": pulled[1][:dim],  # by the base's loc: dz/dloc = dz/dz_0
        "by_z": by_z,
        "by_path": jax.tree.map(lambda leaf: leaf[dim + 1], pulled),
        "by_score": pull_q(by_q)[0],
        "whole": jax.tree.map(lambda leaf: leaf[dim], pulled),
    }


@cache
def several(kind):
    """`all_at_once` for many keys, compiled once for each kind."""
    return quick(jax.vmap(partial(all_at_once, kind), (0, None)))


@cache
def measured(kind, spread=0.7, scale=1.0, shift=0.0):
    """`all_at_once` for 10 keys, in float64; `shift` is added to every number in phi."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(4), 10)
        phi = jax.tree.map(lambda leaf: leaf + shift, phi_of(kind, DIM, spread, scale))
        return jax.device_get(several(kind)(keys, phi))


# Golden


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_exponential_of_a_gaussian_is_log_normal(case, precision):
    with jax.enable_x64(precision == "float64"):
        loc, log_scale, x = (jnp.asarray(case[name], float) for name in ("loc", "log_scale", "x"))
        result = Flow(Gaussian(loc, log_scale), (Exp(),)).log_prob(x)
    assert (result.shape, result.dtype.name) == ((), precision)
    assert abs(float(result) - case["log_prob"]) <= TOLERANCE[precision] * case["terms"]


# Law


@pytest.mark.slow
@every_kind
def test_log_det_is_that_of_the_jacobian(kind):
    result = measured(kind)
    expected = np.linalg.slogdet(result["jacobian"])[1]
    np.testing.assert_allclose(result["log_det"], expected, rtol=0, atol=1e-10)
    assert np.abs(expected).max() > 0.1


@pytest.mark.slow
@every_kind
def test_inverse_undoes_forward(kind):
    """The tolerance is 100 eps times the inverse of the Jacobian, which maps errors of z to z_0."""
    result = measured(kind)
    steepest = np.linalg.norm(np.linalg.inv(result["jacobian"]), axis=(1, 2))
    size = np.abs(result["z"]).max(axis=1) + np.abs(result["z_0"]).max(axis=1)
    error = np.abs(result["back"] - result["z_0"]).max(axis=1)
    assert (error <= 100 * np.finfo(np.float64).eps * (1 + steepest) * size).all()
    assert np.abs(result["z"] - result["z_0"]).max() > 0.1


@every_kind
def test_log_prob_of_a_draw_is_what_comes_with_it(kind):
    result = measured(kind)
    np.testing.assert_allclose(result["log_prob"], result["log_q"], rtol=0, atol=1e-10)


@every_kind
def test_the_gradient_splits_into_that_of_the_draw_and_that_of_the_density(kind):
    """d/dphi log q_phi(z(phi)) is the gradient through z at fixed parameters, plus the gradient
    through the parameters at fixed z."""
    result = measured(kind)
    total = jax.tree.map(np.add, result["by_path"], result["by_score"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), total, result["whole"])
    for name in ("by_path", "by_score"):
        params, loc, log_scale, context = result[name]
        biases = [layer["bias"] for layers in params.values() for layer in layers.values()]
        assert all((np.abs(leaf) > 0).any() for leaf in (loc, log_scale, context, *biases))


@every_kind
def test_gradients_are_those_of_finite_differences(kind):
    """Along (1, 1, ..., 1) in all parameters: of log q and, by each z, of the draw."""
    result, step = measured(kind), 1e-6
    more, less = (measured(kind, shift=sign * step) for sign in (1, -1))
    along = lambda gradient: sum(leaf.reshape(10, -1).sum(1) for leaf in jax.tree.leaves(gradient))
    slope = (more["log_q"] - less["log_q"]) / (2 * step)
    slope_of_z = (more["z"] - less["z"]) / (2 * step)
    np.testing.assert_allclose(along(result["whole"]), slope, rtol=1e-6, atol=1e-6)
    by_path = np.sum(result["by_z"] * slope_of_z, axis=1)
    np.testing.assert_allclose(along(result["by_path"]), by_path, rtol=1e-6, atol=1e-6)


@every_kind
def test_a_stopped_flow_has_no_gradient_in_any_parameter(kind):
    """Every parameter is a leaf, so that its derivative is exactly zero."""
    phi = phi_of(kind, 3)
    log_prob = lambda phi: stopped(flow(kind, phi)).log_prob(jnp.full(3, 0.4))
    gradient = quick(jax.grad(log_prob))(phi)
    assert all((leaf == 0.0).all() for leaf in jax.tree.leaves(gradient))


@every_kind
def test_density_integrates_to_one(kind):
    """Integrated by the trapezoid rule, to the change of its result when the step is doubled."""
    axis = np.linspace(-10.0, 10.0, 401)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    with jax.enable_x64(True):
        log_probs = jax.vmap(flow(kind, phi_of(kind, 2, 0.2)).log_prob)
        densities = np.exp(quick(log_probs)(jnp.asarray(grid.reshape(-1, 2))))
    fine = densities.sum() * 0.05**2
    coarse = densities.reshape(401, 401)[::2, ::2].sum() * 0.1**2
    assert abs(fine - 1.0) <= abs(fine - coarse) + 1e-9
    assert abs(fine - coarse) <= 1e-3


def test_an_affine_flow_is_the_gaussian_with_its_moments():
    """N(m, s^2) transformed by a + b z is N(a + b m, b^2 s^2)."""
    with jax.enable_x64(True):
        m, log_s, loc, log_scale, x = jax.random.normal(jax.random.key(5), (5, 4), float)
        q = Flow(Gaussian(m, log_s), (ShiftAndScale(loc, log_scale),))
        p = Gaussian(loc + jnp.exp(log_scale) * m, log_scale + log_s)
        for key in jax.random.split(jax.random.key(6), 3):
            np.testing.assert_allclose(q.sample(key), p.sample(key), rtol=0, atol=1e-13)
            z, log_q = q.sample_and_log_prob(key)
            np.testing.assert_allclose(log_q, p.log_prob(z), rtol=0, atol=1e-12)
        np.testing.assert_allclose(q.log_prob(x), p.log_prob(x), rtol=1e-13)


def test_sticking_the_landing_is_that_of_the_gaussian_on_the_same_noise():
    """d/dphi [log p(z) - log q(z)] with q stopped: by a flow, by Gaussian, and in closed form."""
    by_flow = lambda phi: Flow(Gaussian.standard(4), (ShiftAndScale(*phi),))
    key, loc = jax.random.key(7), np.linspace(-1.0, 2.0, 4)
    log_scale = np.array([0.3, -1.0, 0.5, 0.0])
    with jax.enable_x64(True):
        first, second = (
            quick(jax.grad(partial(sticking_the_landing, make)))(
                (jnp.asarray(loc), jnp.asarray(log_scale)), key
            )
            for make in (by_flow, lambda phi: Gaussian(*phi))
        )
        z = np.asarray(Gaussian(jnp.asarray(loc), jnp.asarray(log_scale)).sample(key))
    scale = np.exp(log_scale)
    eps = (z - loc) / scale
    by_z = -np.tanh(z - 0.3) + eps / scale
    for gradient in (first, second):
        np.testing.assert_allclose(gradient[0], by_z, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(gradient[1], by_z * scale * eps, rtol=1e-11, atol=1e-12)


ESTIMATORS = {
    "elbo stl": partial(elbo, estimator="stl"),
    "elbo reparameterized": partial(elbo, estimator="reparameterized", kl="sampled"),
    "iwae dreg": partial(iwae, estimator="dreg"),
    "iwae reparameterized": partial(iwae, estimator="reparameterized"),
    "iwae score": partial(iwae, estimator="score"),
}


@cache
def slopes_on_the_same_noise():
    """{name: value and gradients by the flow, and by the Gaussian}, in one program."""
    makers = (
        lambda phi: Flow(Gaussian.standard(4), (ShiftAndScale(*phi),)),
        lambda phi: Gaussian(*phi),
    )

    def objective(bound, make, phi, theta):
        return bound(
            jax.random.key(8),
            jnp.array([1.0, 0.0, 1.0]),
            encode=lambda x: make(phi),
            decode=lambda z: Bernoulli(z @ theta),
            prior=Gaussian.standard(4),
            num_samples=3,
        ).objective

    @quick
    def of_all(*parameters):
        slope = lambda *options: jax.value_and_grad(partial(objective, *options), (0, 1))
        return {
            name: [slope(bound, make)(*parameters) for make in makers]
            for name, bound in ESTIMATORS.items()
        }

    with jax.enable_x64(True):
        phi = jnp.linspace(-1.0, 2.0, 4), jnp.array([0.3, -1.0, 0.5, 0.0])
        theta = jax.random.normal(jax.random.key(9), (4, 3), float)
        return jax.device_get(of_all(phi, theta))


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradients_of_a_bound_are_those_of_the_gaussian_on_the_same_noise(name):
    """Gradients by the model's parameters too, with a q that is not the posterior."""
    by_flow, by_gaussian = slopes_on_the_same_noise()[name]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11), by_flow, by_gaussian)
    assert all((np.abs(leaf) > 1e-3).all() for leaf in jax.tree.leaves(by_flow))


def test_the_mean_of_draws_is_the_mean_of_the_density():
    """In one dimension: E z by quadrature."""
    axis = np.linspace(-10.0, 10.0, 2001)
    q = flow("spline", phi_of("spline", 1, 0.3))
    densities = np.exp(quick(jax.vmap(q.log_prob))(jnp.asarray(axis[:, None], jnp.float32)))
    total, mean, square = (np.sum(densities * axis**n) * 0.01 for n in range(3))
    # The density has kinks at the knots: the trapezoid rule is good to the step's square.
    np.testing.assert_allclose(total, 1.0, rtol=1e-4)
    drawn = quick(lambda key: mean_of(q, key, NUM_DRAWS))(jax.random.key(9))
    assert drawn.shape == (1,)
    assert abs(float(drawn[0]) - mean) <= 4 * np.sqrt((square - mean**2) / NUM_DRAWS) + 1e-4


def test_a_flow_of_a_flow_is_the_longer_flow():
    transforms = tuple(ShiftAndScale(jnp.array([a, 1.0]), jnp.array([0.5, a])) for a in (1.0, 2.0))
    nested = Flow(Flow(Gaussian.standard(2), transforms[:1]), transforms[1:])
    whole, key, z = Flow(Gaussian.standard(2), transforms), jax.random.key(0), jnp.ones(2)
    np.testing.assert_allclose(nested.log_prob(z), whole.log_prob(z), rtol=1e-6)
    for got, expected in zip(
        sample_and_log_prob(nested, key), sample_and_log_prob(whole, key), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@every_kind
def test_values_and_gradients_are_finite_far_out(kind):
    """Draws and values around +-100, parameters ten times those of a trained network."""
    for scale in (100.0, -100.0):
        result = measured(kind, 10.0, scale)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


# Transform


@pytest.mark.slow
@every_kind
def test_eager_jit_and_vmap_agree(kind):
    keys = jax.random.split(jax.random.key(4), 10)
    with jax.enable_x64(True):
        phi = phi_of(kind, DIM)
        run = quick(lambda key: flow(kind, phi).sample_and_log_prob(key))
        for i in (0, 9):
            z, log_q = run(keys[i])
            np.testing.assert_allclose(z, measured(kind)["z"][i], rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(log_q, measured(kind)["log_q"][i], rtol=1e-11)
        if kind == "affine":  # where this is quick: each operation is compiled by itself
            np.testing.assert_allclose(flow(kind, phi).log_prob(z), log_q, rtol=1e-11)


@every_kind
def test_bfloat16_is_computed_in_float32(kind):
    phi = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), phi_of(kind, DIM, 0.3))
    draw = lambda phi: flow(kind, phi).sample_and_log_prob(jax.random.key(11))
    z, log_q = jax.eval_shape(draw, phi)
    assert (z.dtype, log_q.dtype) == (jnp.float32, jnp.float32)
    log_prob = lambda phi, z: flow(kind, phi).log_prob(z)
    assert jax.eval_shape(log_prob, phi, phi[1]).dtype == jnp.float32
    for layer in flow(kind, phi).transforms:
        z, log_det = jax.eval_shape(layer.forward, phi[1])
        assert (z.dtype, log_det.dtype) == (jnp.float32, jnp.float32)


def test_bfloat16_parameters_are_the_numbers_they_are_in_float32():
    phi = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), phi_of("affine", 5, 0.3))
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), phi)
    log_prob = quick(lambda phi: flow("affine", phi).log_prob(phi[1]))
    np.testing.assert_allclose(log_prob(phi), log_prob(exact), rtol=1e-5)


# Failure


def test_a_flow_has_no_mean_in_closed_form():
    with pytest.raises(NoClosedForm, match="flow"):
        Flow(Gaussian.standard(2), (Exp(),)).mean()


@every_kind
@pytest.mark.parametrize("shape", [(4,), (3, 5), ()])
def test_a_value_of_another_shape_is_rejected(kind, shape):
    q = flow(kind, phi_of(kind, DIM))
    with pytest.raises(ValueError, match=r"z must have shape \(5,\), got .*vmap adds the batch"):
        q.log_prob(jnp.zeros(shape))


@every_kind
def test_a_context_is_given_where_the_parameters_take_one_and_nowhere_else(kind):
    params, loc, log_scale, context = phi_of(kind, 3)
    without = parameters(kind, 3, 0.1, context_dim=0)
    for phi, message in (
        ((params, loc, log_scale, None), r"must have shape \(3,\), got None"),
        ((params, loc, log_scale, context[:2]), r"must have shape \(3,\), got \(2,\)"),
        ((without, loc, log_scale, context), r"must have shape None, got \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            flow(kind, phi).log_prob(loc)


@every_kind
@pytest.mark.parametrize("sizes", [{"hidden": ()}, {"hidden": (0,)}, {"context_dim": -1}])
def test_sizes_are_checked(kind, sizes):
    init = INIT[kind]
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        init(jax.random.key(0), 3, **sizes)
    with pytest.raises(ValueError, match="dim and every width"):
        init(jax.random.key(0), 0)
