"""Our networks are torchvision's: the same weights give the same logits, batch statistics and updates.

`tests/fixtures/torchvision.npz` holds what torchvision's networks computed in float64; the script beside it says how.
"""

import contextlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from plain56.data import Batch
from plain56.errors import UserError
from plain56.models import create_model
from plain56.training.optimizer import make_optimizer
from plain56.training.state import TrainState
from plain56.training.step import Update, train_step
from plain56.weights.pytorch import from_pytorch, places, to_pytorch
from tests.fixtures import formula

REFERENCES = np.load(pathlib.Path(__file__).parent / "fixtures" / "torchvision.npz")
SHAPES = {
    name: {key: tuple(shape) for key, shape in shapes.items()} for name, shapes in json.loads(str(REFERENCES["shapes"])).items()
}
NAMES = tuple(SHAPES)
TRAINED = ("resnet18", "googlenet_bn")
NORMALIZED = [name for name in NAMES if f"{name}/training" in REFERENCES]
# Errors relative to the largest logit, or to the norm of a tensor.
TOLERANCES = {"float32": 1e-4, "float64": 1e-10}


def slow_but(fast, names):
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


def arithmetic(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def load(name, dtype="float32"):
    """Our network without dropout, and its variables by the formula."""
    options = {"bottleneck_stride": "3x3"} if name.startswith("resnet") else {"dropout": 0.0}
    variables = from_pytorch(name, formula.weights(SHAPES[name]))
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)
    return create_model(name, formula.NUM_CLASSES, dtype=dtype, **options), variables


def to_ordered(name, variables):
    """torchvision's tensors in the order of the file."""
    tensors = to_pytorch(name, variables)
    return {key: tensors[key] for key in SHAPES[name] if key in tensors}


def relative_error(values, reference):
    assert values.shape == reference.shape
    return np.abs(values - reference).max() / np.abs(reference).max()


def worst_digest(tensors, references):
    """The tensor with the largest error in relation to its norm: `(error, name)`."""
    return max(
        (np.abs(formula.digest(key, tensor) - reference).max() / reference[0], key)
        for (key, tensor), reference in zip(tensors.items(), references, strict=True)
    )


def with_unbiased_variances(name, before, after):
    """torchvision's running statistics after one batch, from ours before and after it.

    Ours keep the biased variance of the batch, torchvision's n / (n − 1) times that.
    """
    before, after = (to_ordered(name, {"batch_stats": statistics}) for statistics in (before, after))
    for key, count in zip(after, REFERENCES[f"{name}/counts"], strict=True):
        if key.endswith("var"):
            # What the batch added, 0.1 · variance, times 1 / (n − 1).
            after[key] = after[key] + (after[key] - 0.9 * before[key]) / (count - 1)
    return after


@pytest.mark.parametrize("name", slow_but(("resnet18", "resnet50", "googlenet_bn", "vgg11_bn"), NAMES))
def test_logits(name):
    model, variables = load(name)
    images = formula.images("evaluation", (2, 224, 224, 3))
    logits = jax.jit(lambda variables, images: model.apply(variables, images).logits)(variables, images)
    assert relative_error(logits, REFERENCES[f"{name}/evaluation"]) < TOLERANCES["float32"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(pytest.param(name, "float64", marks=() if name in TRAINED else pytest.mark.slow) for name in NORMALIZED),
        *(pytest.param(name, "float32", marks=pytest.mark.slow) for name in TRAINED),
    ],
)
def test_training_pass(name, dtype):
    with arithmetic(dtype):
        model, variables = load(name, dtype)
        images = formula.images("training", formula.training_shape(name))
        run = jax.jit(lambda variables, images: model.apply(variables, images, train=True, mutable=["batch_stats"]))
        output, changes = jax.device_get(run(variables, images))
    assert relative_error(output.logits, REFERENCES[f"{name}/training"]) < TOLERANCES[dtype]
    if name == "googlenet_bn":
        auxiliary = np.stack(output.auxiliary_logits)
        assert relative_error(auxiliary, REFERENCES[f"{name}/auxiliary"]) < TOLERANCES[dtype]
    statistics = with_unbiased_variances(name, variables["batch_stats"], changes["batch_stats"])
    error, key = worst_digest(statistics, REFERENCES[f"{name}/statistics"])
    assert error < TOLERANCES[dtype], key


