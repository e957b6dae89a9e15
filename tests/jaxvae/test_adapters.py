"""Distributions of other libraries in `adapt`, and stand-ins with the same method names."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from jaxvae import Gaussian, divergences, elbo, iwae, kl
from jaxvae.adapters import Adapted, adapt
from jaxvae.distributions import NoClosedForm, mean_of
from jaxvae.divergences import kl_per_latent

EPS = float(np.finfo(np.float32).eps)
LOC, SCALE = np.array([0.3, -1.2, 2.0]), np.array([0.5, 2.0, 1.1])
VALUE = np.array([1.0, 0.0, 1.0])
NUM_DRAWS = 10_000


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DistraxLike:
    """N(loc, diag(scale)^2) with the methods of distrax: keyword-only seed, mean()."""

    loc: jax.Array
    scale: jax.Array

    def sample(self, *, seed, sample_shape=()):
        assert sample_shape == ()
        return self.loc + self.scale * jax.random.normal(seed, self.loc.shape, self.loc.dtype)

    def log_prob(self, value):
        return jax.scipy.stats.norm.logpdf(value, self.loc, self.scale).sum()

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = self.sample(seed=seed, sample_shape=sample_shape)
        return z, self.log_prob(z)

    def mean(self):
        return self.loc


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TfpLike:
    """The same with the methods of TFP: the shape comes before the seed."""

    loc: jax.Array
    scale: jax.Array

    class Fully:
        def __repr__(self):
            return "<Reparameterization Type: FULLY_REPARAMETERIZED>"

    reparameterization_type: ClassVar = Fully()

    def sample(self, sample_shape=(), seed=None, name="sample", **kwargs):
        assert seed is not None
        assert name == "sample"
        return DistraxLike(self.loc, self.scale).sample(seed=seed, sample_shape=sample_shape)

    def log_prob(self, value, name="log_prob", **kwargs):
        return DistraxLike(self.loc, self.scale).log_prob(value)

    def experimental_sample_and_log_prob(self, sample_shape=(), seed=None, name="", **kwargs):
        z = self.sample(sample_shape, seed=seed)
        return z, self.log_prob(z)

    def mean(self, name="mean", **kwargs):
        return self.loc


def numpyro_normal(loc, scale):
    return dist.Normal(loc, scale).to_event(1)


NORMALS = {"numpyro": numpyro_normal, "distrax": DistraxLike, "tfp": TfpLike}
normals = pytest.mark.parametrize("make", NORMALS.values(), ids=NORMALS)


def parameters(dtype=jnp.float32):
    return jnp.asarray(LOC, dtype), jnp.asarray(SCALE, dtype)


def without_gradient(tree):
    return jax.tree.map(jax.lax.stop_gradient, tree)


# Golden


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: numpyro_normal(LOC, SCALE), scipy.stats.norm(LOC, SCALE).logpdf(VALUE)),
        (lambda: DistraxLike(LOC, SCALE), scipy.stats.norm(LOC, SCALE).logpdf(VALUE)),
        (lambda: TfpLike(LOC, SCALE), scipy.stats.norm(LOC, SCALE).logpdf(VALUE)),
        (
            lambda: dist.BernoulliLogits(LOC).to_event(1),
            scipy.stats.bernoulli(scipy.special.expit(LOC)).logpmf(VALUE),
        ),
        (
            lambda: dist.StudentT(5.0, LOC, SCALE).to_event(1),
            scipy.stats.t(5.0, LOC, SCALE).logpdf(VALUE),
        ),
    ],
    ids=["numpyro normal", "distrax normal", "tfp normal", "numpyro bernoulli", "numpyro t"],
)
def test_log_prob_is_the_whole_event_s_in_nats(make, expected):
    with jax.enable_x64(True):
        log_prob = adapt(make()).log_prob(jnp.asarray(VALUE))
    assert log_prob.shape == ()
    np.testing.assert_allclose(log_prob, expected.sum(), rtol=0, atol=1e-12 * abs(expected).sum())


# Law


@normals
def test_draws_are_those_of_the_library_s_own_call(make):
    inner, key = make(*parameters()), jax.random.key(0)
    own = inner.sample(key) if make is numpyro_normal else inner.sample(seed=key)
    assert (adapt(inner).sample(key) == own).all()
    assert (own != adapt(inner).sample(jax.random.key(1))).all()


@normals
def test_sample_and_log_prob_are_of_one_draw(make):
    q, key = adapt(make(*parameters())), jax.random.key(0)
    z, log_prob = q.sample_and_log_prob(key)
    assert (z == q.sample(key)).all()
    assert log_prob == q.log_prob(z)


@pytest.mark.parametrize(
    ("like", "method"),
    [
        (DistraxLike, "sample_and_log_prob"),
        (TfpLike, "experimental_sample_and_log_prob"),
    ],
)
def test_a_flow_s_own_way_to_both_is_taken(like, method):
    """log_prob is not called, which is slow in a flow with an expensive inverse."""
    both = lambda self, *, seed: (seed, "its log_prob")
    flow = type("Flow", (like,), {method: both, "log_prob": lambda self, value: 1 / 0})
    assert adapt(flow(*parameters())).sample_and_log_prob("key") == ("key", "its log_prob")


@normals
def test_mean_is_a_method_whatever_it_was(make):
    assert (adapt(make(*parameters())).mean() == parameters()[0]).all()


def test_a_mean_without_a_formula_is_that_of_draws():
    """E sigmoid(z), z normal: numpyro's transformed distribution does not implement it."""
    base = numpyro_normal(*parameters())
    q = adapt(dist.TransformedDistribution(base, dist.transforms.SigmoidTransform()))
    mean = jax.jit(partial(mean_of, q, num_samples=NUM_DRAWS))(jax.random.key(0))
    density = lambda z, loc, scale, power: (
        scipy.special.expit(z) ** power * scipy.stats.norm(loc, scale).pdf(z)
    )
    for actual, loc, scale in zip(mean, LOC, SCALE, strict=True):
        span = (loc - 12 * scale, loc + 12 * scale)
        first, second = (
            scipy.integrate.quad(density, *span, args=(loc, scale, power))[0] for power in (1, 2)
        )
        assert abs(actual - first) < 4 * np.sqrt((second - first**2) / NUM_DRAWS)


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (dist.Normal(jnp.zeros(2)).to_event(1), True),
        (dist.Gamma(jnp.ones(2)).to_event(1), True),
        (dist.Poisson(jnp.ones(2)).to_event(1), False),
        (
            dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(jnp.ones(2))),
            False,
        ),
        (DistraxLike(jnp.zeros(2), jnp.ones(2)), True),
        (TfpLike(jnp.zeros(2), jnp.ones(2)), True),
    ],
    ids=["normal", "gamma", "poisson", "mixture", "distrax normal", "tfp normal"],
)
def test_adapted_declares_whether_draws_carry_gradients(inner, expected):
    assert adapt(inner).reparameterized is expected


