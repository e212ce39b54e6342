"""Layers against direct computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plain56.models import create_model
from plain56.models.googlenet import Inception, _adaptive_average
from plain56.models.layers import local_response_norm, max_pool, taps_on_image


def test_local_response_norm_equals_a_direct_computation():
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 7))
    expected = np.empty_like(x)
    for channel in range(7):
        around = x[..., max(0, channel - 2) : channel + 3]  # five channels, fewer at the edges
        expected[..., channel] = x[..., channel] / (2 + 0.3 * (around**2).sum(-1)) ** 0.75
    with jax.enable_x64(True):
        np.testing.assert_allclose(local_response_norm(jnp.asarray(x), size=5, alpha=0.3, beta=0.75, k=2.0), expected, rtol=1e-10)


@pytest.mark.parametrize("length", range(3, 12))
@pytest.mark.parametrize(("size", "strides", "padding"), [(3, 2, 0), (3, 1, 1), (2, 2, 0), (3, 2, 1)])
def test_max_pool_takes_partial_windows_that_begin_inside(length, size, strides, padding):
    x = np.random.default_rng(length).normal(size=(1, length, length, 1)) - 5  # padding with zeros would win
    starts = [
        start
        for start in range(-padding, length, strides)
        # The last window is the first one that reaches the end.
        if start == -padding or start - strides + size < length + padding
    ]
    expected = [[x[0, max(0, top) : top + size, max(0, left) : left + size, 0].max() for left in starts] for top in starts]
    np.testing.assert_allclose(max_pool(jnp.asarray(x, jnp.float32), size, strides, padding)[0, :, :, 0], expected, rtol=1e-6)


def test_adaptive_average_windows():
    x = np.random.default_rng(0).normal(size=(1, 14, 14, 2)).astype(np.float32)
    windows = [slice(0, 4), slice(3, 7), slice(7, 11), slice(10, 14)]
    expected = [[x[0, rows, columns].mean((0, 1)) for columns in windows] for rows in windows]
    np.testing.assert_allclose(_adaptive_average(jnp.asarray(x), 4)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_dense_form_averages_the_fully_connected_layers_over_positions():
    images = jax.random.normal(jax.random.key(1), (1, 256, 224, 3))
    network, dense = (create_model("vgg11", 5, form=form) for form in ("imagenet", "dense"))
    # Small values, so that the big layers need no initialization of their own.
    shapes = jax.eval_shape(network.init, jax.random.key(0), images[:, :224])
    generator = np.random.default_rng(0)
    filler = generator.normal(size=2**20).astype(np.float32)
    variables = jax.tree.map(
        lambda s: jnp.asarray(np.resize(filler, s.shape) * np.sqrt(2 / max(1, s.size // s.shape[-1]))), shapes
    )
    features = jax.jit(lambda v, x: dense.apply(v, x).logits)(variables, images)
    # Two positions, 32 pixels apart, whose convolutions see the whole image; computed from the same last map.
    _, state = dense.apply(variables, images, capture_intermediates=lambda module, _: module.name == "block5_conv2")
    last = jax.nn.relu(state["intermediates"]["block5_conv2"]["__call__"][0])
    last = last.reshape(1, 8, 2, 7, 2, 512).max((2, 4))
    params = variables["params"]
    hidden = []
    for top in (0, 1):
        x = last[:, top : top + 7].reshape(1, -1)
        for name in ("fc6", "fc7"):
            x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])
        hidden.append(x @ params["head"]["kernel"] + params["head"]["bias"][None])
    np.testing.assert_allclose(features, (hidden[0] + hidden[1]) / 2, rtol=2e-4, atol=1e-5)
    with_fixed = network.apply(variables, images[:, :224]).logits
    np.testing.assert_allclose(dense.apply(variables, images[:, :224]).logits, with_fixed, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vgg11_lrn", 8),
        pytest.param("vgg16_bn", 28, marks=pytest.mark.slow),
        pytest.param("googlenet", 8, marks=pytest.mark.slow),
        pytest.param("googlenet_bn", 32, marks=pytest.mark.slow),
    ],
)
def test_small_forms_take_small_images_and_reach_every_parameter(name, size):
    model = create_model(name, 10, form="small", dropout=0.0)
    images = jax.random.normal(jax.random.key(1), (8, size, size, 1))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def loss(params):
        output, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return sum((logits**2).sum() for logits in (output.logits, *output.auxiliary_logits)), output

    gradients, output = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert output.logits.shape == (8, 10)
    assert [logits.shape for logits in output.auxiliary_logits] == [(8, 10)] * (2 if name.startswith("googlenet") else 0)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradients)), "a parameter gets no gradient"


def test_inception_without_reductions_is_the_naive_block():
    x = jnp.ones((1, 4, 4, 192))
    naive, reduced = (Inception(filters) for filters in ((64, 0, 128, 0, 32, 32), (64, 96, 128, 16, 32, 32)))
    counts = []
    for block in (naive, reduced):
        variables = jax.eval_shape(lambda key, block=block: block.init(key, x, False), jax.random.key(0))
        counts.append(sum(leaf.size for leaf in jax.tree.leaves(variables)))
    # Fig. 2a against 2b, for 3a: 1×1, 3×3, 5×5 and the projection, with biases.
    assert counts[0] == 192 * 64 + 9 * 192 * 128 + 25 * 192 * 32 + 192 * 32 + 64 + 128 + 32 + 32
    assert counts[1] == 163_696


@pytest.mark.parametrize(("size", "height", "width"), [(3, 1, 1), (3, 2, 5), (5, 2, 3), (1, 4, 4), (7, 3, 9)])
def test_taps_on_image_are_the_products_that_padding_leaves(size, height, width):
    ones = jnp.ones((1, height, width, 1))
    counted = jax.lax.conv_general_dilated(
        ones, jnp.ones((size, size, 1, 1)), (1, 1), [(size // 2,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert taps_on_image(size, ones) == pytest.approx(float(counted.mean()) / size**2)


@pytest.mark.parametrize("name", ["vgg19", pytest.param("googlenet", marks=pytest.mark.slow)])
def test_small_forms_without_batch_norm_keep_their_signal(name):
    model = create_model(name, 10, form="small")
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    logits = jax.jit(lambda: model.apply(model.init(jax.random.key(0), images), images).logits)()
    # Logits that differ from image to image; with He's variance on maps of one pixel VGG-19's differ 1e5 times less.
    assert 0.01 < float(jnp.std(logits, axis=0).mean()) < 1
