"""Training loop with optax around networks that are plain functions.

python -m experiments.examples.optax_loop
"""

import jax
import jax.numpy as jnp
import optax

import jaxvae

S = jnp.linspace(1, 2, 8)  # the data: x = S u + noise / 2, with u and noise standard normal
key_data, key_noise, key_init, key_train = jax.random.split(jax.random.key(0), 4)
xs = jax.random.normal(key_data, (4096, 1)) * S + jax.random.normal(key_noise, (4096, 8)) / 2
params = {
    "encoder": {"kernel": 0.1 * jax.random.normal(key_init, (8, 4)), "bias": jnp.zeros(4)},
    "decoder": {"kernel": 0.1 * jax.random.normal(key_init, (2, 8)), "bias": jnp.zeros(8)},
    "log_scale": jnp.zeros(()),
}
dense = lambda layer, x: x @ layer["kernel"] + layer["bias"]


def elbo(params, key, x):
    """Evidence lower bound of one example, in nats."""
    encode = lambda x: jaxvae.Gaussian(*jnp.split(dense(params["encoder"], x), 2))
    decode = lambda z: jaxvae.Gaussian(dense(params["decoder"], z), params["log_scale"])
    prior = jaxvae.Gaussian.standard(2)
    return jaxvae.elbo(key, x, encode=encode, decode=decode, prior=prior).objective


def mean_elbo(params, key, xs):
    """Mean bound of a batch, in nats; every example has its own key."""
    keys = jax.random.split(key, len(xs))
    return jax.vmap(elbo, in_axes=(None, 0, 0))(params, keys, xs).mean()


@jax.jit
def step(params, opt_state, key):
    """One step of Adam on a random batch of 128 examples."""
    key_batch, key_bound = jax.random.split(key)
    batch = jax.random.choice(key_batch, xs, (128,))
    gradient = jax.grad(lambda params: -mean_elbo(params, key_bound, batch))(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state


optimizer = optax.adam(1e-2)
opt_state = optimizer.init(params)
for t in range(2000):
    params, opt_state = step(params, opt_state, jax.random.fold_in(key_train, t))
exact = jax.scipy.stats.multivariate_normal.logpdf(
    xs, jnp.zeros(8), jnp.outer(S, S) + jnp.eye(8) / 4
)
print(f"ELBO {mean_elbo(params, key_train, xs):.2f} nats, exact log p(x) {exact.mean():.2f}")
