"""Mistakes in published code: each wrong formula violates a law that this library's obeys."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from experiments.run.optimization import make_optimizer
from experiments.show.drawing import draw
from jaxvae import Bernoulli, Gaussian, elbo, iwae, kl, log_likelihood
from jaxvae.checkpoints import Checkpoints, load
from jaxvae.evaluation import make_score
from jaxvae.models.vae import VAE
from jaxvae.training.state import init_state
from tests.oracles import (
    LARGE,
    SMALL,
    drawn,
    drawn_at_posterior,
    functions,
    in_float64,
    log_mean_exp,
    means_and_errors,
    oracle,
    posterior_moments,
    to_jax,
)

OF_EACH_KIND = ("elbo", "iwae", "tvo")


def log_likelihoods(case, z):
    """log p(x|z) of the oracle for z [B, K, Z], in float64."""
    model, _, x = oracle(case)
    center = z @ model.weight.T + model.bias
    return scipy.stats.norm.logpdf(x, center, np.exp(model.log_scale)).sum(-1)


# Law: bounds


@pytest.mark.slow
def test_iwae_by_self_normalized_weights_is_not_a_bound():
    """pythae returns sum_k w_k log w_k for normalized w: the gradient is right, but the value is
    above the bound by log K minus the entropy of w."""
    results, log_prob = drawn(LARGE, 64, ("iwae",))
    result = results["iwae"]
    log_weights = in_float64(result.log_weights)
    weights = scipy.special.softmax(log_weights, axis=1)
    published = np.sum(weights * log_weights, axis=1)
    (wrong, error_wrong), (right, error) = means_and_errors(published, result.objective)
    assert wrong > log_prob + 4 * error_wrong
    assert right <= log_prob + 4 * error
    excess = np.log(64) - scipy.stats.entropy(weights, axis=1)
    np.testing.assert_allclose(published - excess, result.objective, rtol=1e-5)


@pytest.mark.slow
def test_iwae_that_weighs_the_worst_most_gets_worse_with_more_samples():
    """PyTorch-VAE weighs samples by the softmax of their losses, with one KL for all of them."""
    published, ours = [], []
    for num_samples in (4, 64):
        result = drawn(LARGE, num_samples, ("iwae",))[0]["iwae"]
        losses = result.kl[:, None] - log_likelihoods(LARGE, result.samples)
        published.append(-np.sum(scipy.special.softmax(losses, axis=1) * losses, axis=1))
        ours.append(result.objective)
    (few, error_few), (many, error_many) = means_and_errors(*published)
    assert many - few < -8 * np.hypot(error_few, error_many)
    (few, error_few), (many, error_many) = means_and_errors(*ours)
    assert many - few > 4 * np.hypot(error_few, error_many)


def test_weights_of_a_whole_batch_are_looser_than_those_of_each_example():
    """Pyro's RenyiELBO sums over the batch before the logarithm: one weight for all latents."""
    model, q, x = to_jax(oracle(SMALL))
    run = lambda key: iwae(key, x, **functions(model, q), num_samples=8)
    batches = jax.random.split(jax.random.key(0), (200, 20))
    over_all = jax.jit(partial(jax.lax.map, jax.vmap(run)))
    result = over_all(batches)
    grouped = log_mean_exp(in_float64(result.log_weights).sum(1)) / 20
    ours = in_float64(result.objective).mean(1)
    (loose, error_loose), (tight, error) = means_and_errors(grouped, ours)
    assert tight - loose > 8 * np.hypot(error_loose, error)
    assert tight <= model.log_prob(x) + 4 * error


@pytest.mark.parametrize(
    ("published", "weights"),
    [("a mean over pixels", (1 / 20, 1)), ("a mean over latents", (1, 1 / 4)),
     ("jax-ai-stack: both, and 0.1 of the KL", (1 / 20, 0.1 / 4))],
)  # fmt: skip
def test_a_mean_over_pixels_or_latents_is_not_a_bound(published, weights):
    """The mean is above log p(x)."""
    results, log_prob = drawn(LARGE, 4, ("elbo",))
    result = results["elbo"]
    of_likelihood, of_kl = weights
    wrong = of_likelihood * result.reconstruction - of_kl * result.kl
    (mean, error), (right, error_right) = means_and_errors(wrong, result.elbo)
    assert mean > log_prob + 4 * error, published
    assert right <= log_prob + 4 * error_right


