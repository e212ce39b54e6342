import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from plain56.data import Split, batch_indices, epoch_order, evaluation_batch, load_dataset, train_batch
from plain56.data.augment import augment, normalise
from plain56.errors import UserError


def test_digits_are_split_for_good_and_by_class():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    assert dataset.train.images.shape == (1348, 8, 8, 1)
    assert dataset.test.images.shape == (449, 8, 8, 1)
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [133, 137, 133, 137, 136, 136, 136, 134, 131, 135])
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [45, 45, 44, 46, 45, 46, 45, 45, 43, 45])
    # Together they are the source: 16 grey levels, scaled to bytes.
    source = load_digits().images.reshape(1797, 64)
    together = np.concatenate([dataset.train.images, dataset.test.images]).reshape(1797, 64).astype(int)
    np.testing.assert_array_equal(np.unique(np.round(source * 255 / 16), axis=0), np.unique(together, axis=0))
    assert dataset.train.images.dtype == np.uint8


def indices_of(seed, steps, batch_size, examples, first=0, epoch=0):
    """The indices of consecutive batches, with the position counted from `epoch` on."""
    step = jax.jit(lambda order, position: batch_indices(order, seed, epoch, position, batch_size))
    order = epoch_order(seed, epoch, batch_size, examples)
    batches = []
    for k in range(first, first + steps):
        batch, order = step(order, jnp.int32(k * batch_size))
        batches.append(np.asarray(batch))
    return np.stack(batches)


@pytest.mark.parametrize(("batch_size", "examples"), [(7, 40), (32, 40), (100, 40), (8, 8)])
def test_each_epoch_visits_every_example_once(batch_size, examples):
    visited = indices_of(5, 3 * examples // batch_size + 1, batch_size, examples).ravel()
    epochs = [visited[i * examples : (i + 1) * examples] for i in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(examples))
    assert any((a != b).any() for a, b in itertools.pairwise(epochs))


def test_order_does_not_depend_on_where_a_call_begins():
    whole = indices_of(1, 12, 7, 40)
    pieces = [indices_of(1, count, 7, 40, first) for first, count in ((0, 5), (5, 1), (6, 6))]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(indices_of(1, 1, 40, 40, epoch=1), indices_of(1, 1, 40, 40, first=1))
    assert (indices_of(2, 12, 7, 40) != whole).any()


def test_positions_beyond_32_bits():
    # Step 10^8 with batch 1,024: the position is 10^11.
    epoch, position = divmod(10**8 * 1024, 1000)
    assert position == 0
    np.testing.assert_array_equal(np.sort(indices_of(0, 125, 8, 1000, epoch=epoch).ravel()), np.arange(1000))


def test_shifted_images_are_crops_of_the_padded_ones():
    images = np.random.default_rng(0).integers(1, 256, (64, 6, 5, 3), dtype=np.uint8)
    shifted = np.asarray(augment(jnp.asarray(images), jax.random.key(0), ConfigDict({"pad": 2, "flip": False})))
    offsets = set()
    for image, result in zip(images, shifted, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        found = [(i, j) for i in range(5) for j in range(5) if (padded[i : i + 6, j : j + 5] == result).all()]
        assert len(found) == 1
        offsets.update(found)
    assert {i for i, _ in offsets} == {j for _, j in offsets} == set(range(5))


def test_flip_mirrors_about_half_of_the_images():
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 1), dtype=np.uint8)
    flipped = np.asarray(augment(jnp.asarray(images), jax.random.key(0), ConfigDict({"pad": 0, "flip": True})))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((flipped == images).all(axis=(1, 2, 3)) | mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_normalise_by_channel():
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    result = normalise(jnp.asarray(images), (0.5, 0.2, 0.0), (0.25, 1.0, 2.0))
    np.testing.assert_allclose(result.ravel(), [-2.0, 0.0, 0.5], atol=1e-7)


def test_a_step_is_replayed_from_seed_and_step():
    split = jax.tree.map(jnp.asarray, load_dataset("digits").train)
    data = ConfigDict({"mean": (0.3,), "std": (0.4,), "augment": {"pad": 1, "flip": True}})
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


def write_tfds(folder, name, images, labels, file_format="array_record"):
    """A data set as TFDS prepares it: array_record files of tf.train.Example, a feature list and an info file."""
    import json

    import cv2
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = folder / name / "1.0.0"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for image, label in zip(images[split], labels[split], strict=True):
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
    shape = {"dimensions": [str(size) for size in images["train"].shape[1:]]}
    module = "tensorflow_datasets.core.features"
    image = {"pythonClassName": f"{module}.image_feature.Image", "image": {"shape": shape, "dtype": "uint8"}}
    label = {"pythonClassName": f"{module}.class_label_feature.ClassLabel", "classLabel": {"numClasses": "3"}}
    features = {"features": {"image": image, "label": label}}
    dictionary = {"pythonClassName": f"{module}.features_dict.FeaturesDict", "featuresDict": features}
    (folder / "features.json").write_text(json.dumps(dictionary))
    (folder / "label.labels.txt").write_text("ant\nbee\ncat\n")
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits = [
        {"name": split, "shardLengths": [str(len(labels[split]))], "numBytes": "1", "filepathTemplate": template}
        for split in ("train", "test")
    ]
    info = {"name": name, "version": "1.0.0", "fileFormat": file_format, "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_prepared_tfds_set_is_read_without_tensorflow(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    images = {split: generator.integers(0, 256, (size, 6, 6, 3), dtype=np.uint8) for split, size in (("train", 7), ("test", 4))}
    labels = {"train": [0, 1, 2, 0, 1, 2, 0], "test": [2, 1, 0, 2]}
    write_tfds(tmp_path, "insects", images, labels)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    dataset = load_dataset("insects")
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(dataset, split).images, images[split])
        np.testing.assert_array_equal(getattr(dataset, split).labels, labels[split])
    assert dataset.class_names == ("ant", "bee", "cat")
    assert "tensorflow" not in sys.modules


def test_set_that_only_tensorflow_reads_is_refused(tmp_path):
    images = {split: np.zeros((1, 4, 4, 3), np.uint8) for split in ("train", "test")}
    write_tfds(tmp_path, "insects", images, {"train": [0], "test": [0]}, file_format="tfrecord")
    with pytest.raises(UserError, match="stored as tfrecord.*needed is array_record"):
        load_dataset("insects", str(tmp_path))


def test_absent_set_names_the_folder_and_the_extra(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}.*'prepare'"):
        load_dataset("cifar10", str(tmp_path))