def test_integer_draws_carry_no_gradient_and_tfp_s_declaration_counts():
    counts = lambda self, *, seed: jax.random.poisson(seed, self.scale)
    integers = type("Counts", (DistraxLike,), {"sample": counts})
    says_not = type("Not", (TfpLike,), {"reparameterization_type": "NOT_REPARAMETERIZED"})
    assert adapt(integers(*parameters())).reparameterized is False
    assert adapt(says_not(*parameters())).reparameterized is False


@pytest.mark.parametrize("make", [DistraxLike, TfpLike])
def test_bounds_take_it_for_encoder_decoder_and_prior(make):
    """Draws and weights are those of Gaussian; the KL is sampled."""
    foreign = lambda loc, log_scale: adapt(make(loc, jnp.exp(log_scale)))

    def bound_of(gaussian, x):
        zero = jnp.zeros_like(x)
        return iwae(
            jax.random.key(0),
            x,
            encode=lambda x: gaussian(x / 2, zero - 0.5),
            decode=lambda z: gaussian(jnp.sin(z), zero),
            prior=gaussian(zero, zero),
            num_samples=3,
        )

    with jax.enable_x64(True):
        ours, theirs = (
            jax.jit(partial(bound_of, family))(jnp.asarray(LOC)) for family in (Gaussian, foreign)
        )
    for field in ("objective", "log_weights"):
        np.testing.assert_allclose(getattr(theirs, field), getattr(ours, field), rtol=1e-12)
    expected_elbo = np.mean(np.asarray(ours.log_weights))
    np.testing.assert_allclose(theirs.elbo, expected_elbo, rtol=1e-12)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normal:
    """A normal of distrax and TFP: parameters by name, one density per entry."""

    __module__ = "distrax.stand_in"

    loc: jax.Array
    scale: jax.Array

    def sample(self, *, seed):
        return self.loc + self.scale * jax.random.normal(seed, jnp.shape(self.loc))

    def log_prob(self, value):
        return jax.scipy.stats.norm.logpdf(value, self.loc, self.scale)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Independent:
    """Their Independent, which holds the base as `distribution`; and a KL as a method."""

    __module__ = "distrax.stand_in"
    reinterpreted_batch_ndims: ClassVar = 1
    distribution: Normal

    def sample(self, *, seed):
        return self.distribution.sample(seed=seed)

    def log_prob(self, value):
        return self.distribution.log_prob(value).sum()

    def kl_divergence(self, other):
        raise NotImplementedError


