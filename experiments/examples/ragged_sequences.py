"""GRU encoder over sequences of different lengths, with a mask for the padding.

python -m experiments.examples.ragged_sequences
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxvae

LENGTH = 12


class Encoder(nn.Module):
    """A GRU over the first `length` steps; its last carry gives q(z|x)."""

    @nn.compact
    def __call__(self, x, length):
        carry, _ = nn.RNN(nn.GRUCell(16), return_carry=True)(x[:, None], seq_lengths=length)
        return jaxvae.Gaussian(*jnp.split(nn.Dense(4)(carry), 2))


class Decoder(nn.Module):
    """Decode all time steps from z; the bound's mask leaves out those beyond the end."""

    @nn.compact
    def __call__(self, z):
        loc = nn.Dense(LENGTH)(nn.tanh(nn.Dense(32)(z)))
        return jaxvae.Gaussian(loc, self.param("log_scale", nn.initializers.zeros, ()))


encoder, decoder = Encoder(), Decoder()


def elbo(params, key, x, length):
    """Evidence lower bound of the first `length` entries of x, in nats."""
    return jaxvae.elbo(
        key,
        x,
        encode=lambda x: encoder.apply(params["encoder"], x, length),
        decode=lambda z: decoder.apply(params["decoder"], z),
        prior=jaxvae.Gaussian.standard(2),
        mask=jnp.arange(LENGTH) < length,  # the padding may have any value, NaN included
    ).objective


def mean_elbo(params, key, xs, lengths):
    """Mean bound per observed time step, in nats."""
    keys = jax.random.split(key, len(xs))
    bounds = jax.vmap(elbo, in_axes=(None, 0, 0, 0))(params, keys, xs, lengths)
    return bounds.sum() / lengths.sum()


@jax.jit
def step(params, opt_state, key):
    """One step of Adam."""
    gradient = jax.grad(lambda params: -mean_elbo(params, key, xs, lengths))(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state


key = jax.random.key(0)
key_phase, key_noise, key_length = jax.random.split(key, 3)
phase = jax.random.uniform(key_phase, (256, 1), maxval=2 * jnp.pi)
xs = jnp.sin(jnp.arange(LENGTH) / 2 + phase) + 0.1 * jax.random.normal(key_noise, (256, LENGTH))
lengths = jax.random.randint(key_length, (256,), 4, LENGTH + 1)
xs = jnp.where(jnp.arange(LENGTH) < lengths[:, None], xs, jnp.nan)
params = {
    "encoder": encoder.init(key, jnp.zeros(LENGTH), LENGTH),
    "decoder": decoder.init(key, jnp.zeros(2)),
}
optimizer = optax.adam(1e-2)
opt_state = optimizer.init(params)
before = mean_elbo(params, key, xs, lengths)
for t in range(400):
    params, opt_state = step(params, opt_state, jax.random.fold_in(key, t))
after = mean_elbo(params, key, xs, lengths)
print(f"ELBO {after:.2f} nats per time step, {before:.2f} before training")
