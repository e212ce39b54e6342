"""What the networks cost and see, against published numbers, sums by hand, and what JAX and the networks themselves do."""

import bisect
import functools

import jax
import jax.numpy as jnp
import pytest

from plain56.analysis.complexity import count_multiply_adds, parts, total
from plain56.analysis.savings import savings
from plain56.analysis.savings import total as total_saving
from plain56.models import create_model

CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)


@functools.cache
def rows_of(name, num_classes, image_shape, **options):
    return parts(create_model(name, num_classes, **options), image_shape)


def rows_by_name(name, num_classes, image_shape, **options):
    return {stage.name: stage for stage in rows_of(name, num_classes, image_shape, **options)}


def savings_by_name(name):
    model = create_model(name, 1000)
    return {row.name: row for row in savings(model, IMAGENET, rows_of(name, 1000, IMAGENET))}


@pytest.mark.parametrize(
    ("name", "multiply_adds"),
    # Convolutions and the linear layer by hand from the layer table: 40.6M, 125.5M and 252.9M.
    [("resnet20", 40_551_040), ("plain56", 125_485_696), ("resnet110", 252_887_680)],
)
def test_multiply_adds(name, multiply_adds):
    assert count_multiply_adds(create_model(name, 10), CIFAR) == multiply_adds


def test_stages_follow_the_paper():
    # Section 4.2: feature maps 32, 16, 8 with 16, 32, 64 filters.
    rows = rows_by_name("resnet20", 10, CIFAR)
    assert list(rows) == ["stem", "stage1", "stage2", "stage3", "head"]
    assert [stage.output_shape for stage in rows.values()] == [(32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64), (10,)]
    assert rows["stem"].parameters == 3 * 9 * 16 + 32
    assert rows["stage1"].multiply_adds == 6 * 9 * 16 * 16 * 32 * 32
    assert sum(stage.parameters for stage in rows.values()) == 269_722


def test_pools_belong_to_the_stage_before():
    # Simonyan & Zisserman 2014, Table 1; Szegedy et al. 2014, Table 1.
    vgg = rows_by_name("vgg16", 1000, IMAGENET)
    assert [vgg[f"block{i}"].output_shape for i in range(1, 6)] == [
        (112, 112, 64),
        (56, 56, 128),
        (28, 28, 256),
        (14, 14, 512),
        (7, 7, 512),
    ]
    googlenet = rows_by_name("googlenet", 1000, IMAGENET)
    assert googlenet["conv1"].output_shape == (56, 56, 64)
    assert googlenet["inception3b"].output_shape == (14, 14, 480)
    assert googlenet["inception5b"].output_shape == (7, 7, 1024)


def test_projections_are_counted_with_their_stage():
    with_projections, without = (create_model("resnet14", 10, shortcut=shortcut) for shortcut in "BA")
    added = count_multiply_adds(with_projections, (16, 16, 3)) - count_multiply_adds(without, (16, 16, 3))
    assert added == 16 * 32 * 8 * 8 + 32 * 64 * 4 * 4
    parameters = [total(parts(model, (16, 16, 3))).parameters for model in (with_projections, without)]
    assert parameters[0] - parameters[1] == 2_752


@pytest.mark.parametrize(
    ("name", "parameters", "without"), [("googlenet", 13_378_280, 6_998_552), ("googlenet_bn", 13_004_888, 6_624_904)]
)
def test_auxiliary_heads_are_rows_of_their_own(name, parameters, without):
    rows = rows_by_name(name, 1000, IMAGENET)
    heads = [rows["auxiliary4a"], rows["auxiliary4d"]]
    assert [row for row in rows.values() if row.training_only] == heads
    assert list(rows).index("auxiliary4a") == list(rows).index("inception4a") + 1
    whole = total(rows.values())
    assert whole.parameters == parameters
    assert whole.parameters - sum(head.parameters for head in heads) == without
    # Section 5: an average to 4×4, 128 filters of 1×1, 1024 units, the classes.
    for head, channels in zip(heads, (512, 528), strict=True):
        assert head.output_shape == (1000,)
        assert head.receptive_field is None
        assert head.multiply_adds == 16 * channels * 128 + 16 * 128 * 1024 + 1024 * 1000
    without_heads = create_model(name, 1000, auxiliary=False)
    assert whole.multiply_adds == count_multiply_adds(without_heads, IMAGENET)


