"""Keras Applications' weights give Keras' logits.

`tests/fixtures/keras_applications.npz` holds what Keras computed; the script beside it says how.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plain56 import pretrained
from plain56.errors import UserError
from plain56.models import create_model
from plain56.weights import formats, keras
from tests.fixtures import formula
from tests.test_weights_input import refusal

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
    module, variables, preprocess = pretrained.load_pretrained(path, name)
    pictures = formula.pictures("keras", (2, 224, 224, 3))
    from plain56.data import normalize

    images = normalize(jnp.asarray(pictures), keras.MEAN, keras.STD)
    logits = jax.jit(lambda variables, images: module.apply(variables, images).logits)(variables, images)
    assert np.abs(logits - REFERENCES[name]).max() < 1e-4 * np.abs(REFERENCES[name]).max()
    assert preprocess(pictures[0]).shape == (1, 224, 224, 3)


@pytest.mark.parametrize(("kind", "layers"), [("vgg", ("block1_conv1", "fc1")), ("resnet", ("conv1_conv", "predictions"))])
def test_names_of_old_files(tmp_path, kind, layers):
    tensors = {f"{layer}/{variable}": np.full(3, i) for i, layer in enumerate(layers) for variable in ("kernel", "bias")}
    assert formats.read(write(tmp_path / "old.h5", tensors, old=kind))[0].keys() == tensors.keys()


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
    with pytest.raises(UserError, match=rf"'{first}' for {name} must have shape .*, not \(3,\)"):
        keras.from_keras(name, zeros | {first: np.zeros(3)}, shapes)
    if options:
        large = np.full(64, 3e38, np.float32)  # each is finite, and their difference is not
        with pytest.raises(UserError, match="mean and bias of 'conv1_bn' .* too large"):
            keras.from_keras(name, zeros | {"conv1_bn/moving_mean": large, "conv1_conv/bias": -large}, shapes)


def test_what_is_wrong_with_a_file_costs_one_sentence(tmp_path):
    (tmp_path / "page.h5").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="cannot be read as a Keras file"):
        pretrained.load_pretrained(tmp_path / "page.h5", "resnet50")
    write(tmp_path / "small.h5", {"conv1_conv/kernel": np.zeros(3)})
    with pytest.raises(UserError, match="by Keras' names are read for resnet50, .*; the network is resnet18"):
        pretrained.load_pretrained(tmp_path / "small.h5", "resnet18")
    with pytest.raises(UserError, match="is missing in the tensors for resnet50 by Keras' names"):
        pretrained.load_pretrained(tmp_path / "small.h5", "resnet50")


def hdf5_file(path, build):
    with h5py.File(path, "w") as file:
        build(file)
    return path


def external(file):
    file.create_dataset("conv1_conv/kernel:0", (4,), "f4", external=[(str(secret_of(file)), 0, 16)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(other_of(file)), "conv1_conv/kernel:0", (4,))
    file.create_virtual_dataset("conv1_conv/kernel:0", layout)


def secret_of(file):
    return file.filename.replace("weights.h5", "secret.bin")


def other_of(file):
    return file.filename.replace("weights.h5", "other.h5")


def linked(name, link):
    return lambda file: file.create_group("group") and file.__setitem__(name, link(file))


OUTSIDE = {
    "external storage": external,
    "virtual": virtual,
    "external link": linked("group/kernel:0", lambda file: h5py.ExternalLink(other_of(file), "/conv1_conv/kernel:0")),
    "external group": linked("conv1_conv", lambda file: h5py.ExternalLink(other_of(file), "/conv1_conv")),
    "soft link": linked("group/kernel:0", lambda file: h5py.SoftLink("/elsewhere/conv1_conv/kernel:0")),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_keras_file_reads_no_other_file(tmp_path, kind):
    (tmp_path / "secret.bin").write_bytes(np.ones(4, np.float32).tobytes())
    hdf5_file(tmp_path / "other.h5", lambda file: file.create_dataset("conv1_conv/kernel:0", data=np.ones(4, np.float32)))
    assert "is refused" in refusal(hdf5_file(tmp_path / "weights.h5", OUTSIDE[kind]), formats.read)


CHUNKED = {"dtype": "f4", "chunks": (1024,)}


@pytest.mark.parametrize(
    "build",
    [
        lambda file: file.create_dataset("a/kernel:0", (2**50,), **CHUNKED),
        lambda file: file.create_dataset("a/kernel:0", (2**32, 2**32), "f4", chunks=(1, 1)),
        lambda file: [file.create_dataset(f"layer{i}/kernel:0", (2**40,), **CHUNKED) for i in range(4)],
    ],
)
def test_large_tensors_of_keras_take_no_memory(tmp_path, build):
    assert "a quarter of what is free" in refusal(hdf5_file(tmp_path / "weights.h5", build), formats.read)


def test_values_of_a_keras_file(tmp_path):
    path = tmp_path / "weights.h5"

    def read(value, name="conv/kernel:0"):
        return hdf5_file(path, lambda file: file.create_dataset(name, data=value))

    for value in (np.ones(3, np.float16), np.ones(3, ">f4"), np.ones(3, np.int8), 1.5, np.zeros((0, 3), np.float32)):
        np.testing.assert_array_equal(formats.read(read(value))[0]["conv/kernel"], value)
    pair = np.zeros(3, [("a", "f4")])
    for value in ("text", b"bytes", np.ones(3, bool), np.ones(3, complex), pair, h5py.Empty("f4"), np.full(3, 1e300), [np.nan]):
        refusal(read(value), formats.read)
    refusal(hdf5_file(path, lambda file: file.create_dataset("conv/kernel:0", (2,), h5py.vlen_dtype("f4"))), formats.read)
    refusal(read(-np.ones(3), "conv/moving_variance:0"), formats.read)
    refusal(read(np.ones(3), "kernel:0"), formats.read)  # of no layer
    refusal(hdf5_file(path, lambda file: file.update({"conv/a/kernel:0": [1.0], "conv/b/kernel:0": [2.0]})), formats.read)
