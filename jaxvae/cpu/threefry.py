"""The draws of `jax.random`, bit for bit, at a third of the cost on a CPU.

On CPUs, jax runs the twenty rounds of its threefry generator as a loop that writes every round to
memory; unrolled, they are one pass. GPUs and TPUs have fast rounds and use `jax.random` itself, and
so do keys of other generators.

Ref: Salmon, Moraes, Dror & Shaw, Parallel random numbers: as easy as 1, 2, 3, 2011, SC.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


@partial(jax.jit, static_argnames="shape", inline=True)
def bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.bits`, 32 bits each: [*shape] uint32.

    >>> key = jax.random.key(0)
    >>> bool((bits(key, (3, 2)) == jax.random.bits(key, (3, 2))).all())
    True
    """

    typed = jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key)
    ours = typed and str(jax.random.key_impl(key)) == "threefry2x32"
    jaxs = lambda key: jax.random.bits(key, shape, jnp.uint32)
    by_index = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if not ours or not by_index:
        return jaxs(key)
    with jax.named_scope("draws"):
        return jax.lax.platform_dependent(key, cpu=partial(_threefry_bits, shape), default=jaxs)


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.uniform`: [*shape] float32 in [0, 1).

    >>> float(uniform(jax.random.key(0), ()) - jax.random.uniform(jax.random.key(0)))
    0.0
    """
    mantissa = bits(key, shape) >> 9
    return jax.lax.bitcast_convert_type(mantissa | np.float32(1).view(np.uint32), jnp.float32) - 1


def bernoulli(key: jax.Array, p: jax.Array) -> jax.Array:
    """`jax.random.bernoulli`: True with probability p, in p's shape; faster for float32.

    >>> bool(bernoulli(jax.random.key(0), jnp.ones(())))
    True
    """
    if p.dtype != jnp.float32:
        return jax.random.bernoulli(key, p)
    return (uniform(key, (p.size,)) < p.ravel()).reshape(p.shape)


@partial(jax.jit, static_argnames=("shape", "dtype"), inline=True)
def normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """`jax.random.normal`: [*shape] from N(0, 1); faster for float32.

    >>> normal(jax.random.key(0), (2,), jnp.float32).dtype
    dtype('float32')
    """
    if dtype != jnp.float32:
        return jax.random.normal(key, shape, dtype)
    low = np.nextafter(np.float32(-1), np.float32(0))
    with jax.named_scope("draws"):
        u = jnp.maximum(low, uniform(key, shape) * (1 - low) + low)
        return np.float32(math.sqrt(2)) * jax.lax.erf_inv(u)


def _threefry_bits(shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """Encrypt the index of each number to a block, and combine its two halves by exclusive or."""
    first, second = jax.random.key_data(key)
    schedule = (first, second, first ^ second ^ jnp.uint32(PARITY))
    index = jax.lax.iota(jnp.uint32, math.prod(shape))
    a, b = jnp.full_like(index, first), index + second
    for i in range(5):
        for turn in ROTATIONS[i % 2]:
            a = a + b
            b = (b << turn | b >> (32 - turn)) ^ a
        a = a + schedule[(i + 1) % 3]
        b = b + schedule[(i + 2) % 3] + jnp.uint32(i + 1)
    return (a ^ b).reshape(shape)
