"""Every repair of deep networks, against its paper's formula or another's code."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from plain56.analysis import lesions
from plain56.models import create_model, layers, repairs, stack
from plain56.models.resnet import BlockOptions
from tests.fixtures.updates import IMAGES, a_batch, updated


def options_with(**changes):
    return repairs.with_depth(BlockOptions(**changes), blocks=54, activations=109)


@pytest.mark.parametrize(("depth", "slope"), [(20, 0.164), (56, 0.452), (110, 0.586)])
def test_tat_is_that_of_its_authors(depth, slope):
    transform = pytest.importorskip("dks.base.activation_transform")

    def maximal(cosine, of_layer):
        return functools.reduce(lambda value, _: of_layer(value), range(depth - 1), cosine)

    theirs = transform.get_transformed_activations(
        ["leaky_relu"], method="TAT", tat_params={"c_val_0_target": 0.9}, subnet_max_func=maximal
    )["leaky_relu"]
    options = create_model(f"plain{depth}", 10, activation="tat").options
    x = np.array([-1.0, 2.0])
    np.testing.assert_allclose(repairs.activation(options)(jnp.asarray(x)), theirs(x), rtol=1e-6)
    assert options.negative_slope == pytest.approx(slope, abs=5e-4)


def test_tat_of_a_shallow_network_is_a_relu_of_unit_variance():
    assert create_model("plain8", 10, activation="tat").options.negative_slope == 0
    assert repairs.activation(create_model("plain8", 10, activation="tat").options)(jnp.float32(3.0)) == pytest.approx(3 * 2**0.5)


@pytest.mark.parametrize("slope", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.7])
def test_c_map_is_a_mean_over_random_layers(slope, cosine):
    x, z = np.random.default_rng(0).normal(size=(2, 100_000))
    y = cosine * x + math.sqrt(1 - cosine**2) * z
    a, b = (np.where(values > 0, values, slope * values) for values in (x, y))
    products = 2 / (1 + slope**2) * a * b
    error = products.std() / math.sqrt(len(products))
    assert abs(products.mean() - repairs.c_map(cosine, slope)) < 4 * error
    assert error < 0.01


@pytest.mark.parametrize(
    ("initializer", "activation", "slope"),
    [
        ("he_normal", "relu", None),
        ("he_normal", "leaky_relu", 0.5),
        ("delta_orthogonal", "tat", None),
    ],
)
def test_activations_keep_their_size_through_fifty_layers(initializer, activation, slope):
    options = options_with(
        residual=False, activation=activation, negative_slope=slope, initializer=initializer, normalization="none"
    )

    @jax.jit
    def through(key):
        def layer(x, key):
            kernel = repairs.initializer(options, layers.taps_on_image(3, x))(key, (3, 3, 64, 64), jnp.float32)
            y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return repairs.activation(options)(y), None

        first, rest = jax.random.split(key)
        x, _ = lax.scan(layer, jax.random.normal(first, (4, 2, 2, 64)), jax.random.split(rest, 50))
        return jnp.log(jnp.mean(x**2))

    # The kernel makes good for what padding and activation take. Were its variance a tenth off, 50 layers would be 5 off.
    found = np.array([through(jax.random.key(seed)) for seed in range(4)])
    assert abs(found.mean()) < 1.5


def test_orthogonal_kernels():
    options = options_with(activation="tanh", initializer="orthogonal")
    kernel = repairs.initializer(options)(jax.random.key(0), (3, 3, 16, 32), jnp.float32).reshape(-1, 32)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(32), atol=1e-5)
    wide = repairs.initializer(options)(jax.random.key(0), (3, 3, 1, 16), jnp.float32).reshape(9, 16)
    np.testing.assert_allclose(wide @ wide.T, np.eye(9) * 16 / 9, atol=1e-5)  # of variance 1 / fan-in, as He's


def test_delta_orthogonal_kernels_at_every_width():
    model = create_model("plain20", 10, activation="tanh", initializer="delta_orthogonal", normalization="none")
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *IMAGES)))["params"]
    kernels = {path: leaf for path, leaf in stack.unstack(params).items() if path[-1] == "kernel" and leaf.ndim == 4}
    assert len(kernels) == 19 and {kernel.shape[2:] for kernel in kernels.values()} >= {(1, 16), (16, 32), (32, 64), (64, 64)}
    for kernel in kernels.values():
        center = kernel[1, 1]
        np.testing.assert_allclose(center @ center.T, np.eye(len(center)), atol=1e-6)
        assert not np.any(np.delete(kernel.reshape(9, -1), 4, axis=0))


def test_dirac_kernels_begin_as_the_identity_and_a_tenth_of_hes():
    kernel = repairs.initializer(options_with(initializer="dirac"))(jax.random.key(0), (3, 3, 64, 96), jnp.float32)
    rest = np.array(kernel)
    rest[1, 1] -= np.eye(64, 96)
    assert rest.std() == pytest.approx(0.1 * math.sqrt(2 / (9 * 64)), rel=0.02)


@pytest.mark.parametrize(("kind", "groups"), [("group", 2), ("layer", 1)])
def test_group_and_layer_norm(kind, groups):
    x = np.random.default_rng(0).normal(3, 2, (2, 4, 4, 16)).astype(np.float32)
    model = create_model("plain8", 10, normalization=kind, widths=(16, 16, 16))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.asarray(x))
    drawn = {key: np.random.default_rng(1).normal(1, 1, 16) for key in ("scale", "bias")}
    variables["params"]["stem_norm"] = {key: jnp.asarray(value, jnp.float32) for key, value in drawn.items()}
    identity = repairs.identity_kernel((3, 3, 16, 16), jnp.float32)
    variables["params"]["stem_conv"]["kernel"] = identity
    _, taken = model.apply(variables, jnp.asarray(x), mutable=["intermediates"], capture_intermediates=True)
    found = taken["intermediates"]["stem_norm"]["__call__"][0]
    # Wu & He 2018, equations 1 to 3.
    parts = x.astype(np.float64).reshape(2, 16, groups, -1)
    moments = {"axis": (1, 3), "keepdims": True}
    expected = ((parts - parts.mean(**moments)) / np.sqrt(parts.var(**moments) + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(found, expected * drawn["scale"] + drawn["bias"], atol=1e-5)


def convolved(x, kernel, stride=1):
    padding = ((kernel.shape[0] // 2,) * 2,) * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def drawn_like(model, images, scale=0.3):
    """Random parameters, as no initialization leaves them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    generator = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0.1, scale, leaf.shape), leaf.dtype), shapes["params"])
    return params, jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes.get("batch_stats", {}))