def test_another_kl_weight_in_validation_judges_by_another_sigma():
    """PyTorch-VAE trains with c |x - f|^2 + w KL and chooses checkpoints with w = 1: an ELBO of
    another sigma. Ours reports the same ELBO whatever beta trains with."""
    model, q, x = to_jax(oracle(SMALL))
    run = lambda beta: elbo(jax.random.key(0), x, **functions(model, q), beta=beta)
    trained, plain = jax.jit(run)(0.00025), jax.jit(run)(1.0)
    assert trained.elbo == plain.elbo == plain.objective
    assert abs(trained.objective - trained.elbo) > 0.01


def test_a_mean_squared_error_with_a_whole_kl_is_a_sigma_nobody_chose():
    """autoencoders 0.6.8: the mean over D of (x - f)^2 plus the KL is, but for a factor of 1 and a
    constant, the negative ELBO of sigma^2 = D / 2, where a unit variance was meant."""
    dim, rng = 50, np.random.default_rng(0)
    x, f = jnp.asarray(rng.normal(size=(2, dim)))
    published = lambda f: jnp.mean(jnp.square(x - f))
    ours = lambda f, variance: -Gaussian(f, 0.5 * jnp.log(variance)).log_prob(x)
    slope, slope_of_ours = jax.jit(jax.grad(published))(f), jax.jit(jax.grad(ours))
    np.testing.assert_allclose(slope, slope_of_ours(f, dim / 2), rtol=1e-5)
    np.testing.assert_allclose(slope_of_ours(f, 1.0), dim / 2 * slope, rtol=1e-5)


def test_a_kl_that_is_counted_twice_misses_log_prob_by_one():
    """TFP's KLDivergenceRegularizer can add its KL to the loss a second time. That is still a
    bound, but at the true posterior, where an ELBO is log p(x), it is lower by the KL."""
    results, log_prob = drawn_at_posterior(SMALL, OF_EACH_KIND)
    result = results["elbo"]
    (twice, error_twice), (once, error) = means_and_errors(
        result.reconstruction - 2 * result.kl, result.objective
    )
    rate = float(result.kl[0])
    assert abs(once - log_prob) <= 4 * error
    assert abs(log_prob - rate - twice) <= 4 * error_twice
    assert rate > 8 * error_twice
    rounding = 4 * np.finfo(result.kl.dtype).eps * (np.abs(result.reconstruction) + result.kl)
    assert (np.abs(result.objective - (result.reconstruction - result.kl)) <= rounding).all()


def test_a_better_posterior_has_a_higher_elbo():
    """vdvae, scvi and disentanglement_lib use that name for the negative ELBO, which is lower for
    the better q."""
    at_posterior, log_prob = drawn_at_posterior(SMALL, OF_EACH_KIND)
    off, log_prob_off = drawn(SMALL, 4, OF_EACH_KIND)
    np.testing.assert_allclose(log_prob, log_prob_off, rtol=1e-6)
    (best, error), (worse, error_worse) = means_and_errors(
        at_posterior["elbo"].elbo, off["elbo"].elbo
    )
    assert best - worse > 8 * np.hypot(error, error_worse)
    assert -best < -worse
    for results in (at_posterior, off):
        for name in OF_EACH_KIND:  # the objective goes the same way
            assert abs(results[name].objective.mean() - log_prob) < 2.0


# Law: distributions


def test_a_density_with_a_misplaced_parenthesis_does_not_integrate_to_one():
    """PyTorch-VAE's VampPrior: -1/2 (log_var + (z - mu)^2) / exp(log_var)."""
    z, loc, log_var = np.linspace(-60.0, 60.0, 200_001), 0.5, 1.2
    published = -0.5 * (log_var + (z - loc) ** 2) / np.exp(log_var)
    q = Gaussian(jnp.array(loc), jnp.array(log_var / 2))
    ours = in_float64(jax.jit(jax.vmap(q.log_prob))(jnp.asarray(z, jnp.float32)))
    assert abs(np.trapezoid(np.exp(ours), z) - 1) < 1e-5
    constant = 0.5 * np.log(2 * np.pi)
    assert abs(np.trapezoid(np.exp(published - constant), z) - 1) > 0.3


