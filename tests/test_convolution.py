import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from plain56 import ops
from plain56.ops import convolution

CASES = [
    # kernel, strides, padding, image
    (1, (1, 1), ((0, 0), (0, 0)), (8, 9)),
    (1, (2, 2), ((0, 0), (0, 0)), (8, 9)),
    (3, (1, 1), ((1, 1), (1, 1)), (8, 9)),
    (3, (2, 2), ((1, 1), (1, 1)), (8, 9)),
    (3, (2, 1), ((0, 1), (1, 0)), (7, 6)),
    (3, (1, 1), ((0, 0), (0, 0)), (5, 7)),
    (5, (1, 1), ((2, 2), (2, 2)), (6, 5)),
    (7, (2, 2), ((3, 3), (3, 3)), (11, 12)),
    (3, (2, 2), ((1, 1), (1, 1)), (1, 2)),
]


def arrays(size, strides, padding, image, dtype):
    generator = np.random.default_rng(0)
    height, width = ((n + sum(p) - size) // s + 1 for n, p, s in zip(image, padding, strides, strict=True))
    shapes = (2, *image, 3), (size, size, 3, 5), (2, height, width, 5)
    return [jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("case", CASES)
def test_gradients_on_both_paths_equal_lax_autodiff(case):
    _, strides, padding, _ = case
    x, w, g = arrays(*case, jnp.float32)

    def reference(x, w):
        return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    y, pull_back = jax.vjp(reference, x, w)
    np.testing.assert_array_equal(ops.convolve(x, w, strides, padding), y)
    for gradients in (convolution._cpu_gradients, convolution._native_gradients):
        for ours, theirs in zip(gradients(strides, padding, x, w, g), pull_back(g), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-6 * float(jnp.abs(theirs).max()) + 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_gradients_on_both_paths_equal_finite_differences(case):
    _, strides, padding, _ = case
    with jax.enable_x64(True):
        x, w, g = arrays(*case, jnp.float64)
        generator = np.random.default_rng(1)
        directions = [generator.normal(size=array.shape) for array in (x, w)]

        def along(step):
            return jnp.vdot(g, ops.convolve(x + step * directions[0], w + step * directions[1], strides, padding))

        measured = (along(1e-4) - along(-1e-4)) / 2e-4
        for gradients in (convolution._cpu_gradients, convolution._native_gradients):
            predicted = sum(map(jnp.vdot, gradients(strides, padding, x, w, g), directions))
            np.testing.assert_allclose(predicted, measured, rtol=1e-8)


def test_gradients_are_the_same_in_a_scan_and_under_vmap():
    strides, padding = (1, 1), ((1, 1), (1, 1))
    x, w, g = arrays(3, strides, padding, (8, 8), jnp.float32)

    def gradients(x):
        return jax.vjp(functools.partial(ops.convolve, strides=strides, padding=padding), x, w)[1](g)

    stacked = jnp.stack([x, -2 * x])
    expected = [jnp.stack(pair) for pair in zip(gradients(x), gradients(-2 * x), strict=True)]
    scanned = lax.scan(lambda _, x: (None, gradients(x)), None, stacked)[1]
    for loop in (scanned, jax.vmap(gradients)(stacked)):
        for ours, theirs in zip(loop, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("platform", "native"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_platform_decides_when_lowering(platform, native):
    x, w, g = arrays(3, (1, 1), ((1, 1), (1, 1)), (8, 8), jnp.float32)
    gradients = jax.jit(lambda x, w: jax.vjp(lambda x, w: ops.convolve(x, w, (1, 1), ((1, 1), (1, 1))), x, w)[1](g))
    program = gradients.trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in program) != native
