import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from plain56 import ops, parallel
from plain56.models.layers import BatchNorm, Numerics


def arrays(dtype, repeats=1):
    generator = np.random.default_rng(0)
    x, g = (jnp.asarray(generator.normal(size=(6, 5, 4, 3 * repeats)), dtype) for _ in range(2))
    scale, bias = ([0.5, 1, -2], [1, 0, 3])
    return 2 * x + 1, *(jnp.asarray(repeats * vector, jnp.promote_types(dtype, "float32")) for vector in (scale, bias)), g


def agree(dtype, repeats, relu, tolerance):
    """Values and gradients equal those that automatic differentiation finds of Flax's batch norm, computed in a wider type."""
    x, scale, bias, g = arrays(dtype, repeats)
    ours, our_pull_back = jax.vjp(lambda *a: ops.batch_norm(*a, 1e-5, relu=relu)[0], x, scale, bias)
    x, g = (array.astype(scale.dtype) for array in (x, g))
    theirs = nn.BatchNorm(use_running_average=False, dtype=scale.dtype, param_dtype=scale.dtype)
    stats = {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)}

    def flax(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        y = theirs.apply(variables, x, mutable=["batch_stats"])[0]
        return nn.relu(y) if relu else y

    y, pull_back = jax.vjp(flax, x, scale, bias)
    for mine, expected in zip((ours, *our_pull_back(g.astype(ours.dtype))), (y, *pull_back(g)), strict=True):
        np.testing.assert_allclose(np.asarray(mine, float), expected, rtol=0, atol=tolerance * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-13), ("bfloat16", 2**-8)])
def test_values_and_gradients_equal_autodiff_of_flax(dtype, tolerance, relu):
    with jax.enable_x64(dtype == "float64"):
        agree(dtype, 1, relu, tolerance)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2**-8)])
def test_values_and_gradients_by_native_sums_equal_autodiff_of_flax(dtype, tolerance, relu, lanes):
    agree(dtype, lanes, relu, tolerance)


def test_native_sums_are_the_same_under_vmap(lanes):
    x, scale, bias, g = arrays("float32", lanes)

    def gradients(x, scale):
        return jax.vjp(lambda *a: ops.batch_norm(*a, 1e-5, relu=True)[0], x, scale, bias)[1](g)

    pairs = jnp.stack([x, -2 * x]), jnp.stack([scale, 3 * scale])
    for mine, *expected in zip(
        jax.vmap(gradients)(*pairs), *(gradients(*(part[i] for part in pairs)) for i in (0, 1)), strict=True
    ):
        np.testing.assert_allclose(mine, jnp.stack(expected), rtol=0, atol=2e-6 * float(jnp.abs(mine).max()))


def test_statistics_follow_flax_in_training_and_rule_in_evaluation():
    x, *_ = arrays("float32")
    ours, theirs = BatchNorm(Numerics(momentum=0.7), True), nn.BatchNorm(use_running_average=False, momentum=0.7)
    variables = ours.init(jax.random.key(0), x)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, theirs.init(jax.random.key(0), x)))
    for _ in range(2):
        changes = [layer.apply(variables, x, mutable=["batch_stats"])[1] for layer in (ours, theirs)]
        jax.tree.map(lambda mine, expected: np.testing.assert_allclose(mine, expected, rtol=1e-6), *changes)
        variables |= changes[0]
    evaluated = [layer.apply(variables, x) for layer in (BatchNorm(Numerics(), False), nn.BatchNorm(use_running_average=True))]
    np.testing.assert_allclose(*evaluated, rtol=1e-5, atol=1e-5)


def test_bfloat16_images_have_float32_statistics():
    x, scale, bias, g = arrays("float32")
    y, mean, variance = ops.batch_norm(x.astype(jnp.bfloat16), scale, bias, 1e-5)
    assert (y.dtype, mean.dtype, variance.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(y.astype(jnp.float32), ops.batch_norm(x, scale, bias, 1e-5)[0], rtol=2e-2, atol=2e-2)
    (dx,) = jax.vjp(lambda x: ops.batch_norm(x, scale, bias, 1e-5)[0], x.astype(jnp.bfloat16))[1](g.astype(jnp.bfloat16))
    assert dx.dtype == jnp.bfloat16


def test_a_constant_channel_is_no_division_by_zero():
    y, _, variance = ops.batch_norm(jnp.full((2, 3, 3, 1), 7.3), jnp.ones(1), jnp.zeros(1), 1e-5)
    assert np.isfinite(y).all() and (variance >= 0).all()


def test_moments_of_many_values_keep_their_digits():
    x = jnp.asarray(np.random.default_rng(0).normal(0.5, size=(128, 32, 32, 16)), jnp.float32)
    _, mean, variance = ops.batch_norm(x, jnp.ones(16), jnp.zeros(16), 1e-5)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-6)


def test_statistics_of_all_devices_are_those_of_the_whole():
    x, scale, bias, g = arrays("float32")
    mesh, share, everywhere = parallel.layout().mesh, P(parallel.DATA_AXIS), P()

    def of_each(x, scale, bias, g):
        (y, *moments), pull_back = jax.vjp(lambda *a: ops.batch_norm(*a, 1e-5, parallel.DATA_AXIS), x, scale, bias)
        dx, dscale, dbias = pull_back((g, *map(jnp.zeros_like, moments)))
        return y, *moments, dx, *jax.lax.psum((dscale, dbias), parallel.DATA_AXIS)

    in_specs, out_specs = (share, everywhere, everywhere, share), (share, everywhere, everywhere, share, everywhere, everywhere)
    shared = jax.shard_map(of_each, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(x, scale, bias, g)
    (y, *moments), pull_back = jax.vjp(lambda *a: ops.batch_norm(*a, 1e-5), x, scale, bias)
    whole = y, *moments, *pull_back((g, *map(jnp.zeros_like, moments)))
    for mine, expected in zip(shared, whole, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=2e-6 * float(jnp.abs(expected).max()))