INDEPENDENT = {
    "numpyro": lambda loc, scale: adapt(dist.Normal(loc, scale).to_event(1)),
    "distrax, TFP": lambda loc, scale: adapt(Independent(Normal(loc, scale))),
}


@pytest.mark.parametrize("make", INDEPENDENT.values(), ids=INDEPENDENT)
def test_kl_of_independent_normals_is_that_of_our_gaussians(make):
    """On either side, per latent too, and so with free bits."""
    loc, scale = jnp.asarray(LOC, jnp.float32), jnp.asarray(SCALE, jnp.float32)
    ours, prior = Gaussian(loc, jnp.log(scale)), Gaussian.standard(3)
    theirs, their_prior = make(loc, scale), make(jnp.zeros(3), 1.0)
    exact = float(kl(ours, prior))
    for q, p in ((theirs, prior), (ours, their_prior), (theirs, their_prior)):
        np.testing.assert_allclose(kl(q, p), exact, rtol=1e-6)
        np.testing.assert_allclose(kl_per_latent(q, p), kl_per_latent(ours, prior), rtol=1e-6)
    bounds = [
        elbo(jax.random.key(0), loc, encode=lambda x, q=q: q, decode=lambda z: ours, prior=p,
             free_bits=0.5)
        for q, p in ((ours, prior), (theirs, their_prior))
    ]  # fmt: skip
    np.testing.assert_allclose(bounds[1].kl, exact, rtol=1e-6)
    np.testing.assert_allclose(
        bounds[1].objective - bounds[1].elbo, bounds[0].objective - bounds[0].elbo, rtol=1e-5
    )


def test_classes_of_equal_names_elsewhere_or_over_other_events_have_no_formula(monkeypatch):
    """A `scale` may be a precision there, and a batch of normals is no vector."""
    q = adapt(Independent(Normal(jnp.zeros(3), jnp.ones(3))))
    assert isinstance(q.native(), Gaussian)
    monkeypatch.setattr(Independent, "reinterpreted_batch_ndims", 0)
    assert q.native() is q
    monkeypatch.setattr(Independent, "reinterpreted_batch_ndims", 1)
    monkeypatch.setattr(Independent, "__module__", "somebody")
    assert q.native() is q
    matrix = adapt(dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(2))
    assert matrix.native() is matrix


def test_kl_of_a_pair_that_its_library_knows_is_the_library_s():
    q, p = dist.Gamma(jnp.array(2.0), 1.0), dist.Gamma(jnp.array(3.0), 2.0)
    a, b, c, d = 2.0, 1.0, 3.0, 2.0  # KL(Gamma(a, b) || Gamma(c, d)), rates b and d
    expected = (
        (a - c) * scipy.special.digamma(a) - scipy.special.gammaln(a) + scipy.special.gammaln(c)
        + c * np.log(b / d) + a * (d - b) / b
    )  # fmt: skip
    np.testing.assert_allclose(kl(adapt(q), adapt(p)), expected, rtol=1e-5)


def test_kl_of_a_pair_without_a_formula_is_estimated():
    q, p = adapt(dist.Logistic(0.0, 1.0)), adapt(dist.Cauchy(0.0, 1.0))
    with pytest.raises(ValueError, match="Adapted against Adapted has no closed form"):
        kl(q, p)
    # Two that are no one event: theirs would be a KL per entry.
    several = [adapt(dist.Gamma(jnp.full(3, a), 1.0)) for a in (2.0, 3.0)]
    with pytest.raises(ValueError, match="has no closed form"):
        kl(*several)


def test_a_library_s_kl_can_be_entered_as_the_formula(monkeypatch):
    monkeypatch.setitem(
        divergences.CLOSED_FORMS,
        (Adapted, Adapted),
        lambda q, p: dist.kl_divergence(q.inner, p.inner),
    )
    loc, scale = parameters()
    theirs = kl(adapt(numpyro_normal(loc, scale)), adapt(numpyro_normal(loc / 2, scale * 2)))
    ours = kl(Gaussian(loc, jnp.log(scale)), Gaussian(loc / 2, jnp.log(scale * 2)))
    np.testing.assert_allclose(theirs, ours, rtol=10 * EPS)


# Transform


@normals
def test_adapted_is_a_pytree_of_the_library_s_parameters(make):
    q = adapt(make(*parameters()))
    leaves, structure = jax.tree.flatten(q)
    assert len(leaves) == 2
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, Adapted)
    chex.assert_trees_all_equal(again.log_prob(jnp.asarray(VALUE)), q.log_prob(jnp.asarray(VALUE)))


