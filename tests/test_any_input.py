"""Whatever a user gives works, or is refused in a sentence: no traceback, no hang, and no code from a file is run."""

import contextlib
import json
import random
import shutil
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import digits
from plain56 import pretrained, runs, sweeps, training
from plain56.cli import flags
from plain56.config import check, from_json
from plain56.errors import UserError
from plain56.weights import formats
from tests import fuzz
from tests.fixtures.sets import RGB, load_anew, noise, write_folder, write_tfds
from tests.test_pictures import no_longer_than

quick = settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck), derandomize=True)
thorough = settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck), derandomize=True)

NUMBERS = st.integers() | st.integers(0, 5) | st.floats() | st.floats(0, 1)
ATOMS = st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.sampled_from(["auto", "A", "3x3", "jit", "digits"])
VALUES = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2))


def tiny():
    config = digits.get_config("resnet8")
    config.model.widths = (4, 4, 8)
    config.train.batch_size, config.train.steps, config.train.steps_per_call, config.train.stop_after = 32, 12, 4, 2
    config.optimizer.schedule.warmup_steps = 2
    return config


KEYS = sorted(runs.flatten(tiny().to_dict()))


@contextlib.contextmanager
def a_sentence_or_nothing():
    """Allows a UserError of one line, and yields a list that then holds it."""
    refused = []
    try:
        yield refused
    except UserError as error:
        assert str(error) and "\n" not in str(error) and "Traceback" not in str(error)
        refused.append(error)


def with_value(config, key, value):
    """A config as nested dicts, with another value in one place."""
    nested = part = json.loads(json.dumps(config.to_dict()))
    *outer, last = key.split(".")
    for name in outer:
        part = part[name]
    part[last] = value
    return nested


@quick
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_key_in_a_file(tmp_path_factory, key, value):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(with_value(tiny(), key, value)))
    with a_sentence_or_nothing():
        check(flags.parse([f"--config={file}"])[0].config)


# The types of keys whose default is None.
TYPES = dict.fromkeys(("shortcut", "bottleneck_stride", "form", "activation", "normalization", "initializer", "kernel"), str)
TYPES |= {
    **dict.fromkeys(("dropout", "epsilon", "clip_norm", "negative_slope", "branch_scale", "shortcut_scale", "survival"), float)
}
TYPES["widths"] = list


@pytest.mark.parametrize("key", KEYS)
def test_value_of_another_type_is_refused(tmp_path, key):
    default = runs.flatten(json.loads(json.dumps(tiny().to_dict())))[key]
    needed = TYPES.get(key.split(".")[-1], bool) if default is None else type(default)
    for value in (True, 1, 1.5, "x", ["x"], [[1]], {"a": 1}):
        if type(value) is needed or (needed, type(value)) == (float, int):
            continue
        nested = with_value(tiny(), key, value)
        (tmp_path / "any.json").write_text(json.dumps(nested))
        for read in (lambda: from_json(nested), lambda: flags._run_config(tmp_path / "any.json")):  # noqa: B023
            with pytest.raises(UserError, match=key) as refused:
                check(read())
            assert "\n" not in str(refused.value)


@quick
@given(st.sampled_from(KEYS), st.text() | VALUES.map(repr))
def test_any_text_of_any_flag(key, text):
    with a_sentence_or_nothing():
        check(flags.parse(["--config=configs/digits.py:resnet8", f"--config.{key}={text}"])[0].config)


