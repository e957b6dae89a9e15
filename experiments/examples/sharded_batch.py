"""Training loop on several devices, with jit and a batch that is sharded over them.

python -m experiments.examples.sharded_batch
"""

import os

# Each simulated device blocks a thread in a reduction: with too few threads they can deadlock.
os.environ.setdefault("PJRT_NPROC", "32")

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxvae

if not jax.config.jax_platforms:
    jax.config.update("jax_num_cpu_devices", 4)  # only affects CPUs: simulates four devices

BATCH, STEPS = 64, 300
key = jax.random.key(0)
xs = jnp.repeat(jax.random.bernoulli(key, shape=(512, 2)), 4, axis=1).astype(jnp.float32)
vae = jaxvae.mlp_vae(data_shape=(8,), latent_dim=2, hidden=(32,))
optimizer = optax.adam(1e-2)
mesh = jax.make_mesh((len(jax.devices()),), ("batch",), axis_types=(AxisType.Auto,))
whole, sharded = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("batch",)))
train_step = jaxvae.make_train_step(vae, optimizer)  # XLA averages over the devices by itself
step = jax.jit(train_step, donate_argnums=0)
state = jax.device_put(jaxvae.init_state(vae, optimizer, key), whole)
for t in range(STEPS):
    key_rows, key_step = jax.random.split(jax.random.fold_in(key, t))
    batch = jax.random.choice(key_rows, xs, (BATCH,))
    keys = jax.random.split(key_step, BATCH)
    state, metrics = step(state, *jax.device_put((keys, batch), sharded))
    if t % 10 == 9:
        jax.block_until_ready(state)  # simulated devices can deadlock with many calls in flight
print(f"step {state.step}: ELBO {metrics['elbo']:.2f} nats on {mesh.size} devices")