@pytest.mark.slow
@normals
def test_eager_jit_and_vmap_agree_inside_and_across(make):
    """Made in one vmap or jit and used in another, as bounds and evaluation do with q(z|x)."""
    loc, scale = parameters()
    locs, keys = jnp.stack([loc, -loc]), jax.random.split(jax.random.key(0), 2)
    of_one = lambda q, key: q.sample_and_log_prob(key)
    expected = [of_one(adapt(make(row, scale)), key) for row, key in zip(locs, keys, strict=True)]
    batch = jax.jit(jax.vmap(lambda row: adapt(make(row, scale))))(locs)
    actual = jax.jit(jax.vmap(of_one))(batch, keys)
    stacked = [jnp.stack(values) for values in zip(*expected, strict=True)]
    chex.assert_trees_all_close(list(actual), stacked, rtol=20 * EPS)


@normals
def test_stop_gradient_stops_it_and_nothing_else_does(make):
    value, (loc, scale) = jnp.asarray(VALUE, jnp.float32), parameters()
    log_prob = lambda loc, through: through(adapt(make(loc, scale))).log_prob(value)
    assert (jax.grad(log_prob)(loc, without_gradient) == 0).all()
    gradient = jax.grad(log_prob)(loc, lambda q: q)
    np.testing.assert_allclose(gradient, (VALUE - LOC) / SCALE**2, rtol=10 * EPS)


@normals
def test_draws_are_reparameterized(make):
    """d z / d loc = 1, d z / d scale = eps."""
    loc, scale = parameters()
    key = jax.random.key(0)
    total = lambda loc, scale: adapt(make(loc, scale)).sample(key).sum()
    by_loc, by_scale = jax.grad(total, (0, 1))(loc, scale)
    assert (by_loc == 1).all()
    np.testing.assert_allclose(by_scale, jax.random.normal(key, loc.shape), rtol=10 * EPS)


# Failure


class NoSample:
    def log_prob(self, value):
        return 0.0


class NoLogProb:
    def sample(self, key):
        return key


class NoKey(NoSample):
    def sample(self):
        return 0.0


class NeedsMore(NoSample):
    def sample(self, key, temperature):
        return key


class NeedsMoreThanSeed(NoSample):
    def sample(self, temperature, seed=None):
        return seed


class NoMean(NoSample, NoLogProb):
    pass


class NotImplementedMean(NoMean):
    def mean(self):
        raise NotImplementedError


class BrokenMean(NoMean):
    @property
    def mean(self):
        raise AttributeError("its own mistake")


@pytest.mark.parametrize(
    "wrong", [NoSample(), NoLogProb(), NoKey(), NeedsMore(), NeedsMoreThanSeed(), None]
)
def test_adapt_rejects_an_object_that_is_not_a_distribution(wrong):
    name = type(wrong).__name__
    with pytest.raises(
        TypeError,
        match=r"adapt: a distribution must have log_prob\(value\) and sample\(key\) or "
        rf"sample\(seed=key\), but {name} lacks one of them\. Pass an instance with both\.",
    ):
        adapt(wrong)


def test_a_class_in_place_of_an_instance_is_rejected():
    with pytest.raises(TypeError, match="Pass an instance with both"):
        adapt(dist.Normal)


@pytest.mark.parametrize("inner", [NoMean(), NotImplementedMean()])
def test_a_missing_mean_raises_no_closed_form(inner):
    with pytest.raises(NoClosedForm, match=f"mean: the expectation of {type(inner).__name__} must"):
        adapt(inner).mean()


def test_a_mean_s_own_error_is_not_hidden():
    with pytest.raises(AttributeError, match="its own mistake"):
        adapt(BrokenMean()).mean()


def rejected_by(bound, q, decode):
    run = partial(bound, encode=lambda x: q, decode=decode, prior=q, num_samples=2)
    jax.eval_shape(run, jax.random.key(0), jnp.zeros(2))


@pytest.mark.parametrize("bound", [elbo, iwae], ids=["elbo", "iwae"])
def test_a_distribution_over_a_batch_of_events_is_rejected_by_the_bounds(bound):
    forgotten = adapt(dist.Normal(jnp.zeros(2), jnp.ones(2)))
    with pytest.raises(ValueError, match=r"decode\(z\)\.log_prob\(x\) must be a scalar.*to_event"):
        rejected_by(bound, Gaussian.standard(2), lambda z: forgotten)


@pytest.mark.parametrize("bound", [elbo, iwae], ids=["elbo", "iwae"])
def test_a_posterior_whose_draws_carry_no_gradient_is_rejected_by_the_bounds(bound):
    rates = adapt(dist.Poisson(jnp.ones(2)).to_event(1))
    with pytest.raises(ValueError, match="draws of Adapted carry no gradient"):
        rejected_by(bound, rates, lambda z: Gaussian(z.astype(float), jnp.zeros(2)))
