import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax import lax

from plain56.models import create_model


def abstract_variables(model, image_shape=(32, 32, 3)):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_projection_shortcuts_have_their_own_parameters():
    counts = {s: count(abstract_variables(create_model("resnet56", 10, shortcut=s))["params"]) for s in "ABC"}
    assert counts["B"] - counts["A"] == 2_752  # 16·32 + 32·64 weights, and a batch norm of 32 and of 64
    # C: every one of the 27 blocks projects.
    assert counts["C"] - counts["B"] == 9 * (16 * 16 + 32) + 8 * (32 * 32 + 64) + 8 * (64 * 64 + 128)
    assert count(abstract_variables(create_model("plain56", 10, shortcut="C"))["params"]) == counts["A"]


def test_twins_have_the_same_trees_and_initial_values():
    images = jnp.ones((1, 8, 8, 1))
    plain, residual = (jax.jit(create_model(name, 10).init)(jax.random.key(3), images) for name in ("plain20", "resnet20"))
    assert jax.tree.structure(plain) == jax.tree.structure(residual)
    jax.tree.map(np.testing.assert_array_equal, plain, residual)


def test_initialization_is_he_normal_and_differs_between_blocks():
    params = jax.jit(create_model("resnet110", 10).init)(jax.random.key(0), jnp.ones((1, 8, 8, 1)))["params"]
    kernels = params["stage3"]["conv1"]["kernel"]
    assert kernels.shape == (17, 3, 3, 64, 64)
    np.testing.assert_allclose(kernels.std(axis=(1, 2, 3, 4)), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert abs(float(jnp.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1])) < 0.03


def reference(variables, images, *, blocks, widths, residual, train):
    """The network layer by layer, unrolled, written from section 4.2 with nothing but lax and jnp."""
    params, stats = variables["params"], variables["batch_stats"]

    def conv(x, kernel, stride):
        padding = ((kernel.shape[0] // 2,) * 2,) * 2
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def norm(x, affine, running):
        axes = tuple(range(x.ndim - 1))
        mean, var = (x.mean(axes), x.var(axes)) if train else (running["mean"], running["var"])
        with jax.numpy_rank_promotion("allow"):
            return (x - mean) / jnp.sqrt(var + 1e-5) * affine["scale"] + affine["bias"]

    def block(x, p, s, stride):
        y = jax.nn.relu(norm(conv(x, p["conv1"]["kernel"], stride), p["norm1"], s["norm1"]))
        y = norm(conv(y, p["conv2"]["kernel"], 1), p["norm2"], s["norm2"])
        if residual:
            if "shortcut_conv" in p:
                x = norm(conv(x, p["shortcut_conv"]["kernel"], stride), p["shortcut_norm"], s["shortcut_norm"])
            elif x.shape != y.shape:
                wide = jnp.zeros(y.shape)
                first = (y.shape[-1] - x.shape[-1]) // 2
                x = wide.at[..., first : first + x.shape[-1]].set(x[:, ::stride, ::stride])
            y = y + x
        return jax.nn.relu(y)

    x = conv(images, params["stem_conv"]["kernel"], 1)
    x = jax.nn.relu(norm(x, params["stem_norm"], stats["stem_norm"]))
    for stage in range(1, len(widths) + 1):
        equal = blocks
        if f"stage{stage}_first" in params:
            x = block(x, params[f"stage{stage}_first"], stats[f"stage{stage}_first"], 2)
            equal -= 1
        for i in range(equal):
            p, s = (jax.tree.map(lambda leaf, i=i: leaf[i], tree[f"stage{stage}"]) for tree in (params, stats))
            x = block(x, p, s, 1)
    with jax.numpy_rank_promotion("allow"):
        return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize(
    ("name", "shortcut"),
    [("plain14", "A"), ("resnet14", "B"), *(pytest.param("resnet14", other, marks=pytest.mark.slow) for other in "AC")],
)
def test_scanned_network_equals_the_unrolled_reference(name, shortcut):
    widths = (4, 6, 9)
    with jax.enable_x64(True):
        model = create_model(name, 5, shortcut=shortcut, widths=widths, dtype="float64")
        images = jax.random.normal(jax.random.key(1), (4, 9, 8, 2), jnp.float64)
        # Values away from 0 and 1, so that every scale, bias and running statistic counts.
        generator = np.random.default_rng(0)
        variables = jax.tree.map(
            lambda x: generator.uniform(0.5, 1.5, x.shape), jax.eval_shape(model.init, jax.random.key(0), images)
        )

        def ours(variables, train):
            return model.apply(variables, images, train=train, mutable=["batch_stats"])[0].logits

        def theirs(variables, train):
            residual = name.startswith("resnet")
            return reference(variables, images, blocks=2, widths=widths, residual=residual, train=train)

        def results(network):
            probe = jax.random.normal(jax.random.key(4), (4, 5), jnp.float64)

            def loss(params):
                logits = network({**variables, "params": params}, True)
                return jnp.vdot(probe, logits), logits

            (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
            return {"evaluation": network(variables, False), "training": logits, "gradients": gradients}

        # Without the costly passes, which would take most of the time here.
        options = {"xla_llvm_disable_expensive_passes": True}
        expected, actual = (jax.jit(results, static_argnums=0, compiler_options=options)(f) for f in (theirs, ours))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), actual, expected)
        assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(actual["gradients"])), "a parameter gets no gradient"


