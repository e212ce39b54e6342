"""Keras Applications' weights give Keras' logits.

`tests/fixtures/keras_applications.npz` holds what Keras computed; the script beside it says how.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plain56 import weights
from plain56.errors import UserError
from plain56.models import create_model
from plain56.weights import files, keras
from tests.fixtures import formula

h5py = pytest.importorskip("h5py")
REFERENCES = np.load(pathlib.Path(__file__).parent / "fixtures" / "keras_applications.npz")
SHAPES = {
    name: {key: tuple(shape) for key, shape in shapes.items()} for name, shapes in json.loads(str(REFERENCES["shapes"])).items()
}


def write(path, tensors, old=None, prefix=""):
    """A file as Keras writes them, a group for each layer and its variables in a group of the same name; or as old ones are."""
    with h5py.File(path, "w") as file:
        for name, tensor in tensors.items():
            layer, variable = name.split("/")
            group = "probs" if (old, layer) == ("resnet", "predictions") else layer
            inside = f"{layer}_{'W' if variable == 'kernel' else 'b'}_1" if old == "vgg" else f"{group}/{variable}"
            file[f"{prefix}{group}/{inside}:0"] = tensor
    return path


@pytest.mark.parametrize("name", ["resnet50", pytest.param("vgg16", marks=pytest.mark.slow)])
def test_logits(tmp_path, name):
    tensors = formula.keras_weights(SHAPES[name])
    path = write(tmp_path / "weights.h5", tensors, prefix="model_weights/" if name == "vgg16" else "")
    module, variables, preprocess = weights.load_pretrained(path, name)
    pictures = formula.pictures("keras", (2, 224, 224, 3))
    from plain56.data import normalise

    images = normalise(jnp.asarray(pictures), keras.MEAN, keras.STD)
    logits = jax.jit(lambda variables, images: module.apply(variables, images).logits)(variables, images)
    assert np.abs(logits - REFERENCES[name]).max() < 1e-4 * np.abs(REFERENCES[name]).max()
    assert preprocess(pictures[0]).shape == (1, 224, 224, 3)


@pytest.mark.parametrize(("kind", "layers"), [("vgg", ("block1_conv1", "fc1")), ("resnet", ("conv1_conv", "predictions"))])
def test_names_of_old_files(tmp_path, kind, layers):
    tensors = {f"{layer}/{variable}": np.full(3, i) for i, layer in enumerate(layers) for variable in ("kernel", "bias")}
    assert files.read(write(tmp_path / "old.h5", tensors, old=kind))[0].keys() == tensors.keys()


@pytest.mark.parametrize("name", keras.NAMES)
def test_every_tensor_has_a_place(name):
    options = keras.RESNET_OPTIONS if name.startswith("resnet") else {}
    module = create_model(name, formula.NUM_CLASSES, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    zeros = {key: np.broadcast_to(np.float32(0), shape) for key, shape in SHAPES[name].items()}
    variables = keras.from_keras(name, zeros, shapes)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, {"batch_stats": {}, **shapes})
    first = min(SHAPES[name])
    with pytest.raises(UserError, match=f"'{first}' is missing"):
        keras.from_keras(name, {key: tensor for key, tensor in zeros.items() if key != first}, shapes)
    with pytest.raises(UserError, match="'zzz/kernel' is left over"):
        keras.from_keras(name, zeros | {"zzz/kernel": np.zeros(3)}, shapes)
    with pytest.raises(UserError, match=rf"'{first}' for {name} has shape \(3,\); needed is"):
        keras.from_keras(name, zeros | {first: np.zeros(3)}, shapes)


def test_what_is_wrong_with_a_file_costs_one_sentence(tmp_path):
    (tmp_path / "page.h5").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="cannot be read as a Keras file"):
        weights.load_pretrained(tmp_path / "page.h5", "resnet50")
    write(tmp_path / "small.h5", {"conv1_conv/kernel": np.zeros(3)})
    with pytest.raises(UserError, match="by Keras' names are read for resnet50, .*; the network is resnet18"):
        weights.load_pretrained(tmp_path / "small.h5", "resnet18")
    with pytest.raises(UserError, match="is missing in the tensors for resnet50 by Keras' names"):
        weights.load_pretrained(tmp_path / "small.h5", "resnet50")
