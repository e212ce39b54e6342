"""Evaluation protocols and exact batch statistics, each against a direct computation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from plain56.data import Pictures, Split
from plain56.errors import UserError
from plain56.models import create_model
from plain56.training import evaluate_run
from plain56.training.protocols import dense_sides, evaluate_pictures, for_any_size, views
from plain56.training.statistics import exact_batch_stats, measure_moments

DATA = ConfigDict({"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3)})


def pictures(shapes):
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    labels = np.arange(len(images)) % 3
    return images, Pictures(len(images), lambda i: (images[i], labels[i]), "picture {}".format, labels)


def network(name="resnet8", **options):
    model = create_model(name, 3, **({"widths": (4, 4, 8)} | options))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    # Statistics that matter, and logits that differ.
    spread = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.uniform(jax.random.key(leaf.size), leaf.shape), variables)
    return model, spread


def test_ten_crops_by_hand():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)  # 256 / 224 of 56 pixels
    (crops,) = views(picture, "ten_crop", 56)
    (middle,) = views(picture, "center", 56)
    corners = [picture[:56, :56], picture[:56, 8:], picture[8:, :56], picture[8:, 8:], picture[4:60, 4:60]]
    np.testing.assert_array_equal(crops, [*corners, *(crop[:, ::-1] for crop in corners)])
    np.testing.assert_array_equal(middle, [corners[4]])


def test_a_wide_picture_loses_its_ends():
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, 16:80] = 255
    for protocol in ("center", "ten_crop"):
        assert all((stack == 255).all() for stack in views(picture, protocol, 56))
    assert [stack.shape for stack in views(picture, "dense", 56, (64, 32))] == [(2, 64, 96, 3), (2, 32, 48, 3)]


def test_published_sides():
    # Simonyan & Zisserman 2014, Table 4; He et al. 2015, section 3.4.
    assert dense_sides("vgg", 224) == (256, 384, 512)
    assert dense_sides("resnet", 224) == (224, 256, 384, 480, 640)
    assert dense_sides("resnet", 56) == (56, 64, 96, 120, 160)


@pytest.mark.parametrize(
    ("protocol", "sides"), [pytest.param("center", (), marks=pytest.mark.slow), ("ten_crop", ()), ("dense", (14, 20))]
)
def test_totals_equal_a_direct_computation(protocol, sides):
    images, split = pictures([(16, 16, 3)] * 3 + [(20, 30, 3), (14, 15, 3), (16, 16, 3)])
    model, variables = network()
    apply = jax.jit(model.apply)
    probabilities = []
    for image in images:
        seen = []
        for stack in views(image, protocol, 14, sides):
            x = (stack / 255 - np.array(DATA.mean)) / np.array(DATA.std)
            seen.append(jax.nn.softmax(apply(variables, x.astype(np.float32)).logits).mean(axis=0))
        probabilities.append(np.mean(seen, axis=0))
    probabilities = np.array(probabilities)
    own = probabilities[np.arange(6), split.labels]
    totals = evaluate_pictures(model, variables, split, DATA, protocol, 14, sides)
    assert float(totals.loss) == pytest.approx(-np.log(own).sum(), rel=1e-4)
    assert int(totals.top1_errors) == (probabilities.argmax(axis=1) != split.labels).sum()
    assert int(totals.examples) == 6


def test_a_small_vgg_keeps_its_pools_on_larger_pictures():
    model = create_model("vgg11", 3, form="small")
    larger = for_any_size(model, (8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    def pools(images):
        return str(jax.make_jaxpr(lambda: larger.apply(variables, images))()).count("reduce_window_max")

    assert [pools(jnp.zeros((1, size, size, 3))) for size in (8, 18, 64)] == [3, 3, 3]


def test_pictures_that_cannot_be_read_are_left_out():
    images, split = pictures([(16, 16, 3)] * 30)
    model, variables = network()
    images[7] = b"no picture"
    with pytest.raises(UserError, match="1 of 10 images in the test split cannot be read: picture 7"):
        evaluate_pictures(model, variables, split.take(np.arange(10)), DATA, "center", 14)
    assert int(evaluate_pictures(model, variables, split, DATA, "center", 14).examples) == 29


@pytest.mark.parametrize("name", ["resnet8", pytest.param("googlenet_bn", marks=pytest.mark.slow)])
def test_exact_statistics_are_those_of_one_big_batch(name):
    # 21 images in batches of 8: the last one is not full.
    images = np.random.default_rng(0).integers(0, 256, (21, 8, 8, 3), dtype=np.uint8)
    options = {"pre_activation": True} if name == "resnet8" else {"widths": None, "form": "small", "dropout": 0.0}
    model, variables = network(name, momentum=0.0, **options)
    measure = functools.partial(
        measure_moments, model=model, batch_size=8, data=DATA, split_batch=lambda batch: batch, params=variables["params"]
    )
    split = Split(jnp.asarray(images), jnp.zeros(21, jnp.int32))
    found, passes = exact_batch_stats(variables["batch_stats"], jax.jit(lambda stats: measure(batch_stats=stats, split=split)))
    x = (images / 255 - np.array(DATA.mean)) / np.array(DATA.std)
    _, changes = jax.jit(lambda: model.apply(variables, x.astype(np.float32), train=True, mutable=["batch_stats"]))()
    for part, expected in changes["batch_stats"].items():
        if part.startswith("auxiliary"):  # evaluation does without
            expected = variables["batch_stats"][part]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found[part], expected)
    # One for each layer with batch norm in a row, and one or two in which nothing changes.
    assert passes <= (8 if name == "resnet8" else 24)


def test_moments_that_overflow_are_not_hidden():
    given, moments = ({"mean": np.zeros(2, np.float32), "var": np.array([1, var], np.float32)} for var in (1, np.inf))
    found, passes = exact_batch_stats(given, lambda stats: moments)
    np.testing.assert_array_equal(found["var"], [1, np.inf])
    assert passes == 2


def test_a_run_is_evaluated_by_every_protocol(finished_run):
    plain, exact, dense = (
        evaluate_run(finished_run, **options)
        for options in ({}, {"exact_statistics": True}, {"protocol": "dense", "sides": (8,)})
    )
    assert plain["loss"] != exact["loss"] != dense["loss"]
    assert dense["examples"] == plain["examples"] == 449
    with pytest.raises(UserError, match="--side needs --protocol=dense"):
        evaluate_run(finished_run, sides=(8,))
    with pytest.raises(UserError, match="at least 4×4 pixels, not 2×2"):
        evaluate_run(finished_run, protocol="dense", sides=(2,))