def test_batch_statistics_move_by_one_tenth():
    model = create_model("resnet8", 10)
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    _, changes = model.apply(variables, images, train=True, mutable=["batch_stats"])
    stem = lax.conv_general_dilated(
        images,
        variables["params"]["stem_conv"]["kernel"],
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    # Flax keeps the biased variance.
    np.testing.assert_allclose(changes["batch_stats"]["stem_norm"]["mean"], 0.1 * stem.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(changes["batch_stats"]["stem_norm"]["var"], 0.9 + 0.1 * stem.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"survival": 0.5, "kernel": "dirac"}, {"fixup": True, "normalization": "none", "activation": "leaky_relu"}]
)
def test_depth_costs_nothing_to_compile(options):
    def program_size(name):
        model = create_model(name, 10, **options)
        images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)

        def loss(params, variables, images):
            rngs = {"survival": jax.random.key(0)}
            output, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"], rngs=rngs)
            return output.logits.sum()

        variables = abstract_variables(model)
        return len(jax.jit(jax.grad(loss)).lower(variables["params"], variables, images).as_text().splitlines())

    assert program_size("resnet152_cifar") == program_size("resnet1202") == program_size("resnet20")


def test_bfloat16_computes_in_it_and_keeps_the_rest_in_float32():
    model = create_model("resnet8", 10, dtype="bfloat16")
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    output, changes = model.apply(variables, images, train=True, mutable=["batch_stats"], capture_intermediates=True)
    assert output.logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, changes["batch_stats"]))} == {jnp.dtype("float32")}
    flat = traverse_util.flatten_dict(changes["intermediates"])
    assert flat["stem_norm", "__call__"][0].dtype == jnp.bfloat16


def test_remat_gives_the_same_gradients_from_less_memory():
    images = jax.random.normal(jax.random.key(1), (64, 8, 8, 3))

    def compiled(remat):
        model = create_model("resnet26", 10, remat=remat, widths=(8, 8, 8))
        variables = jax.jit(model.init)(jax.random.key(0), images)

        def loss(params):
            output, changes = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(output.logits**2), changes

        program = jax.jit(jax.grad(loss, has_aux=True)).lower(variables["params"]).compile()
        return program(variables["params"]), program.memory_analysis().temp_size_in_bytes

    (whole, memory), (again, less) = compiled(False), compiled(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max())), whole, again)
    assert less < 0.7 * memory
