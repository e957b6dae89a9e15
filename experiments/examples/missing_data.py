"""Training on rows with missing entries, and imputing these entries.

python -m experiments.examples.missing_data
"""

import jax
import jax.numpy as jnp
import optax

import jaxvae

S = jnp.linspace(1, 2, 8)  # the data: x = S u + noise / 2; a third of the entries are missing
key = jax.random.key(0)
key_data, key_noise, key_mask, key_init = jax.random.split(key, 4)
complete = jax.random.normal(key_data, (1024, 1)) * S
complete += jax.random.normal(key_noise, (1024, 8)) / 2
mask = jax.random.bernoulli(key_mask, 2 / 3, complete.shape)
xs = jnp.where(mask, complete, jnp.nan)
vae = jaxvae.mlp_vae(
    data_shape=(16,), latent_dim=2, hidden=(64,), likelihood="gaussian", sigma="learned"
)


def elbo(params, key, x, mask):
    """Lower bound on the log density of the observed entries, in nats."""

    def encode(x):  # the bound passes zeros where x is missing; the mask marks these entries
        return vae.encode(params, jnp.concatenate([x, mask]))

    def decode(z):
        p = vae.decode(params, z)
        return jaxvae.Gaussian(p.loc[:8], p.log_scale)

    prior = vae.prior(params)
    return jaxvae.elbo(key, x, encode=encode, decode=decode, prior=prior, mask=mask).objective


@jax.jit
def step(params, opt_state, key):
    """One step of Adam on all rows."""
    keys = jax.random.split(key, len(xs))
    loss = lambda params: -jax.vmap(elbo, in_axes=(None, 0, 0, 0))(params, keys, xs, mask).mean()
    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


def fill(params, x, mask):
    """Replace missing entries by the decoder's mean at the posterior's mean."""
    seen = jnp.where(mask, x, 0)
    z = vae.encode(params, jnp.concatenate([seen, mask])).mean()
    return jnp.where(mask, x, vae.decode(params, z).mean()[:8])


params = vae.init(key_init)
optimizer = optax.adam(3e-3)
opt_state = optimizer.init(params)
for t in range(800):
    params, opt_state = step(params, opt_state, jax.random.fold_in(key, t))
filled = jax.vmap(fill, in_axes=(None, 0, 0))(params, xs, mask)
error = jnp.sqrt(jnp.square(filled - complete).sum() / (~mask).sum())
print(f"error of imputed entries {error:.2f}, of a column's mean {jnp.std(complete):.2f}")
