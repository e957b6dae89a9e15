"""A conditional model of your own: p(x|y) for a label y, next to the exact log p(x|y).

python -m experiments.examples.conditional
"""

import jax
import jax.numpy as jnp
import optax

import jaxvae

CENTERS = jnp.array([[4.0, 0.0], [0.0, 4.0], [-4.0, -4.0]])  # x ~ N(center_y, [[2, 1], [1, 2]])
COVARIANCE = jnp.array([[2.0, 1.0], [1.0, 2.0]])

vae = jaxvae.VAE(  # each function takes the condition last
    init=lambda key: {"centers": jnp.zeros((3, 2)), "slope": jnp.ones(2), "gain": jnp.zeros(2)},
    encode=lambda params, x, y: jaxvae.Gaussian(
        (params["gain"] @ (x - params["centers"][y]))[None], jnp.log(jnp.full(1, 0.5))
    ),
    decode=lambda params, z, y: jaxvae.Gaussian(
        params["centers"][y] + params["slope"] * z, jnp.zeros(())
    ),
    prior=lambda params, y: jaxvae.Gaussian.standard(1),
    condition=jaxvae.Condition.of(3),
)
key_label, key_x, key_train, key_test = jax.random.split(jax.random.key(0), 4)
labels = jax.random.randint(key_label, (3000,), 0, 3)
xs = jax.random.multivariate_normal(key_x, CENTERS[labels], COVARIANCE)
data = jaxvae.Conditioned(xs, labels)

optimizer = optax.adam(0.02)
state = jaxvae.init_state(vae, optimizer, jax.random.key(1))
step = jax.jit(jaxvae.make_train_step(vae, optimizer))
for t in range(600):
    state, _ = step(state, jax.random.split(jax.random.fold_in(key_train, t), 3000), data)


def log_likelihood(key, x, y):
    """Estimate of log p(x|y) in nats."""
    given, params = vae.given(y), state.params  # the model of one condition, for any bound
    encode, decode = lambda x: given.encode(params, x), lambda z: given.decode(params, z)
    prior = given.prior(params)
    return jaxvae.log_likelihood(key, x, encode=encode, decode=decode, prior=prior, num_samples=100)


found = jax.vmap(log_likelihood)(jax.random.split(key_test, 3000), xs, labels)
exact = jax.scipy.stats.multivariate_normal.logpdf(xs - CENTERS[labels], jnp.zeros(2), COVARIANCE)
print(f"mean log p(x|y): exact {exact.mean():.3f}")
print(f"mean log p(x|y) less the exact one: {(found - exact).mean():.3f} nats")
