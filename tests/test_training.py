"""One update, one evaluation, one schedule: against arithmetic by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from configs import cifar10, digits, imagenet
from plain56.data import Batch, Split
from plain56.models import Output, create_model
from plain56.training import prepare
from plain56.training.metrics import Totals, batch_totals, example_losses, split_totals
from plain56.training.optimizer import make_schedule
from plain56.training.state import create_train_state
from plain56.training.step import Feed, Start, Update, _branch, _select, train_step, train_steps


@pytest.mark.parametrize(
    ("name", "step", "rate"),
    [
        # Section 4.2: 0.1, divided by 10 at 32k and 48k; 110 layers warm up at 0.01 for 400 iterations.
        ("resnet20", 0, 0.1),
        ("resnet20", 31_999, 0.1),
        ("resnet20", 32_000, 0.01),
        ("resnet20", 47_999, 0.01),
        ("resnet20", 48_000, 0.001),
        ("resnet20", 63_999, 0.001),
        ("resnet110", 0, 0.01),
        ("resnet110", 399, 0.01),
        ("resnet110", 400, 0.1),
        ("resnet110", 32_000, 0.01),
        # Section 3.4 on ImageNet; Szegedy et al. 2014, section 6: 4 % less every 8 epochs.
        ("resnet50", 149_999, 0.1),
        ("resnet50", 300_000, 0.001),
        ("googlenet", 319_999, 0.01),
        ("googlenet", 640_000, 0.01 * 0.96**2),
        ("vgg16", 370_000 - 1, 0.01 / 1000),
    ],
)
def test_step_schedule_at_both_sides_of_its_boundaries(name, step, rate):
    recipe = imagenet if name in ("resnet50", "googlenet", "vgg16") else cifar10
    config = recipe.get_config(name)
    assert float(make_schedule(config.optimizer, config.train.steps)(step)) == pytest.approx(rate)


def test_cosine_schedule():
    config = digits.get_config("resnet20")
    schedule = make_schedule(config.optimizer, config.train.steps)
    expected = {0: 0, 20: 0.015, 39: 0.03 * 39 / 40, 40: 0.03, 220: 0.015, 400: 0}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-8)


def test_label_smoothing():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
    np.testing.assert_allclose(example_losses(logits, jnp.array([0])), [-np.log(0.7)], rtol=1e-6)
    targets = [0.7 + 0.1, 0.1, 0.1]  # 1 − 0.3 on the label, and 0.3 spread over all three
    expected = -np.dot(targets, np.log([0.7, 0.2, 0.1]))
    np.testing.assert_allclose(example_losses(logits, jnp.array([0]), 0.3), [expected], rtol=1e-6)


def test_errors_rank_ties_by_class_and_undefined_logits_last():
    logits = np.zeros((6, 10), np.float32)
    logits[0] = np.arange(10)  # label 9: first
    logits[1] = np.arange(10)  # label 5: fifth, so among the first five
    logits[2] = np.arange(10)  # label 4: sixth
    logits[3] = np.nan
    logits[4:] = 0  # all tied: the guess is class 0, as with argmax
    labels = jnp.array([9, 5, 4, 0, 1, 0])
    losses = jnp.ones(6)
    totals = batch_totals(losses, jnp.asarray(logits), labels, jnp.ones(6, bool))
    assert (int(totals.top1_errors), int(totals.top5_errors), int(totals.examples)) == (4, 2, 6)
    masked = batch_totals(losses.at[3].set(jnp.nan), jnp.asarray(logits), labels, jnp.arange(6) < 2)
    assert masked.means() == {"loss": 1.0, "top1_error": 0.5, "top5_error": 0.0}


class Constant:
    """A network whose logits say how bright the first pixel is."""

    def apply(self, variables, images, train):
        return ConfigDict({"logits": jax.nn.one_hot(jnp.round(images[:, 0, 0, 0] * 255).astype(int), 3)})


@pytest.mark.parametrize("examples", [1, 7, 8, 9, 16])
def test_evaluation_counts_every_example(examples):
    labels = np.arange(examples) % 3
    images = np.zeros((examples, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = labels
    images[-1, 0, 0, 0] = (labels[-1] + 1) % 3  # the last one is wrong
    split = Split(jnp.asarray(images), jnp.asarray(labels, jnp.int32))
    data = ConfigDict({"mean": (0.0,), "std": (1.0,)})
    totals = split_totals({}, {}, split, model=Constant(), batch_size=8, data=data, split_batch=lambda batch: batch)
    assert (int(totals.examples), int(totals.top1_errors)) == (examples, 1)


def test_evaluation_equals_a_direct_one(tiny_config):
    program = prepare(tiny_config)
    state, _ = program.initial
    tested = program.evaluate(state.params, state.batch_stats, program.dataset.test)
    assert int(tested.examples) == 449
    from plain56.config import build_model

    images = (program.dataset.test.images.astype(jnp.float32) / 255 - 0.3057) / 0.3762
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = jax.jit(build_model(tiny_config, 10).apply)(variables, images).logits
    assert int(tested.top1_errors) == int((logits.argmax(-1) != program.dataset.test.labels).sum())
    means = tested.means()
    log_probabilities = jax.nn.log_softmax(logits)[jnp.arange(449), program.dataset.test.labels]
    assert means["loss"] == pytest.approx(-float(log_probabilities.mean()), rel=1e-5)


def test_a_branch_and_a_selection_are_the_same():
    """Only the branch runs on a CPU, and only the selection elsewhere."""
    new, old = {"a": jnp.arange(3), "b": (jnp.ones(()),)}, {"a": -jnp.arange(3), "b": (jnp.array(jnp.nan),)}
    for condition, expected in ((True, new), (False, old)):
        for function in (_branch, _select):
            jax.tree.map(np.testing.assert_array_equal, jax.jit(function)(condition, new, old), expected)


def test_non_finite_update_keeps_the_last_finite_state():
    split = Split(jnp.zeros((8, 1, 1, 1), jnp.uint8), jnp.zeros(8, jnp.int32))
    data = digits.get_config().data

    class Bias(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            return Output(self.param("bias", nn.initializers.zeros, (2,))[None] + jnp.zeros((images.shape[0], 1)))

    # Every update adds one, and the fourth is not finite.
    added = optax.stateless_with_tree_map(lambda gradient, bias: jnp.where(bias == 3, jnp.nan, jnp.ones_like(bias)))
    update = Update(Bias(), added, seed=0)
    feed = Feed(data, batch_size=4, most_steps=5, split_batch=lambda batch: batch)
    state = create_train_state(Bias(), added, 0, (1, 1, 1))
    for first_step in (0, 5):  # a later call leaves it as it is, too
        state, totals = train_steps(state, Totals.zero(), split, Start(first_step, 0, 0), 5, update=update, feed=feed)
        assert (int(state.step), state.params["bias"].tolist()) == (3, [3.0, 3.0])
    assert int(totals.examples) == 0


@pytest.mark.slow
def test_accumulated_gradients_are_the_mean_of_those_of_the_parts():
    """Of each second image: with plain gradient descent the update is the mean of the parts' updates."""
    model, optimizer = create_model("resnet8", 10, widths=(4, 4, 8)), optax.sgd(0.1)
    state = jax.jit(lambda: create_train_state(model, optimizer, 0, (8, 8, 1)))()
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 1)) + jnp.arange(8)[:, None, None, None]
    batch = Batch(images, jnp.arange(8, dtype=jnp.int32), jnp.ones(8, bool))

    def step(state, batch, accumulate=1):
        return jax.jit(functools.partial(train_step, update=Update(model, optimizer, seed=0, accumulate=accumulate)))(
            state, batch
        )

    accumulated, totals = step(state, batch, accumulate=2)
    halves = [step(state, Batch(*(leaf[first::2] for leaf in batch))) for first in (0, 1)]

    def compare(key):
        means = jax.tree.map(lambda a, b: (a + b) / 2, *(getattr(half, key) for half, _ in halves))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), getattr(accumulated, key), means)

    compare("params")
    compare("batch_stats")
    jax.tree.map(lambda whole, *parts: np.testing.assert_allclose(whole, sum(parts), rtol=1e-6), totals, *(t for _, t in halves))
    whole = step(state, batch)[0]  # which normalizes by other statistics
    assert not np.allclose(whole.params["head"]["kernel"], accumulated.params["head"]["kernel"], atol=1e-4)


