"""Completing images from their visible part, which is the condition of the model.

python -m experiments.examples.completion
"""

import jax
import jax.numpy as jnp
import optax

import jaxvae

# Images of 8 x 8: one bright row, and one bright column in the hidden right half.
key_row, key_column, key_train, key_sample = jax.random.split(jax.random.key(0), 4)
rows = jax.random.randint(key_row, (2000,), 0, 8)
columns = jax.random.randint(key_column, (2000,), 4, 8)
places = jnp.arange(8)
bright = (places[:, None] == rows[:, None, None]) | (places == columns[:, None, None])
xs = bright[..., None].astype(jnp.float32)
seen = xs[:, :, :4]  # the visible part: of the row, not of the column

vae = jaxvae.conditional_vae(condition=(8, 4, 1), data_shape=(8, 8, 1), latent_dim=4, hidden=(128,))
optimizer = optax.adam(2e-3)
state = jaxvae.init_state(vae, optimizer, jax.random.key(1))
step = jax.jit(jaxvae.make_train_step(vae, optimizer))
for t in range(1500):
    key_batch, key_step = jax.random.split(jax.random.fold_in(key_train, t))
    batch = jax.random.randint(key_batch, (100,), 0, 2000)
    data = jaxvae.Conditioned(xs[batch], seen[batch])
    state, metrics = step(state, jax.random.split(key_step, 100), data)


@jax.jit
def complete(key, y):
    """Draw an image whose visible part is y."""
    given = vae.given(y)
    z = given.prior(state.params).sample(key)
    return given.decode(state.params, z).mean()


images = jax.vmap(complete)(jax.random.split(key_sample, 200), seen[:200])
row_is_right = images[:, :, 4:].mean((2, 3)).argmax(1) == rows[:200]
one_column = jnp.sum(images.mean((1, 3))[:, 4:] > 0.5, axis=1) == 1
print(images[0, :, :, 0].round())
print(f"share with the right row and one column: {(row_is_right & one_column).mean():.2f}")
