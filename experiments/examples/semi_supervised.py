"""Learning classes from nine labels and 1,500 examples: the model M2.

python -m experiments.examples.semi_supervised
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae

CENTERS = jnp.array([[3.0, 0.0], [-1.5, 2.6], [-1.5, -2.6]])  # of three crescents
key_class, key_angle, key_noise, key_init, key_train = jax.random.split(jax.random.key(0), 5)
classes = jax.random.randint(key_class, (1500,), 0, 3)
angle = jax.random.uniform(key_angle, (1500,), minval=-1.5, maxval=1.5)
arcs = 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
xs = CENTERS[classes] - arcs + 0.2 * jax.random.normal(key_noise, (1500, 2))
labels = np.full(1500, -1, np.int32)
for k in range(3):
    labels[np.flatnonzero(classes == k)[:3]] = k


class Net(nn.Module):
    """A network with one hidden layer."""

    size: int

    @nn.compact
    def __call__(self, x):
        """Outputs [size]."""
        return nn.Dense(self.size)(nn.tanh(nn.Dense(64)(x)))


classify, locate, generate = Net(3), Net(2), Net(2)


def q_label(params, carry):
    """q(y|x), the classifier, and what the next level gets: y, one-hot."""
    return jaxvae.OneHotCategorical(classify.apply(params["classify"], params["x"])), lambda y: y


def q_latent(params, y):
    """q(z|x, y)."""
    loc, log_scale = locate.apply(params["locate"], jnp.concatenate([params["x"], y]))
    return jaxvae.Gaussian(loc[None], jaxvae.soft_clamp(log_scale)[None]), lambda z: z


def p_label(params, carry):
    """p(y), uniform."""
    return jaxvae.OneHotCategorical(jnp.zeros(3)), lambda y: y


def p_latent(params, y):
    """p(z)."""
    return jaxvae.Gaussian.standard(1), lambda z: z


vae = jaxvae.VAE(
    init=lambda key: {
        "classify": classify.init(key, jnp.zeros(2)),
        "locate": locate.init(key, jnp.zeros(5)),
        "generate": generate.init(key, jnp.zeros(4)),
        "log_scale": jnp.zeros(()),
    },
    encode=lambda params, x: jaxvae.Hierarchy(
        params | {"x": x}, (q_label, q_latent), reparameterized=False
    ),
    decode=lambda params, z: jaxvae.Gaussian(
        generate.apply(params["generate"], jnp.concatenate(z)), params["log_scale"]
    ),
    prior=lambda params: jaxvae.Hierarchy((), (p_label, p_latent), reparameterized=False),
)
objective = partial(jaxvae.semi_supervised, classifier_weight=300.0)
optimizer = optax.adam(1e-2)
state = jaxvae.init_state(vae, optimizer, key_init)
step = jax.jit(jaxvae.make_train_step(vae, optimizer, objective=objective))
for t in range(400):
    key_step = jax.random.fold_in(key_train, t)
    state, metrics = step(state, jax.random.split(key_step, 1500), jaxvae.Labelled(xs, labels))
found = jax.vmap(lambda x: classify.apply(state.params["classify"], x))(xs).argmax(1)
accuracy = (found == classes).mean()
error = jnp.sqrt(accuracy * (1 - accuracy) / 1500)
print(f"accuracy from 9 labels: {accuracy:.3f} +- {error:.3f}")
