"""`row_product`: values and derivatives of jax's product, as one product over all batch axes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.cpu.row_product import row_product

W = jax.random.normal(jax.random.key(0), (4, 5))
Z = jax.random.normal(jax.random.key(1), (3, 2, 4))


def one(product, w, z):
    return jnp.sum(jnp.square(jnp.tanh(product(z, w))))


def of_draws(product, w, zs):
    return jax.vmap(partial(one, product, w))(zs).sum()


def loss(product, w, zs):
    return jax.vmap(partial(of_draws, product, w))(zs).mean()


def scanned(product, w, zs):
    add = lambda total, z: (total + one(product, w, z), None)
    return jax.lax.scan(add, 0.0, zs)[0]


FORMS = {
    "value": loss,
    "gradients": lambda product, w, z: jax.grad(partial(loss, product), (0, 1))(w, z),
    "each gradient": lambda product, w, z: jax.vmap(
        jax.grad(partial(of_draws, product)), (None, 0)
    )(w, z),
    "many matrices": lambda product, w, z: jax.vmap(jax.grad(partial(loss, product)), (0, None))(
        jnp.stack([w, 2 * w]), z
    ),
    "matrices and rows": lambda product, w, z: jax.vmap(product)(z[:, 0], jnp.stack([w] * 3)),
    "forward": lambda product, w, z: jax.jvp(partial(loss, product), (w, z), (w, z)),
    "hessian": lambda product, w, z: jax.hessian(partial(one, product))(w, z[0, 0]),
    "recomputed": lambda product, w, z: jax.grad(jax.checkpoint(partial(loss, product)))(w, z),
    "scanned": lambda product, w, z: jax.vmap(jax.grad(partial(scanned, product)), (None, 0))(w, z),
    "last axis": lambda product, w, z: jax.vmap(product, (2, None), 1)(z.swapaxes(1, 2), w),
}


@pytest.mark.parametrize("form", FORMS)
def test_values_and_derivatives_are_jaxs(form):
    ours, jaxs = (
        jax.jit(partial(FORMS[form], product))(W, Z) for product in (row_product, jnp.matmul)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), ours, jaxs)


def test_two_batch_axes_are_summed_over_as_one():
    """jax's own product would sum over two axes, for which XLA copies the operands."""
    contracted = {}
    for product in (row_product, jnp.matmul):
        text = jax.jit(jax.grad(partial(loss, product))).lower(W, Z).as_text()
        contracted[product] = "contracting_dims = [0, 1] x [0, 1]" in text
    assert contracted == {row_product: False, jnp.matmul: True}