def assert_trained_as(model, reference, rates, batch):
    """One update of a model's own equals that of a network written by hand: `reference(single blocks' parameters, images)`."""
    params, batch_stats = drawn_like(model, batch.images)
    single = stack.unstack(params)

    def loss(single):
        return optax.softmax_cross_entropy_with_integer_labels(reference(single, batch.images), batch.labels).mean()

    @jax.jit
    def logits(params):
        variables = {"params": params, "batch_stats": batch_stats}
        return model.apply(variables, batch.images, train=True, mutable=["batch_stats"])[0].logits

    np.testing.assert_allclose(logits(params), jax.jit(reference)(single, batch.images), rtol=1e-9)
    gradients = jax.jit(jax.grad(loss))(single)
    _, state = updated(model, batch, 1, params, batch_stats)
    for path, leaf in stack.unstack(state.params).items():
        np.testing.assert_allclose(leaf, single[path] - 0.1 * rates(path) * gradients[path], rtol=1e-9, atol=1e-12)


def test_fixup_is_the_papers():
    with jax.enable_x64(True):
        model = create_model("resnet14", 3, fixup=True, normalization="none", widths=(4, 4, 8), dtype="float64")

        def reference(p, images):
            def shifted(x, block, name):
                return x + p[block, name, "bias"][0]

            x = jax.nn.relu(convolved(images, p["stem_conv", "kernel"]) + p["stem_bias", "bias"][0])
            for stage in (1, 2, 3):
                for number in (0, 1):
                    block, stride = f"stage{stage}.{number}", 1 + (stage > 1 and number == 0)
                    y = convolved(shifted(x, block, "bias1a"), p[block, "conv1", "kernel"], stride)
                    y = convolved(shifted(jax.nn.relu(shifted(y, block, "bias1b")), block, "bias2a"), p[block, "conv2", "kernel"])
                    y = shifted(y * p[block, "scale", "scale"][0], block, "bias2b")
                    more = y.shape[-1] - x.shape[-1]
                    x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
                    x = jax.nn.relu(y + x)
            x = x.mean((1, 2)) + p["head_bias", "bias"][0]
            return x @ p["head", "kernel"] + p["head", "bias"][None]

        assert_trained_as(model, reference, lambda path: 1.0 if path[-1] == "kernel" else 0.1, a_batch(dtype="float64"))


def test_fixup_begins_as_the_paper_says():
    model = create_model("resnet20", 10, fixup=True, normalization="none")
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 268_393  # as of the published code's fixup_resnet20
    assert not jnp.any(params["head"]["kernel"]) and not jnp.any(params["stage2"]["conv2"]["kernel"])
    first = params["stage3"]["conv1"]["kernel"]
    taps = layers.taps_on_image(3, np.zeros((1, 8, 8, 64)))
    np.testing.assert_allclose(first.std(), math.sqrt(2 / (9 * 64 * taps)) / 3, rtol=0.02)  # nine branches
    np.testing.assert_array_equal(params["stage3"]["scale"]["scale"], [[1], [1]])