def test_accumulated_gradients_are_those_of_the_batch_where_nothing_is_normalized():
    model, optimizer = create_model("vgg11", 10, form="small", dropout=0.0), optax.sgd(0.1)
    state = jax.jit(lambda: create_train_state(model, optimizer, 0, (8, 8, 1)))()
    batch = Batch(jax.random.normal(jax.random.key(1), (8, 8, 8, 1)), jnp.arange(8, dtype=jnp.int32), jnp.arange(8) != 3)

    def step(state, batch, accumulate=1):
        return jax.jit(functools.partial(train_step, update=Update(model, optimizer, seed=0, accumulate=accumulate)))(
            state, batch
        )

    (one, totals), (four, sums) = step(state, batch), step(state, batch, accumulate=4)
    assert int(totals.examples) == int(sums.examples) == 7
    assert float(totals.loss) == pytest.approx(float(sums.loss), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, four.params)


@pytest.mark.slow
def test_dropout_is_a_function_of_seed_and_step_and_auxiliary_heads_learn():
    model, optimizer = create_model("googlenet", 10, form="small"), optax.sgd(0.1)
    state = jax.jit(lambda: create_train_state(model, optimizer, 0, (8, 8, 1)))()
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    batch = Batch(images, jnp.arange(4, dtype=jnp.int32), jnp.ones(4, bool))
    step = jax.jit(lambda state, seed: train_step(state, batch, Update(model, optimizer, seed)))
    (first, totals), (again, _), (_, later), (_, seeded) = (
        step(state.replace(step=jnp.int32(k)), seed) for k, seed in ((7, 0), (7, 0), (8, 0), (7, 1))
    )
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert len({float(totals.loss), float(later.loss), float(seeded.loss)}) == 3
    # The totals are the last layer's loss only; the heads learn from their own.
    for head in ("auxiliary4a", "auxiliary4d"):
        assert (first.params[head]["head"]["kernel"] != state.params[head]["head"]["kernel"]).any()