# Values that train within seconds if they are accepted; no rule limits a batch to what the memory takes.
COUNTS, STEPS, RATES = st.integers(0, 64), st.integers(0, 20) | st.just(2**31 - 1), st.floats(0, 2) | st.floats(0)
PLAUSIBLE = {
    "seed": st.integers(0, 2**32 - 1),
    "parallelism": st.sampled_from(["jit", "pmap"]),
    "model.shortcut": st.sampled_from(["A", "B", "C", ""]),
    "model.widths": st.lists(st.integers(0, 9), min_size=2, max_size=4),
    "model.name": st.sampled_from(["plain8", "resnet14", "resnet18", "plain50_cifar", "vgg11_bn", "resnet3"]),
    "model.dtype": st.sampled_from(["float32", "bfloat16", "float64"]),
    "batch_norm.momentum": st.floats(0, 1),
    "batch_norm.epsilon": st.none() | st.floats(),
    "data.mean": st.lists(st.floats(0, 1), min_size=1, max_size=3),
    "data.std": st.lists(st.floats(0.0, 1), min_size=1, max_size=3),
    "data.classes": st.lists(st.sampled_from("0123x"), max_size=3),
    "data.mode": st.sampled_from(["auto", "resident", "stream"]),
    "data.augment.enlarge": st.lists(st.floats(1, 3), max_size=2),
    "data.augment.area": st.lists(st.floats(0, 1), max_size=2),
    "train.warm_start": st.text(max_size=4),
    "transfer.weights": st.text(max_size=4),
    "transfer.freeze": st.lists(st.sampled_from(["*", "stem", "stage1", "head", "x", ""]), max_size=2),
    "optimizer.schedule.name": st.sampled_from(["step", "cosine"]),
    "optimizer.schedule.boundaries": st.lists(STEPS, max_size=2),
    **dict.fromkeys(("model.pre_activation", "model.zero_init", "model.remat", "model.fixup"), st.none() | st.booleans()),
    "model.activation": st.sampled_from(["relu", "leaky_relu", "tanh", "tat"]),
    "model.negative_slope": st.none() | st.floats(0, 1),
    "model.normalization": st.sampled_from(["batch", "group", "layer", "none"]),
    "model.initializer": st.sampled_from(["he_normal", "orthogonal", "delta_orthogonal", "dirac"]),
    "model.kernel": st.sampled_from(["free", "dirac"]),
    "model.branch_scale": st.sampled_from(["inverse_sqrt_blocks", "learned_zero", 0, 0.5, 1]),
    **dict.fromkeys(("model.shortcut_scale", "model.survival"), st.floats(0, 1)),
    **dict.fromkeys(("batch_norm.sync", "data.augment.flip", "optimizer.decay_all", "transfer.probe"), st.booleans()),
    **dict.fromkeys(("transfer.freeze_scales", "transfer.freeze_statistics"), st.booleans()),
    **dict.fromkeys(("data.validation_examples", "data.examples_per_class", "data.image_size", "data.augment.pad"), COUNTS),
    **dict.fromkeys(("train.batch_size", "train.accumulate", "train.stop_after"), COUNTS),
    **dict.fromkeys((f"train.{name}_every" for name in ("log", "evaluate", "evaluate_train", "gradients", "checkpoint")), STEPS),
    **dict.fromkeys(("train.steps_per_call", "optimizer.schedule.warmup_steps"), STEPS),
    **dict.fromkeys(("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.schedule.warmup_learning_rate"), RATES),
    **dict.fromkeys(("optimizer.momentum", "train.label_smoothing", "transfer.rate_factor", "data.augment.color"), RATES),
}


@st.composite
def several_changes(draw):
    keys = draw(st.lists(st.sampled_from(sorted(PLAUSIBLE)), min_size=1, max_size=3, unique=True))
    return {key: draw(PLAUSIBLE[key]) for key in keys}


@pytest.mark.slow
@thorough
@given(several_changes())
def test_what_is_accepted_trains(tmp_path_factory, changes):
    nested = tiny().to_dict()
    for key, value in changes.items():
        nested = with_value(from_json(nested), key, value)
    workdir = tmp_path_factory.getbasetemp() / "accepted"
    shutil.rmtree(workdir, ignore_errors=True)
    with a_sentence_or_nothing() as refused, no_longer_than(120):
        config = from_json(nested)
        check(config)
        status = training.train(config, workdir)
        assert status.state in ("finished", "stopped", "diverged")
        assert training.train(config, workdir)[:4] == status[:4]
    assert not refused or not (workdir / "config.json").exists() or runs.Run(workdir).status().state == "failed"


DAMAGE = st.tuples(st.floats(0, 1), st.integers(1, 255)) | st.floats(0, 1)