def test_a_cross_entropy_by_the_log_of_one_less_a_probability_is_not_finite():
    """Flax's example: log(-expm1(log_sigmoid(l))) for log(1 - p)."""

    def published(logit, label):
        log_p = jax.nn.log_sigmoid(logit)
        return label * log_p + (1 - label) * jnp.log(-jnp.expm1(log_p))

    ours = lambda logit, label: Bernoulli(logit[None]).log_prob(label[None])
    logits = jnp.array([90.0, 90.0, 1e4, -1e4])
    labels, expected = jnp.array([1.0, 0.0, 0.0, 1.0]), [0.0, -90.0, -1e4, -1e4]
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(published)))(logits, labels)
    assert np.isnan(value[0])
    assert np.isnan(slope[0])
    assert value[1] == -np.inf
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(ours)))(logits, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, [0.0, -1.0, -1.0, 1.0], rtol=0, atol=1e-6)


def test_a_probability_in_float32_forgets_what_the_logit_knew():
    """numpyro's and Pyro's examples: Bernoulli(sigmoid(l))."""
    logit = jnp.array([20.0])
    published = jnp.log1p(-jax.nn.sigmoid(logit))[0]
    assert published == -np.inf
    np.testing.assert_allclose(Bernoulli(logit).log_prob(jnp.zeros(1)), -20.0, rtol=1e-6)


def test_softplus_of_a_logit_is_not_a_probability():
    """jax's mnist_vae: random.bernoulli(key, logaddexp(0, logits))."""
    logits = jnp.array([-2.0, 0.0, 2.0])
    published = jnp.logaddexp(0.0, logits)
    assert published.max() > 1.0
    keys = jax.random.split(jax.random.key(0), 4000)
    both = lambda key: (Bernoulli(logits).sample(key), jax.random.bernoulli(key, published))
    ours, theirs = (draws.mean(0) for draws in in_float64(jax.jit(jax.vmap(both))(keys)))
    p = scipy.special.expit(in_float64(logits))
    error = np.sqrt(p * (1 - p) / 4000)
    assert (np.abs(ours - p) <= 4 * error).all()
    assert (np.abs(theirs - p) > 4 * error)[1:].all()


