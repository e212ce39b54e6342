"""The registry: every name has its published size, and mistakes are told in a sentence."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import launch
from configs import digits
from plain56 import load_pretrained, runs, training
from plain56.analysis.complexity import count_multiply_adds, parts
from plain56.errors import UserError
from plain56.models import Output, create_model, layers, list_models, registry

CIFAR, IMAGENET = (10, (32, 32, 3)), (1000, (224, 224, 3))

# Published counts: torchvision's for what it has; the CIFAR form's from the layer table, which round to the paper's 0.27M …
# 19.4M (He et al. 2015, Table 6). VGG's C and A-LRN round to the paper's 134M and 133M (Simonyan & Zisserman 2014, Table 2).
# GoogLeNet without batch norm is Caffe's reference model, with its auxiliary heads.
CIFAR_PARAMETERS = {
    "20": 269_722,
    "32": 464_154,
    "44": 658_586,
    "56": 853_018,
    "110": 1_727_962,
    "152_cifar": 2_408_474,
    "1202": 19_421_274,
}
PARAMETERS = {
    **{f"plain{depth}": (CIFAR, count) for depth, count in CIFAR_PARAMETERS.items()},
    **{f"resnet{depth}": (CIFAR, count) for depth, count in CIFAR_PARAMETERS.items()},
    "plain18": (IMAGENET, 11_515_688),
    "plain34": (IMAGENET, 21_623_848),
    "resnet18": (IMAGENET, 11_689_512),
    "resnet34": (IMAGENET, 21_797_672),
    "resnet50": (IMAGENET, 25_557_032),
    "resnet101": (IMAGENET, 44_549_160),
    "resnet152": (IMAGENET, 60_192_808),
    "vgg11": (IMAGENET, 132_863_336),
    "vgg11_lrn": (IMAGENET, 132_863_336),
    "vgg11_bn": (IMAGENET, 132_868_840),
    "vgg13": (IMAGENET, 133_047_848),
    "vgg13_bn": (IMAGENET, 133_053_736),
    "vgg16_1x1": (IMAGENET, 133_638_952),
    "vgg16": (IMAGENET, 138_357_544),
    "vgg16_bn": (IMAGENET, 138_365_992),
    "vgg19": (IMAGENET, 143_667_240),
    "vgg19_bn": (IMAGENET, 143_678_248),
    "googlenet": (IMAGENET, 13_378_280),
    "googlenet_bn": (IMAGENET, 13_004_888),
}


def count_parameters(name, num_classes, image_shape, **options):
    model = create_model(name, num_classes, **options)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_every_name_has_a_published_count():
    assert set(list_models()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    (num_classes, image_shape), count = PARAMETERS[name]
    assert count_parameters(name, num_classes, image_shape) == count


def test_options_change_the_counts_as_published():
    assert count_parameters("resnet50", *IMAGENET, bottleneck_stride="3x3") == 25_557_032
    assert count_parameters("resnet34", *IMAGENET, shortcut="A") == 21_623_848
    assert count_parameters("resnet50", *IMAGENET, shortcut="A") == 22_780_456
    assert count_parameters("plain50", *IMAGENET) == 22_780_456
    assert count_parameters("googlenet", *IMAGENET, auxiliary=False) == 6_998_552
    assert count_parameters("googlenet_bn", *IMAGENET, auxiliary=False) == 6_624_904
    assert count_parameters("vgg16", *IMAGENET, form="dense") == 138_357_544


@pytest.mark.parametrize(
    ("name", "options", "billions"),
    [
        # He et al. 2015, Table 1 and Fig. 3.
        ("resnet18", {}, 1.8),
        ("resnet34", {}, 3.6),
        ("plain34", {}, 3.6),
        ("resnet50", {}, 3.8),
        ("resnet101", {}, 7.6),
        ("resnet152", {}, 11.3),
        ("vgg16", {}, 15.3),
        ("vgg19", {}, 19.6),
        # torchvision's published value; with the stride in the 3×3 convolution.
        ("resnet50", {"bottleneck_stride": "3x3"}, 4.089),
        ("googlenet_bn", {}, 1.498),
    ],
)
def test_multiply_adds_are_the_papers(name, options, billions):
    assert count_multiply_adds(create_model(name, 1000, **options), (224, 224, 3)) / 1e9 == pytest.approx(billions, rel=0.02)


def test_googlenet_costs_what_its_table_says():
    # Szegedy et al. 2014, Table 1, in millions. Two of its rows cannot be: 34M for the first convolution, which has
    # 112 · 112 · 64 · 7 · 7 · 3 = 118M, and 54M for 5a, which has 7 · 7 · 1,043,456 = 51M. Hence the whole is 1.58 billion.
    table = {"2": 360, "3a": 128, "3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170, "5b": 71}
    costs = {stage.name: stage.multiply_adds / 1e6 for stage in parts(create_model("googlenet", 1000), (224, 224, 3))}
    assert costs["conv2"] == pytest.approx(table.pop("2"), rel=0.02)
    for name, millions in table.items():
        assert costs[f"inception{name}"] == pytest.approx(millions, rel=0.02), name


@pytest.mark.parametrize(
    ("name", "options", "depth"),
    [
        # arXiv 2602.13298: all layers in a row; the mean of the shortest and the longest way; means of parallel branches.
        ("plain56", {}, 56),
        ("resnet56", {}, (2 + 56) / 2),
        ("resnet50", {}, (2 + 4 + 50) / 2),  # the shortest way has a projection in each of four stages
        ("resnet20", {"shortcut": "C"}, (2 + 9 + 20) / 2),
        ("vgg16", {}, 16),
        ("vgg16", {"form": "small"}, 14),
        ("googlenet", {}, 3 + 9 * (1 + 2 + 2 + 1) / 4 + 1),
    ],
)
def test_effective_depth(name, options, depth):
    assert create_model(name, 10, **options).effective_depth == depth


def test_listed_names_are_filtered():
    assert list_models("plain??") == ["plain20", "plain32", "plain44", "plain56", "plain18", "plain34"]
    assert list_models("vgg16*") == ["vgg16", "vgg16_bn", "vgg16_1x1"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("resnet57", 10), {}, "nearest is 'resnet56'"),
        (("plain1000", 10), {}, "nearest is 'plain998'"),
        (("resnet151", 10), {}, "nearest is 'resnet152_cifar'"),
        (("resnet2", 10), {}, "nearest is 'resnet8'"),
        (("vgg12", 10), {}, "There is no network 'vgg12'; there are plainN .* the nearest is 'vgg1"),
        (("vgg16_lrn", 10), {}, "There is no network 'vgg16_lrn'"),
        (("inception", 10), {}, "There is no network 'inception'"),
        (("resnet20", 1), {}, "at least two classes"),
        (("vgg16", 0), {}, "at least two classes"),
        (("resnet20", 10), {"shortcut": "D"}, "model.shortcut must be one of A, B, C, not 'D'"),
        (("resnet20", 10), {"widths": (32, 16, 8)}, "may not decrease"),
        (("resnet20", 10), {"widths": (16, 32)}, "3 numbers of filters"),
        (("resnet50", 10), {"bottleneck_stride": "5x5"}, "model.bottleneck_stride must be one of 1x1, 3x3, not '5x5'"),
        (("plain20", 10), {"zero_init": True}, "no gradient"),
        (("resnet20", 10), {"zero_init": True, "pre_activation": True}, "may not both be True"),
        (("resnet20", 10), {"dropout": 0.5}, "model.dropout is 0.5, and resnet20 takes only the options shortcut, "),
        (("vgg16", 10), {"dropout": 1.0}, "model.dropout must be at least 0 and below 1, not 1.0"),
        (("vgg16", 10), {"form": "tiny"}, "model.form must be one of imagenet, dense, small, not 'tiny'"),
        (("googlenet", 10), {"form": "dense"}, "model.form must be one of imagenet, small, not 'dense'"),
        (("resnet20", 10), {"dtype": "int8"}, "model.dtype must be one of float32, bfloat16, float64, not 'int8'"),
        (("resnet20", 10), {"dtype": "float64"}, "JAX_ENABLE_X64"),
    ],
)
def test_mistakes(arguments, options, message):
    with pytest.raises(UserError, match=message):
        create_model(*arguments, **options)


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("plain8", {}, 4),
        ("resnet18", {}, 32),
        ("vgg11", {}, 224),
        ("vgg11", {"form": "dense"}, 224),
        ("googlenet", {}, 79),
        ("googlenet", {"auxiliary": False}, 15),
        ("googlenet_bn", {}, 15),
    ],
)
def test_images_too_small(name, options, least):
    model = create_model(name, 10, **options)

    def initialize(size):
        return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, 250 if name != "vgg11" else size, 3)))

    assert all(leaf.size for leaf in jax.tree.leaves(initialize(least)))
    with pytest.raises(UserError, match=f"needs images of at least {least}×{least} pixels, not {least - 1}×"):
        initialize(least - 1)


def test_images_too_large():
    with pytest.raises(UserError, match="need images of 224×224 pixels, not 256×256; model.form 'dense' takes"):
        jax.eval_shape(create_model("vgg11", 10).init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))


class Small(nn.Module):
    """The least that a network needs: no stages, no places to measure gradients at, no forms."""

    num_classes: int
    numerics: layers.Numerics = layers.Numerics()

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(layers.convolution(self.numerics, 4, 3, name="conv")(images))
        return Output(layers.head(self.numerics, self.num_classes, jnp.mean(x, axis=(1, 2))))


def test_a_registered_network_is_trained_and_described(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(registry, "ENTRIES", [*registry.ENTRIES])
    registry.register(Small, ("small3",), lambda name: layers.Variant("small", 3, {}, {}) if name == "small3" else None)
    config = digits.get_config()
    config.model.name = "small3"
    config.train.stop_after, config.train.gradients_every = 2, 2
    assert training.train(config, tmp_path / "run").step == 2
    _, last = runs.Run(tmp_path / "run").metrics("gradients")
    assert list(last["kernels"]) == ["conv", "head"] and last["outputs"] == {}
    assert launch.main(["describe", "small3"]) == 0
    file = tmp_path / "small3.safetensors"
    assert launch.main(["export", f"--workdir={tmp_path / 'run'}", f"--weights={file}"]) == 0
    _, variables, _ = load_pretrained(file)
    trained = training.load_run(tmp_path / "run").state.params
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), variables["params"], trained))
    with pytest.raises(UserError, match="model.dropout is 0.5, and small3 takes no options"):
        create_model("small3", 10, dropout=0.5)
