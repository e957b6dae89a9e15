"""GRU encoder over sequences of different lengths, with a mask for what is not there.

python -m experiments.examples.ragged_sequences
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxvae

LENGTH = 12  # shorter sequences are padded with NaN


class Encoder(nn.Module):
    """A GRU over the steps that are there; its last carry gives q(z|x)."""

    @nn.compact
    def __call__(self, x):
        there = jnp.isfinite(x)
        steps = jnp.where(there, x, 0)[:, None]
        carry, _ = nn.RNN(nn.GRUCell(16), return_carry=True)(steps, seq_lengths=there.sum())
        return jaxvae.Gaussian(*jnp.split(nn.Dense(4)(carry), 2))


class Decoder(nn.Module):
    """Every time step from z; the mask leaves out those beyond the end."""

    @nn.compact
    def __call__(self, z):
        loc = nn.Dense(LENGTH)(nn.tanh(nn.Dense(32)(z)))
        return jaxvae.Gaussian(loc, self.param("log_scale", nn.initializers.zeros, ()))


def masked_elbo(key, x, *, encode, **others):
    """Evidence lower bound of the entries of x that are there; the encoder sees them all."""
    mask = jnp.isfinite(x)
    return jaxvae.elbo(key, x, encode=lambda _: encode(x), mask=mask, **others)


key = jax.random.key(0)
key_phase, key_noise, key_length = jax.random.split(key, 3)
phase = jax.random.uniform(key_phase, (256, 1), maxval=2 * jnp.pi)
xs = jnp.sin(jnp.arange(LENGTH) / 2 + phase) + 0.1 * jax.random.normal(key_noise, (256, LENGTH))
lengths = jax.random.randint(key_length, (256,), 4, LENGTH + 1)
xs = jnp.where(jnp.arange(LENGTH) < lengths[:, None], xs, jnp.nan)
encoder, decoder = Encoder(), Decoder()
vae = jaxvae.VAE(
    init=lambda key: (encoder.init(key, xs[0]), decoder.init(key, jnp.zeros(2))),
    encode=lambda params, x: encoder.apply(params[0], x),
    decode=lambda params, z: decoder.apply(params[1], z),
    prior=lambda params: jaxvae.Gaussian.standard(2),
)
optimizer = optax.adam(1e-2)
state = jaxvae.init_state(vae, optimizer, key)
step = jax.jit(jaxvae.make_train_step(vae, optimizer, objective=masked_elbo))
elbos = []
for t in range(400):
    state, metrics = step(state, jax.random.split(jax.random.fold_in(key, t), len(xs)), xs)
    elbos.append(metrics["elbo"] * len(xs) / lengths.sum())
print(f"ELBO {elbos[-1]:.2f} nats per time step, {elbos[0]:.2f} before training")