def test_a_bernoulli_is_not_a_density_of_grey_levels():
    """Pyro's example feeds them: over [0, 1] the exponential of what comes out does not integrate
    to 1. Over 0 and 1, which is what it is for, it sums to 1; for a grey value it is the mean over
    binarizations, and said to be."""
    q, grey = Bernoulli(jnp.array([0.7])), jnp.linspace(0.0, 1.0, 1001)
    log_prob = jax.jit(jax.vmap(lambda x: q.log_prob(x[None])))
    assert abs(np.trapezoid(np.exp(in_float64(log_prob(grey))), grey) - 1) > 0.4
    both = in_float64(log_prob(jnp.array([0.0, 1.0])))
    np.testing.assert_allclose(np.exp(both).sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(log_prob(grey)[250], both @ [0.75, 0.25], rtol=1e-6)


def test_a_kl_sums_every_axis_of_the_event():
    """diffusers sums axes 1, 2, 3 of a batch: of video [B, C, T, H, W] the last is left over."""
    rng = np.random.default_rng(1)
    for shape in ((3, 4, 5), (2, 3, 4, 5)):
        loc, log_scale = rng.normal(size=(2, *shape)).astype(np.float32)
        published = 0.5 * (loc**2 + np.exp(2 * log_scale) - 1 - 2 * log_scale)
        published = published.sum(axis=(0, 1, 2))
        standard = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        of_two = jax.jit(lambda q, p: kl(Gaussian(*q), Gaussian(*p)))
        ours = of_two((loc, log_scale), standard)
        flat = of_two((loc.ravel(), log_scale.ravel()), jax.tree.map(np.ravel, standard))
        assert ours.shape == ()
        np.testing.assert_allclose(ours, flat, rtol=1e-5)
        assert (published.shape == ()) == (len(shape) == 3)


# Law: evaluation


def test_a_log_likelihood_has_the_right_sign_and_number_of_samples():
    """pythae's get_nll returns the mean of +log p(x), and takes a batch of samples for n_samples
    below its size: 1 is 100."""
    model, q, x = to_jax(oracle(LARGE))
    sides = functions(model, q)
    run = lambda key: log_likelihood(key, x, **sides, num_samples=1, sample_chunk_size=100)
    many = lambda key: log_likelihood(key, x, **sides, num_samples=100, sample_chunk_size=100)
    keys = jax.random.split(jax.random.key(0), 500)
    one, hundred = jax.jit(partial(jax.lax.map, lambda key: (run(key), many(key))))(keys)
    (of_one, error_of_one), (of_hundred, error) = means_and_errors(one, hundred)
    log_prob, exact_elbo = jax.jit(lambda model: (model.log_prob(x), model.elbo(x, q)))(model)
    assert log_prob < 0, "a log density, not its negative"
    assert abs(of_hundred - log_prob) < 0.3
    assert of_hundred <= log_prob + 4 * error
    assert abs(of_one - exact_elbo) <= 4 * error_of_one
    assert of_hundred - of_one > 8 * error_of_one


def test_a_code_is_a_mean_and_not_a_draw():
    """pythae's reconstruct, embed and interpolate decode a draw of q, in evaluation too: another
    result at each call, and further from x than the mean's by tr(W S W^T) on average."""
    model, _, x = oracle(SMALL)
    vae = VAE(
        init=lambda key: to_jax(model),
        encode=lambda params, x: params.posterior(x),
        decode=lambda params, z: params.decode(z),
        prior=lambda params: params.prior(),
    )
    params, x = jax.tree.map(jnp.float32, (model, x))
    keys = jax.random.split(jax.random.key(0), 2000)
    published = jax.jit(jax.vmap(lambda key: vae.encode(params, x).sample(key)))(keys)
    assert len(np.unique(in_float64(published), axis=0)) == len(keys)
    score = jax.jit(lambda key: make_score(vae)(params, key, x).posterior_mean)
    codes = in_float64([score(key) for key in keys[:2]])
    np.testing.assert_array_equal(codes[0], codes[1])
    shown = [draw(vae, params, np.asarray(x)[None], key, num_samples=1) for key in keys[:2]]
    for name in ("reconstructions", "interpolations"):
        np.testing.assert_array_equal(*[getattr(drawing, name) for drawing in shown])
    by_draw = in_float64(published) @ model.weight.T + model.bias
    errors = np.square(by_draw - x[None]).sum(1)
    ((mean, error),) = means_and_errors(errors)
    best = np.square(shown[0].reconstructions[0] - x).sum()
    scatter = np.trace(model.weight @ posterior_moments(model, np.float64(x))[1] @ model.weight.T)
    assert abs(mean - best - scatter) <= 4 * error
    assert scatter > 8 * error


# Law: checkpoints


@pytest.mark.slow
def test_weights_and_optimizer_of_two_steps_resume_differently(whole_run):
    """pythae saves its best weights beside the latest optimizer state, and neither step nor random
    state: the next update is another. Ours are of one step in every checkpoint."""
    vae, params = load(whole_run.run)
    optimizer = make_optimizer(whole_run, whole_run.num_steps)
    start = partial(init_state, vae, optimizer, averaging=True)
    state = jax.eval_shape(start, jax.random.key(0))
    targets = {"params": state.params, "training": state._replace(params=None, average=None)}
    checkpoints = Checkpoints(whole_run.run / "checkpoints")
    best, latest = checkpoints.best_step(), checkpoints.latest_step()
    items = {step: checkpoints.restore(step, targets) for step in (best, latest)}
    assert best < latest
    for step, item in items.items():
        assert item["training"].step == item["training"].opt_state[0].count == step
        assert checkpoints.about(step)["step"] == step
    checkpoints.close()
    slope = jax.tree.map(np.ones_like, params)
    update = jax.jit(lambda item: optimizer.update(slope, item["training"].opt_state)[0])
    ours, published = (jax.tree.leaves(update(items[step])) for step in (best, latest))
    assert max(np.abs(one - other).max() for one, other in zip(ours, published, strict=True)) > 1e-4
