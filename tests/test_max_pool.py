import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from plain56 import ops

NONE, ONE = ((0, 0), (0, 0)), ((1, 1), (1, 1))


# The pools of GoogLeNet, ResNet and VGG; the windows of some overlap, reach over the edge or leave pixels out.
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 1, ONE), (3, 2, ((0, 1), (0, 0))), (3, 2, NONE), (3, 2, ONE), (2, 2, NONE), (2, 2, ((0, 0), (0, 1)))],
)
@pytest.mark.parametrize("shape", [(2, 8, 9, 3), (1, 3, 3, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_flax_and_its_gradient(shape, size, stride, padding, dtype):
    generator = np.random.default_rng(0)
    # Rectified and in few steps, so that many windows have their maximum more than once.
    x = jnp.maximum(jnp.asarray(generator.integers(-2, 3, shape), dtype), 0)
    theirs, their_gradient = jax.vjp(lambda x: nn.max_pool(x, (size, size), (stride, stride), padding), x)
    g = jnp.asarray(generator.integers(-9, 9, theirs.shape), dtype)
    ours, our_gradient = jax.jit(
        lambda x, g: (ops.max_pool(x, size, stride, padding), jax.vjp(lambda x: ops.max_pool(x, size, stride, padding), x)[1](g))
    )(x, g)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(np.asarray(ours, float), np.asarray(theirs, float))
    np.testing.assert_array_equal(np.asarray(our_gradient[0], float), np.asarray(their_gradient(g)[0], float))


def test_many_at_once_equal_one_at_a_time():
    x = jax.random.normal(jax.random.key(0), (3, 2, 6, 6, 4))
    gradient = jax.grad(lambda x: (ops.max_pool(x, 3, 2, ONE) ** 2).sum())
    np.testing.assert_array_equal(jax.vmap(gradient)(x), jnp.stack([gradient(one) for one in x]))


def test_not_a_number_stays():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2, 0].set(jnp.nan)
    np.testing.assert_array_equal(np.isnan(ops.max_pool(x, 2, 2, NONE)[0, :, :, 0]), [[False, True], [False, False]])