def damaged(content, damage):
    """The bytes cut off at a share of their length, or with one byte changed there."""
    if isinstance(damage, float):
        return content[: int(damage * len(content))]
    share, bits = damage
    place = min(int(share * len(content)), len(content) - 1)
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, its weights, and a sweep directory around it."""
    folder = tmp_path_factory.mktemp("input")
    element = sweeps.Element("run", {"seed": 0, "model.name": "resnet8"}, tiny())
    sweeps.run_sweep([element], folder / "sweep")
    pretrained.save_pretrained(folder / "good.safetensors", folder / "sweep" / "run")
    return folder


@quick
@given(DAMAGE)
def test_damaged_weights(trained, damage):
    file = trained / "bad.safetensors"
    file.write_bytes(damaged((trained / "good.safetensors").read_bytes(), damage))
    with a_sentence_or_nothing(), no_longer_than(60):
        tensors, _ = formats.read(file)
        assert all(np.isfinite(tensor).all() for tensor in tensors.values())


@quick
@given(DAMAGE)
def test_damaged_keras_weights(trained, damage):
    h5py = pytest.importorskip("h5py")
    file = trained / "bad.h5"
    with h5py.File(file, "w") as good:
        for layer in ("conv1_conv", "conv1_bn"):
            good[f"{layer}/{layer}/kernel:0"] = np.ones((3, 3), np.float32)
    file.write_bytes(damaged(file.read_bytes(), damage))
    with a_sentence_or_nothing(), no_longer_than(60):
        formats.read(file)


@quick
@given(st.data())
def test_damaged_tfds_set(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "tfds"
    if not folder.exists():
        images = {split: noise(6, 4, 4, 3) for split in ("train", "test")}
        write_tfds(folder, "insects", images, {"train": [0, 1, 2, 0, 1, 2], "test": [0, 1, 2, 0, 1, 2]})
    file = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    good = file.read_bytes()
    file.write_bytes(damaged(good, data.draw(DAMAGE)))
    try:
        with a_sentence_or_nothing(), no_longer_than(60):
            dataset = load_anew(name="insects", dir=str(folder), **RGB)
            assert dataset.train.images.shape[1:] == (4, 4, 3)
            assert dataset.train.labels.min() >= 0 and dataset.train.labels.max() < len(dataset.class_names)
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_code_that_a_tfds_set_names_is_not_run(tmp_path, monkeypatch, key):
    images = {split: noise(3, 4, 4, 3) for split in ("train", "test")}
    write_tfds(tmp_path, "insects", images, {"train": [0, 1, 2], "test": [0, 1, 2]})
    (tmp_path / "hostile.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "insects" / "1.0.0" / "features.json"
    features = json.loads(file.read_text())
    if key == "type":  # as older versions of TFDS wrote it
        features = {"type": "hostile.Image", "content": {}}
    else:
        image = features["featuresDict"]["features"]["image"]
        del image["pythonClassName"]
        image[key] = "hostile.Image"
    file.write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"is refused: it names 'hostile.Image', whose code reading it would run"):
        load_anew(name="insects", dir=str(tmp_path), **RGB)
    assert "hostile" not in sys.modules


@quick
@given(DAMAGE)
def test_damaged_picture_in_a_folder(tmp_path_factory, damage):
    folder = tmp_path_factory.getbasetemp() / "pictures"
    if not folder.exists():
        write_folder(folder, {"cat": 30, "dog": 30})
    file = folder / "cat" / "003.png"
    good = file.read_bytes()
    file.write_bytes(damaged(good, damage))
    try:
        with a_sentence_or_nothing(), no_longer_than(60):
            dataset = load_anew(name=f"folder:{folder}", **RGB)
            assert 59 <= len(dataset.train.labels) + len(dataset.test.labels) <= 60
    finally:
        file.write_bytes(good)


@pytest.mark.slow
def test_damages_that_know_the_structure(tmp_path):
    """The first of the damages that `make fuzz` tries for as long as one likes."""
    rows = fuzz.make_home(tmp_path / "home")
    for number in range(20):
        damage, wrong = fuzz.attempt(tmp_path / "home", rows, random.Random(number), tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number))
        assert not wrong, (number, damage)