def test_activation_memory_by_hand():
    # With batch norm, every convolution's output, which the norm takes, and the ReLU's behind it: 7 · 16 maps of 32×32 and so on;
    # and the averages that the last layer takes. A plain network's last ReLU is part of a norm, and only averaged.
    maps, last = 7 * 16 * 32 * 32 + 6 * 32 * 16 * 16 + 6 * 64 * 8 * 8, 64 * 8 * 8
    for name, unread in (("plain20", last), ("resnet20", 0)):
        assert total(rows_of(name, 10, CIFAR)).activation_bytes == 4 * (2 * maps - unread + 64)
    half = create_model("resnet20", 10, dtype="bfloat16")
    assert total(parts(half, CIFAR)).activation_bytes == 2 * (2 * maps + 64)


def test_a_scan_costs_what_its_blocks_cost():
    # 20, 26 and 1202 layers have 3, 4 and 200 blocks in each stage.
    short, longer, longest = (rows_by_name(f"resnet{depth}", 10, CIFAR) for depth in (20, 26, 1202))
    for stage in ("stage1", "stage2", "stage3"):
        for key in ("parameters", "multiply_adds", "activation_bytes", "receptive_field"):
            first, second, last = (getattr(rows[stage], key) for rows in (short, longer, longest))
            assert last - first == 197 * (second - first), (stage, key)


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "vgg11_bn"])
def test_activation_memory_is_what_jax_keeps(name):
    model = create_model(name, 1000, dropout=0.0)

    def backward(variables, images):
        return jax.vjp(
            lambda params: model.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])[0],
            variables["params"],
        )[1]

    images = jax.ShapeDtypeStruct((1, *IMAGENET), jnp.float32)
    program = jax.make_jaxpr(backward)(jax.eval_shape(model.init, jax.random.key(0), images), images).jaxpr
    made = {variable: equation for equation in program.eqns for variable in equation.outvars}
    kept = 0
    for variable in {variable for variable in program.outvars if variable in made}:
        kind, module = made[variable].primitive.name, str(made[variable].source_info.name_stack)
        # Of a norm and its ReLU, the next layer keeps the maximum; of other ReLUs, JAX keeps a mask and a constant beside the
        # output; and the last pool's output is kept in two shapes, which are one memory.
        if kind not in ("gt", "broadcast_in_dim", "reshape") and ("norm" not in module or kind == "max"):
            kept += 4 * variable.aval.size
    # The last ReLU's output is read by no layer, and JAX keeps only the mask.
    assert total(parts(model, IMAGENET)).activation_bytes == kept + 4 * 4096


# Araujo et al. 2019, "Computing receptive fields of convolutional neural networks"; VGG's with its first layer as a convolution
# and GoogLeNet's with its 7×7 average: Long et al. 2015, "Fully convolutional networks for semantic segmentation", Table 1.
@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("vgg16", {}, 212),
        ("vgg16", {"form": "dense"}, 404),
        ("googlenet", {}, 907 - 6 * 32),
        ("resnet50", {}, 483),
        ("resnet152", {}, 1507),
        ("resnet18", {}, 435),
        ("resnet50", {"bottleneck_stride": "3x3"}, 427),
    ],
)
def test_receptive_fields_are_the_published_ones(name, options, field):
    side = 256 if options.get("form") == "dense" else 224
    assert total(rows_of(name, 1000, (side, side, 3), **options)).receptive_field == field


def test_receptive_field_stage_by_stage():
    rows = rows_of("resnet20", 10, CIFAR)
    # r + (k - 1) · jump: a 3×3, six at jump 1, one at 1 and five at 2, one at 2 and five at 4; then everything.
    assert [row.receptive_field for row in rows] == [3, 3 + 6 * 2, 15 + 2 + 5 * 4, 37 + 4 + 5 * 8, None]