# GoogLeNet's backward pass takes 20 seconds to compile. In float32 the updates of this batch would be wrong by one percent,
# in PyTorch as well.
@pytest.mark.parametrize("name", slow_but(("resnet18",), ("resnet18", "googlenet_bn")))
def test_one_step(name):
    options = base.get_config().optimizer
    options.decay_all = True
    optimizer = make_optimizer(options, lambda step: 1.0)
    images = formula.images("training", formula.training_shape(name))
    with arithmetic("float64"):
        model, variables = load(name, "float64")
        batch = Batch(jnp.asarray(images, float), jnp.asarray(formula.labels(len(images))), jnp.ones(len(images), bool))
        state = TrainState(jnp.zeros((), jnp.int32), **variables, optimizer_state=optimizer.init(variables["params"]))
        step = jax.jit(lambda state, batch: train_step(state, batch, Update(model, optimizer, seed=0)))
        state, _ = jax.device_get(step(state, batch))
    changes = jax.tree.map(lambda new, old: new - np.asarray(old), state.params, variables["params"])
    error, key = worst_digest(to_ordered(name, {"params": changes}), REFERENCES[f"{name}/updated"])
    assert error < TOLERANCES["float64"], key


def zeros(name):
    return {key: np.zeros(shape, np.float32) for key, shape in SHAPES[name].items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_one_place(name):
    model = create_model(name, formula.NUM_CLASSES)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    table = list(places(name, variables))
    assert len(table) == len(SHAPES[name])
    assert {place.name: place.shape for place in table} == SHAPES[name]


@pytest.mark.parametrize("name", ["resnet50", "googlenet_bn", pytest.param("vgg11", marks=pytest.mark.slow)])
def test_there_and_back(name):
    tensors = formula.weights(SHAPES[name])
    variables = from_pytorch(name, tensors)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    returned = to_pytorch(name, variables)
    assert returned.keys() == tensors.keys()
    assert all(np.array_equal(returned[key], tensor) for key, tensor in tensors.items())


def test_auxiliary_heads_may_be_absent():
    tensors = {key: tensor for key, tensor in zeros("googlenet_bn").items() if not key.startswith("aux")}
    variables = from_pytorch("googlenet_bn", tensors | {"conv1.bn.num_batches_tracked": np.array(7)})
    model = create_model("googlenet_bn", formula.NUM_CLASSES, auxiliary=False)
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("resnet20", {}, "'layer1.2.bn1.bias' and 31 more are missing in the tensors for resnet20."),
        ("resnet18", {"layer2.0.bn1.weight": None}, "'layer2.0.bn1.weight' is missing in the tensors for resnet18."),
        ("resnet18", {"fc.bias": None, "fc.weight": None}, "'fc.bias' and 1 more are missing in"),
        ("resnet18", {"layer5.0.conv1.weight": np.zeros(3)}, "'layer5.0.conv1.weight' is left over in"),
        ("resnet34", {}, "'layer1.2.bn1.bias' and 79 more are missing in the tensors for resnet34."),
        (
            "resnet18",
            {"conv1.weight": np.zeros((64, 3, 3, 3))},
            "'conv1.weight' for resnet18 must have shape (64, 3, 7, 7), not (64, 3, 3, 3).",
        ),
        (
            "resnet18",
            {"fc.bias": np.zeros(11)},
            "'fc.weight' for resnet18 must have shape (11, 512), not (10, 512).",
        ),
    ],
)
def test_mistakes(name, changes, message):
    tensors = {key: tensor for key, tensor in (zeros("resnet18") | changes).items() if tensor is not None}
    with pytest.raises(UserError) as raised:
        from_pytorch(name, tensors)
    assert str(raised.value).startswith(message)
