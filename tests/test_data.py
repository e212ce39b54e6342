import gzip
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits
from plain56 import runs
from plain56.data import Split, evaluation_batch, load_dataset, train_batch, visiting_order
from plain56.errors import UserError
from plain56.training import train
from tests.fixtures.sets import RGB, noise, png, section, write_tfds


@pytest.mark.parametrize("length", [7, 40, 100])
def test_each_epoch_visits_every_example_once(length):
    order = np.asarray(visiting_order(5, 0, 40, length))
    assert len(order) >= length + 39  # from the last place of the first epoch on
    epochs = order.reshape(-1, 40)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(40))
    assert all((a != b).any() for a, b in itertools.pairwise(epochs))


def test_order_does_not_depend_on_where_a_call_begins():
    whole = visiting_order(1, 0, 40, 200)
    np.testing.assert_array_equal(visiting_order(1, 2, 40, 50), whole[80 : 80 + 3 * 40])
    assert (visiting_order(2, 0, 40, 200) != whole).any()


def test_a_step_is_replayed_from_seed_and_step():
    split = jax.tree.map(jnp.asarray, load_dataset(section()).train)
    data = section()
    first, again, other = (train_batch(split, jnp.arange(16), 3, step, data) for step in (9, 9, 10))
    np.testing.assert_array_equal(first.images, again.images)
    assert (np.asarray(first.images) != np.asarray(other.images)).any()
    assert first.mask.all()


def test_evaluation_batches_hold_every_example_once():
    labels = jnp.arange(10, dtype=jnp.int32)
    split = Split(jnp.zeros((10, 1, 1, 1), jnp.uint8), labels)
    data = ConfigDict({"mean": (0.0,), "std": (1.0,)})
    batches = [evaluation_batch(split, number, 4, data) for number in range(3)]
    seen = np.concatenate([np.asarray(batch.labels)[np.asarray(batch.mask)] for batch in batches])
    np.testing.assert_array_equal(np.sort(seen), labels)
    assert [int(batch.mask.sum()) for batch in batches] == [4, 4, 2]


def test_validation_examples_are_taken_out_of_training(tmp_path):
    whole = load_dataset(section())
    carved = load_dataset(section(validation_examples=300))
    assert [len(split.labels) for split in (carved.train, carved.validation, carved.test)] == [1048, 300, 449]
    together = np.concatenate([carved.train.images, carved.validation.images]).reshape(1348, 64)
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(whole.train.images.reshape(1348, 64), axis=0))
    assert np.bincount(carved.validation.labels).min() > 10, "not taken at random"
    np.testing.assert_array_equal(carved.test.images, whole.test.images)
    with pytest.raises(UserError, match="data.validation_examples must be less than the 1348 examples to train on, not 1348"):
        load_dataset(section(validation_examples=1348))


def test_few_examples_per_class():
    few = load_dataset(section(examples_per_class=5))
    np.testing.assert_array_equal(np.bincount(few.train.labels), [5] * 10)
    assert len(few.test.labels) == 449
    again, other = (load_dataset(section(examples_per_class=5, split_seed=seed)) for seed in (0, 1))
    np.testing.assert_array_equal(again.train.images, few.train.images)
    assert (other.train.images != few.train.images).any()
    with pytest.raises(UserError, match="data.examples_per_class must be at most 131 .all of class '8'., not 132"):
        load_dataset(section(examples_per_class=132))


def test_only_some_classes():
    whole, some = load_dataset(section()), load_dataset(section(classes=("7", "3")))
    assert some.class_names == ("7", "3")
    for split, everything in ((some.train, whole.train), (some.test, whole.test)):
        for label, digit in enumerate((7, 3)):
            np.testing.assert_array_equal(split.images[split.labels == label], everything.images[everything.labels == digit])
    few = load_dataset(section(classes=("7", "3"), examples_per_class=5, validation_examples=20))
    assert [len(split.labels) for split in few[:3]] == [10, 20, len(some.test.labels)]
    with pytest.raises(UserError, match="data.classes has 'x', but the classes of 'digits' are 0, 1, "):
        load_dataset(section(classes=("7", "x")))


def test_digits_enlarged_in_color():
    dataset = load_dataset(section(image_size=16, **RGB))
    assert dataset.train.images.shape == (1348, 16, 16, 3)
    assert (dataset.train.images == dataset.train.images[..., :1]).all()


def test_network_learns_from_a_folder_of_pictures(tmp_path):
    """From files of two sizes, drawn here, to a trained network: horizontal and vertical bars."""
    generator = np.random.default_rng(0)
    for label, axis in (("horizontal", 0), ("vertical", 1)):
        (tmp_path / "bars" / label).mkdir(parents=True)
        for i in range(40):
            size = 16 if i % 2 else 24
            image = generator.integers(0, 60, (size, size, 3), dtype=np.uint8)
            place = generator.integers(4, size - 4)
            image[(slice(place, place + 3), slice(None))[:: 1 - 2 * axis]] = 255
            (tmp_path / "bars" / label / f"{i}.png").write_bytes(png(image))
    config = digits.get_config("resnet8")
    config.model.widths = (4, 4, 8)
    config.data.update({"name": f"folder:{tmp_path / 'bars'}", "image_size": 16, **RGB})
    config.train.update({"steps": 60, "evaluate_every": 60, "batch_size": 32})
    config.optimizer.schedule.warmup_steps = 6
    assert train(config, tmp_path / "run").state == "finished"
    assert runs.read_run(tmp_path / "run").metrics("test")[-1]["top1_error"] <= 0.125  # two of sixteen; chance is eight


FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_as_a_folder(tmp_path):
    """A set that this project does not know, from its published files to a trained network."""
    for split, prefix, size in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        images = np.frombuffer(gzip.decompress((FASHION / f"{prefix}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
        labels = np.frombuffer(gzip.decompress((FASHION / f"{prefix}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
        assert len(labels) == size
        for label in range(10):
            (tmp_path / "fashion" / split / str(label)).mkdir(parents=True)
        for i, (image, label) in enumerate(zip(images.reshape(-1, 28, 28, 1), labels, strict=True)):
            (tmp_path / "fashion" / split / str(label) / f"{i:05}.png").write_bytes(png(image))
    config = digits.get_config("resnet8")
    config.data.update({"name": f"folder:{tmp_path / 'fashion'}", "mean": (0.286,), "std": (0.353,)})
    config.train.update({"steps": 100, "evaluate_every": 100})
    config.optimizer.schedule.warmup_steps = 10
    assert train(config, tmp_path / "run").state == "finished"
    run = runs.read_run(tmp_path / "run")
    assert (run.environment()["data"]["train"], run.environment()["data"]["test"]) == (60_000, 10_000)
    assert run.metrics("test")[-1]["top1_error"] < 0.4


def test_some_classes_of_a_set_whose_labels_have_to_be_read(tmp_path):
    images = {"train": noise(6, 4, 4, 3), "test": noise(3, 4, 4, 3)}
    write_tfds(tmp_path, "insects", images, {"train": [0, 1, 2, 2, 1, 0], "test": [2, 0, 0]})
    dataset = load_dataset(section(name="insects", dir=str(tmp_path), classes=("cat", "ant"), **RGB))
    np.testing.assert_array_equal(dataset.train.images, images["train"][[0, 2, 3, 5]])
    np.testing.assert_array_equal(dataset.train.labels, [1, 0, 0, 1])
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 1])
    with pytest.raises(UserError, match="The test split of 'insects' has no example of the classes ant, bee"):
        load_dataset(section(name="insects", dir=str(tmp_path), classes=("ant", "bee"), test_split="test[:1]", **RGB))