@pytest.mark.parametrize(
    ("name", "options", "height", "width"),
    [
        ("plain8", {}, 64, 4),
        ("resnet14", {"shortcut": "B", "pre_activation": True}, 96, 4),
        pytest.param("resnet50", {"widths": (4, 4, 4, 4), "shortcut": "C"}, 512, 32, marks=pytest.mark.slow),
        ("vgg11_lrn", {"form": "small"}, 256, 32),
        pytest.param("googlenet", {"form": "small", "auxiliary": False}, 128, 8, marks=pytest.mark.slow),
    ],
)
def test_receptive_field_is_what_the_logits_depend_on(name, options, height, width, monkeypatch):
    model = create_model(name, 2, **options)
    field = total(parts(model, (height, width, 3))).receptive_field
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    # A black image gives zeros everywhere, and a white row makes positive whatever it reaches.
    values = {"kernel": 0.1, "scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, values[path[-1].key]), jax.eval_shape(model.init, jax.random.key(0), images)
    )
    monkeypatch.setattr(jnp, "mean", lambda x, axis: x)  # logits at every position

    @jax.jit
    def reached(variables, first, end):
        """Whether these rows of the image reach the logits in the middle."""
        rows = jnp.arange(height)
        white = ((first <= rows) & (rows < end)).astype(jnp.float32)
        logits = model.apply(variables, jnp.broadcast_to(white.reshape(1, height, 1, 1), images.shape)).logits
        return (logits[0, logits.shape[1] // 2] > 0).any()

    first = bisect.bisect_left(range(height), True, key=lambda row: bool(reached(variables, 0, row + 1)))
    end = bisect.bisect_left(range(height), True, key=lambda row: not reached(variables, row, height))
    assert 0 < first < end < height, "the field is cut off by the image"
    assert end - first == field


def test_reductions_of_inception():
    saved = savings_by_name("googlenet")
    assert list(saved) == [f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    # 3a takes 192 channels at 28×28: 64 of 1×1, 96 → 128 of 3×3, 16 → 32 of 5×5, 32 after the pool; each filter has a bias.
    weights = 192 * 64 + 192 * 96 + 9 * 96 * 128 + 192 * 16 + 25 * 16 * 32 + 192 * 32
    naive = 192 * 64 + 9 * 192 * 128 + 25 * 192 * 32 + 192 * 32
    assert saved["inception3a"][1:] == (weights + 368, naive + 256, 28 * 28 * weights, 28 * 28 * naive)
    whole = total_saving(saved.values())
    assert whole.parameters == sum(row.parameters for row in rows_of("googlenet", 1000, IMAGENET) if row.name in saved)
    assert whole.multiply_adds_without == sum(row.multiply_adds_without for row in saved.values())


def test_stacks_of_vgg():
    def shares(name):
        return {block: row.parameters / row.parameters_without for block, row in savings_by_name(name).items()}

    # Section 2.3: 3 · 3²C² = 27C² weights instead of 7²C² = 49C².
    assert shares("vgg16") == {
        "block1 (5×5)": 18 / 25,
        "block2 (5×5)": 18 / 25,
        "block3 (7×7)": 27 / 49,
        "block4 (7×7)": 27 / 49,
        "block5 (7×7)": 27 / 49,
    }
    assert list(shares("vgg11")) == ["block3 (5×5)", "block4 (5×5)", "block5 (5×5)"]
    assert shares("vgg19")["block5 (9×9)"] == 36 / 81
    assert shares("vgg16_1x1")["block3 (5×5)"] == 19 / 25
    # The last block of the network takes as many channels as it gives, and is the stack itself, without biases.
    stack, block = savings_by_name("vgg16")["block5 (7×7)"], rows_by_name("vgg16", 1000, IMAGENET)["block5"]
    assert (stack.parameters, stack.multiply_adds) == (block.parameters - 3 * 512, block.multiply_adds)


def test_other_networks_have_no_such_savings():
    model = create_model("resnet20", 10)
    assert savings(model, CIFAR, parts(model, CIFAR)) == []
