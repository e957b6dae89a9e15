"""Training loop on several devices, with many steps per call.

python -m experiments.examples.several_devices
"""

import os

# Each simulated device blocks a thread in a reduction: with too few threads they can deadlock.
os.environ.setdefault("PJRT_NPROC", "32")

import jax
import jax.numpy as jnp
import optax

import jaxvae

if not jax.config.jax_platforms:
    jax.config.update("jax_num_cpu_devices", 4)  # only affects CPUs: simulates four devices

BATCH, STEPS_PER_CALL, CALLS = 64, 50, 6
key = jax.random.key(0)
xs = jnp.repeat(jax.random.bernoulli(key, shape=(512, 2)), 4, axis=1).astype(jnp.float32)
vae = jaxvae.mlp_vae(data_shape=(8,), latent_dim=2, hidden=(32,))
optimizer = optax.adam(1e-2)
mesh = jaxvae.make_mesh(jax.devices())
train_step = jaxvae.make_train_step(vae, optimizer, axis_name="devices")
chunk_step = jaxvae.make_chunk_step(train_step, mesh, BATCH, STEPS_PER_CALL)
state = jaxvae.init_state(vae, optimizer, key)
for call in range(CALLS):
    shape = (mesh.size, STEPS_PER_CALL, BATCH // mesh.size)  # the batch is global
    rows = jax.random.randint(jax.random.fold_in(key, call), shape, 0, len(xs))
    state, metrics = chunk_step(state, key, xs[rows], jnp.int32(STEPS_PER_CALL))
    print(f"step {state.step}: ELBO {metrics['elbo'][-1]:.2f} nats on {mesh.size} devices")