def test_dirac_convolutions_are_the_papers():
    with jax.enable_x64(True):
        model = create_model("plain8", 3, kernel="dirac", widths=(4, 4, 8), dtype="float64")

        def normalized(x, affine):
            x = (x - x.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
            return x * affine("scale")[None, None, None] + affine("bias")[None, None, None]

        def reference(p, images):
            x = jax.nn.relu(normalized(convolved(images, p["stem_conv", "kernel"]), lambda key: p["stem_norm", key]))
            for stage in (1, 2, 3):
                for number in (1, 2):
                    path = f"stage{stage}.0", f"conv{number}"
                    kernel = p[*path, "kernel"]
                    filters = kernel.reshape(-1, kernel.shape[-1]).T
                    filters = filters / jnp.linalg.norm(filters, axis=1, keepdims=True)
                    delta = np.zeros(kernel.shape)
                    for channel in range(min(kernel.shape[2:])):
                        delta[1, 1, channel, channel] = 1
                    delta = delta.reshape(-1, kernel.shape[-1]).T
                    w = p[*path, "identity_scale"][:, None] * delta + p[*path, "kernel_scale"][:, None] * filters
                    x = convolved(x, w.T.reshape(kernel.shape), 1 + (stage > 1 and number == 1))
                    x = jax.nn.relu(normalized(x, lambda key, n=number, s=stage: p[f"stage{s}.0", f"norm{n}", key]))
            return x.mean((1, 2)) @ p["head", "kernel"] + p["head", "bias"][None]

        assert_trained_as(model, reference, lambda path: 1.0, a_batch(dtype="float64"))


def test_dirac_convolutions_have_two_more_parameters_a_filter():
    shapes = [
        jax.eval_shape(create_model("plain20", 10, kernel=k).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        for k in ("free", "dirac")
    ]
    free, dirac = (sum(leaf.size for leaf in jax.tree.leaves(s["params"])) for s in shapes)
    assert dirac - free == 2 * 6 * (16 + 32 + 64)


def test_as_many_blocks_survive_as_the_paper_expects():
    class Drawn:
        def __init__(self, key):
            self.key = key

        def make_rng(self, name):
            assert name == "survival"
            return self.key

    draws = jax.vmap(lambda key: repairs.survived_blocks(Drawn(key), 0.5, 54, True))(jax.random.split(jax.random.key(0), 4_000))
    assert set(np.unique(draws)) == {0, 1}
    # Huang et al. 2016, section 3: (3L − 1) / 4 of L blocks with a linear decay to 0.5.
    assert draws.sum(1).mean() == pytest.approx((3 * 54 - 1) / 4, abs=0.2)
    probabilities = repairs.survived_blocks(None, 0.5, 54, False)
    np.testing.assert_allclose(draws.mean(0), probabilities, atol=0.04)
    assert (probabilities[0], probabilities[-1]) == (pytest.approx(1 - 0.5 / 54), 0.5)


def test_a_block_that_is_left_out_passes_its_input_on_and_keeps_its_statistics():
    model, always = (create_model("resnet20", 3, widths=(8, 8, 8), survival=survival) for survival in (0.3, 1.0))
    images = a_batch().images
    apply, apply_all = (
        jax.jit(functools.partial(network.apply, images=images, train=True, mutable=["batch_stats"]))
        for network in (model, always)
    )
    variables = jax.jit(model.init)(jax.random.key(0), images)
    for seed in range(3):
        key = jax.random.key(seed)
        output, changed = apply(variables, rngs={"survival": key})
        moved = {
            path[0]
            for path, leaf in stack.unstack(changed["batch_stats"]).items()
            if path[1:] == ("norm2", "mean") and np.any(leaf != stack.unstack(variables["batch_stats"])[path])
        }
        left_out = [(stage, number) for stage, number in lesions.blocks(model) if f"stage{stage}.{number}" not in moved]
        assert 0 < len(left_out) < 9
        lesioned = lesions.silence(always, variables, left_out)
        expected, _ = apply_all(lesioned)
        np.testing.assert_allclose(output.logits, expected.logits, atol=1e-5)


def test_evaluation_takes_each_branch_by_its_probability():
    images = a_batch().images
    model, always = (create_model("resnet8", 3, widths=(8, 8, 8), **options) for options in ({"survival": 0.4}, {}))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    scaled = jax.tree.map(jnp.array, variables)
    for name, probability in (("stage1", 0.8), ("stage2_first", 0.6), ("stage3_first", 0.4)):
        norm = scaled["params"][name]["norm2"]
        scaled["params"][name]["norm2"] = jax.tree.map(lambda leaf, p=probability: leaf * p, norm)
    np.testing.assert_allclose(model.apply(variables, images).logits, always.apply(scaled, images).logits, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"fixup": True, "normalization": "none"}, {"normalization": "none"}, {"normalization": "group"}]
)
def test_a_silenced_block_gives_nothing(options):
    model, images = create_model("resnet14", 3, widths=(8, 8, 8), **options), a_batch().images
    params, _ = drawn_like(model, images)
    silenced = lesions.silence(model, {"params": params}, [(1, 1)])
    shorter = model.clone(blocks=(1, 2, 2))
    without = params | {"stage1": jax.tree.map(lambda leaf: leaf[:1], params["stage1"])}
    np.testing.assert_allclose(model.apply(silenced, images).logits, shorter.apply({"params": without}, images).logits, rtol=1e-5)
