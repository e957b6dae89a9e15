"""Two levels of latents: q and p are `Hierarchy`s, drawn from the top.

python -m experiments.examples.two_levels
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

import jaxvae

# z_1 ~ N(0, I) in 1 dimension, z_2 ~ N(A z_1, I) in 2, x ~ N(W z_2, I) in 3: so is the data.
A, W = jnp.array([[2.0], [1.0]]), jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])


def top(params, carry):
    """q(z_1|x) or p(z_1), and what the next level gets: z_1 itself."""
    return jaxvae.Gaussian(params["loc"], params["log_scale"]), lambda z: z


def bottom(params, z):
    """q(z_2|z_1, x) or p(z_2|z_1)."""
    loc = params["weight"] @ z + params["shift"]
    return jaxvae.Gaussian(loc, params["noise"]), lambda z: z


def chain(params):
    """All numbers that the levels read are in `params`, so that every estimator is right."""
    return jaxvae.Hierarchy(params, (top, bottom))


def encode(params, x):
    """q(z_1, z_2|x): locations linear in x."""
    return chain(params | {"loc": params["top"] @ x, "shift": params["bottom"] @ x})


def elbo(params, key, x):
    """Evidence lower bound of one example, in nats."""
    standard = {"loc": jnp.zeros(1), "log_scale": jnp.zeros(1), "shift": jnp.zeros(2)}
    prior = chain(standard | {"weight": A, "noise": jnp.zeros(2)})
    decode = lambda z: jaxvae.Gaussian(W @ z[1], jnp.zeros(()))  # z is the tuple of both levels
    bound = jaxvae.elbo(key, x, encode=partial(encode, params), decode=decode, prior=prior)
    return bound.objective


@jax.jit
def step(params, opt_state, key):
    """One step of Adam on all rows."""
    keys = jax.random.split(key, len(xs))
    loss = lambda params: -jax.vmap(elbo, in_axes=(None, 0, 0))(params, keys, xs).mean()
    value, gradient = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state, value


key_x, key_train = jax.random.split(jax.random.key(0))
covariance = W @ (A @ A.T + jnp.eye(2)) @ W.T + jnp.eye(3)
xs = jax.random.multivariate_normal(key_x, jnp.zeros(3), covariance, (2000,))
params = {"top": jnp.zeros((1, 3)), "log_scale": jnp.zeros(1)}
params |= {"bottom": jnp.zeros((2, 3)), "weight": jnp.zeros((2, 1)), "noise": jnp.zeros(2)}
optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 1500))
opt_state = optimizer.init(params)
for t in range(1500):
    params, opt_state, loss = step(params, opt_state, jax.random.fold_in(key_train, t))
exact = jax.scipy.stats.multivariate_normal.logpdf(xs, jnp.zeros(3), covariance).mean()
print(f"log p(x) less the ELBO: {exact + loss:.3f} nats, exact log p(x) {exact:.3f}")
