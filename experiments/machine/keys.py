"""Random keys of the commands, which depend only on a seed."""

import jax


def root_key(seed: int) -> jax.Array:
    """Return the key that all keys of a command come from.

    It is a threefry key whatever `JAX_DEFAULT_PRNG_IMPL` says. Under `vmap` the bits of "rbg" and
    "unsafe_rbg" keys, usual on TPUs, depend on the whole batch: numbers would change with the batch
    size, the devices and the layout.

    >>> jax.random.key_impl(root_key(0))
    'threefry2x32'
    """
    return jax.random.key(seed, impl="threefry2x32")
