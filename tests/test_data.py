import gzip
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits
from plain56 import runs
from plain56.data import Split, evaluation_batch, load_dataset, train_batch, visiting_order
from plain56.data.augment import augment, normalize
from plain56.errors import UserError
from plain56.training import train


def section(**overrides):
    """The data section of the digits recipe, with some of its keys changed."""
    data = digits.get_config().data
    data.update(overrides)
    return data


def augmented(images, **options):
    """The images after augmentation with these options alone."""
    none = {"pad": 0, "enlarge": (), "area": (), "flip": False, "color": 0.0}
    return np.asarray(augment(jnp.asarray(images), jax.random.key(0), ConfigDict(none | options)))


def test_digits_are_split_for_good_and_by_class():
    from sklearn.datasets import load_digits

    dataset = load_dataset(section())
    assert dataset.train.images.shape == (1348, 8, 8, 1)
    assert dataset.test.images.shape == (449, 8, 8, 1)
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [133, 137, 133, 137, 136, 136, 136, 134, 131, 135])
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [45, 45, 44, 46, 45, 46, 45, 45, 43, 45])
    # Together they are the source: 16 gray levels, scaled to bytes.
    source = load_digits().images.reshape(1797, 64)
    together = np.concatenate([dataset.train.images, dataset.test.images]).reshape(1797, 64).astype(int)
    np.testing.assert_array_equal(np.unique(np.round(source * 255 / 16), axis=0), np.unique(together, axis=0))
    assert dataset.train.images.dtype == np.uint8


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


def test_shifted_images_are_crops_of_the_padded_ones():
    images = np.random.default_rng(0).integers(1, 256, (64, 6, 5, 3), dtype=np.uint8)
    shifted = augmented(images, pad=2)
    offsets = set()
    for image, result in zip(images, shifted, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        found = [(i, j) for i in range(5) for j in range(5) if (padded[i : i + 6, j : j + 5] == result).all()]
        assert len(found) == 1
        offsets.update(found)
    assert {i for i, _ in offsets} == {j for _, j in offsets} == set(range(5))


def test_flip_mirrors_about_half_of_the_images():
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 1), dtype=np.uint8)
    flipped = augmented(images, flip=True)
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((flipped == images).all(axis=(1, 2, 3)) | mirrored).all()
    assert 150 < mirrored.sum() < 250


def ramps(count, height, width):
    """Images whose two channels are the row and the column."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.broadcast_to(np.stack([rows, columns], -1).astype(np.uint8), (count, height, width, 2))


@pytest.mark.parametrize("options", [{"enlarge": (1.5, 3.0)}, {"area": (0.1, 0.6)}], ids=str)
def test_crops_have_the_sizes_asked_for(options):
    height, width = 40, 60
    crops = augmented(ramps(300, height, width), **options)
    assert crops.shape == (300, height, width, 2)
    # Away from the clamped edges a bilinear ramp is a ramp: its slope is the crop's share, its ends lie inside the image.
    shares = (crops[:, 30, 30] - crops[:, 10, 10]) / 20
    centered = crops[:, [10, 30], [10, 30]] - (np.array([[10, 10], [30, 30]]) + 0.5) * shares[:, None] + 0.5
    assert (centered.min() > -1e-3) and ((centered[:, 0] + shares * [height, width]) < np.array([height, width]) + 1e-3).all()
    if "enlarge" in options:
        np.testing.assert_allclose(shares[:, 0], shares[:, 1], atol=1e-4)
        factors = 1 / shares[:, 0]
        assert 1.5 <= factors.min() < 1.6 and 2.9 < factors.max() <= 3.0001
    else:
        areas, ratios = shares.prod(axis=1), shares[:, 0] / shares[:, 1]
        assert 0.0999 < areas.min() < 0.12 and 0.58 < areas.max() < 0.6001
        assert 0.749 < ratios.min() < 0.78 and 1.29 < ratios.max() < 1.334


def test_a_crop_of_everything_is_the_image():
    images = np.random.default_rng(0).integers(0, 256, (3, 7, 5, 3), dtype=np.uint8)
    np.testing.assert_allclose(augmented(images, enlarge=(1.0, 1.0)), images, atol=1e-3)


def test_colors_move_along_the_principal_components():
    images = np.full((4000, 1, 1, 3), 100, np.uint8)
    moves = (augmented(images, color=0.1) - 100).reshape(-1, 3) / 255
    deviations, components = np.linalg.eigh(np.cov(moves.T))
    # fb.resnet.torch's eigenvalues and its first eigenvector.
    np.testing.assert_allclose(np.sqrt(deviations[::-1]), 0.1 * np.array([0.2175, 0.0188, 0.0045]), rtol=0.05)
    np.testing.assert_allclose(np.abs(components[:, -1]), [0.5675, 0.5808, 0.5836], atol=0.01)


def test_normalize_by_channel():
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    result = normalize(jnp.asarray(images), (0.5, 0.2, 0.0), (0.25, 1.0, 2.0))
    np.testing.assert_allclose(result.ravel(), [-2.0, 0.0, 0.5], atol=1e-7)


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


def png(image):
    import cv2

    return cv2.imencode(".png", image[..., ::-1] if image.shape[-1] == 3 else image)[1].tobytes()


def write_tfds(folder, name, images, labels, file_format="array_record", shape=None):
    """A data set as TFDS prepares it: array_record files of tf.train.Example, a feature list and an info file."""
    import json

    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = folder / name / "1.0.0"
    folder.mkdir(parents=True)
    for split in images:
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for image, label in zip(images[split], labels[split], strict=True):
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(png(image))
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
    shape = {"dimensions": [str(size) for size in shape or next(iter(images.values()))[0].shape]}
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
        for split in images
    ]
    info = {"name": name, "version": "1.0.0", "fileFormat": file_format, "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def noise(count, *shape):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


RGB = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
GRAY = {"mean": (0.5,), "std": (0.2,)}


@pytest.mark.parametrize(("channels", "colors"), [(3, RGB), (1, GRAY)])
def test_prepared_tfds_set_is_read_without_tensorflow(tmp_path, monkeypatch, channels, colors):
    images = {"train": noise(7, 6, 6, channels), "test": noise(4, 6, 6, channels)}
    labels = {"train": [0, 1, 2, 0, 1, 2, 0], "test": [2, 1, 0, 2]}
    write_tfds(tmp_path, "insects", images, labels)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    dataset = load_dataset(section(name="insects", **colors))
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(dataset, split).images, images[split])
        np.testing.assert_array_equal(getattr(dataset, split).labels, labels[split])
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.validation is None
    assert "tensorflow" not in sys.modules


def test_tfds_set_without_a_test_split(tmp_path):
    images, labels = {"train": noise(10, 4, 4, 3)}, {"train": [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]}
    write_tfds(tmp_path, "insects", images, labels)
    options = {"name": "insects", "dir": str(tmp_path), **RGB}
    with pytest.raises(UserError, match=r"data.test_split is 'test', which .* does not have; it must be one of train, or a part"):
        load_dataset(section(**options))
    dataset = load_dataset(section(**options, train_split="train[:70%]", test_split="train[70%:]"))
    np.testing.assert_array_equal(dataset.train.images, images["train"][:7])
    np.testing.assert_array_equal(dataset.test.images, images["train"][7:])


def test_tfds_set_of_varying_size(tmp_path):
    images = [noise(1, 8, 16, 3)[0], noise(1, 12, 6, 3)[0], noise(1, 4, 4, 3)[0]]
    write_tfds(tmp_path, "insects", {"train": images, "test": images}, {"train": [0, 1, 2], "test": [0, 1, 2]}, shape=(-1, -1, 3))
    options = {"name": "insects", "dir": str(tmp_path), **RGB}
    with pytest.raises(UserError, match="images of 8×16 and 12×6 pixels; choose data.image_size"):
        load_dataset(section(**options))
    train = load_dataset(section(**options, image_size=4)).train
    assert train.images.shape == (3, 4, 4, 3)
    # 8×16 becomes 4×8 by means of 2×2 pixels, and of that the middle.
    halved = images[0].reshape(4, 2, 8, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(train.images[0], halved[:, 2:6], atol=0.51)
    np.testing.assert_array_equal(train.images[2], images[2])


def test_set_that_only_tensorflow_reads_is_refused(tmp_path):
    images = {split: np.zeros((1, 4, 4, 3), np.uint8) for split in ("train", "test")}
    write_tfds(tmp_path, "insects", images, {"train": [0], "test": [0]}, file_format="tfrecord")
    with pytest.raises(UserError, match="stored as tfrecord.*must be array_record"):
        load_dataset(section(name="insects", dir=str(tmp_path)))


def test_set_without_labels_is_refused(tmp_path):
    images = {split: np.zeros((1, 4, 4, 3), np.uint8) for split in ("train", "test")}
    write_tfds(tmp_path, "insects", images, {"train": [0], "test": [-1]})
    with pytest.raises(UserError, match="'test' of the data set 'insects' has no labeled examples"):
        load_dataset(section(name="insects", dir=str(tmp_path)))


def test_damaged_set_is_named(tmp_path):
    images = {split: noise(3, 4, 4, 3) for split in ("train", "test")}
    write_tfds(tmp_path, "insects", images, {"train": [0, 1, 2], "test": [0, 1, 2]})
    options = {"name": "insects", "dir": str(tmp_path), **RGB}
    (tmp_path / "insects" / "1.0.0" / "insects-test.array_record-00000-of-00001").write_bytes(b"")
    with pytest.raises(UserError, match="The data set 'insects' in .* cannot be read: "):
        load_dataset(section(**options))
    (tmp_path / "insects" / "1.0.0" / "features.json").write_text("{")
    with pytest.raises(UserError, match="The data set 'insects' in .* cannot be read: "):
        load_dataset(section(**options))


def test_absent_set_names_the_folder_and_the_extra(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}.*'prepare'"):
        load_dataset(section(name="cifar10", dir=str(tmp_path)))


def write_folder(path, counts, shape=(6, 6, 3)):
    """A folder of PNG files, `{class: number}`; returns the images by class."""
    images = {name: noise(count, *shape) for name, count in counts.items()}
    for name, members in images.items():
        (path / name).mkdir(parents=True)
        for i, image in enumerate(members):
            (path / name / f"{i:03}.png").write_bytes(png(image))
    return images


def test_folder_of_pictures_is_split_by_a_share_of_each_class(tmp_path):
    images = write_folder(tmp_path / "pets", {"cat": 10, "dog": 20})
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "pets" / ".cache").mkdir()
    options = {"name": "folder:pets", "dir": str(tmp_path), **RGB}
    dataset = load_dataset(section(**options))
    assert dataset.class_names == ("cat", "dog")
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [8, 16])
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [2, 4])
    for label, name in enumerate(dataset.class_names):
        together = [split.images[split.labels == label] for split in (dataset.train, dataset.test)]
        together = np.concatenate(together).reshape(len(images[name]), -1)
        np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(images[name].reshape(len(together), -1), axis=0))
    half = load_dataset(section(**options, test_share=0.5))
    np.testing.assert_array_equal(np.bincount(half.test.labels), [5, 10])
    other = load_dataset(section(**options, split_seed=1))
    assert (other.test.images != dataset.test.images).any()


def test_folder_with_split_folders(tmp_path):
    train = write_folder(tmp_path / "train", {"cat": 3, "dog": 2})
    test = write_folder(tmp_path / "val", {"cat": 1, "dog": 2})
    options = {"name": f"folder:{tmp_path}", **RGB}
    dataset = load_dataset(section(**options, test_split="val"))
    np.testing.assert_array_equal(dataset.train.images, np.concatenate([train["cat"], train["dog"]]))
    np.testing.assert_array_equal(dataset.test.images, np.concatenate([test["cat"], test["dog"]]))
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 1])
    with pytest.raises(UserError, match="has the folder 'train' but no 'test'"):
        load_dataset(section(**options))


def test_every_kind_of_picture_is_read_as_another_decoder_reads_it(tmp_path):
    """Pillow's results: exact where the format is without loss."""
    from PIL import Image

    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    color = Image.fromarray(smooth)
    kinds = {
        "color.PNG": color,
        "gray.png": color.convert("L"),
        "palette.png": color.quantize(16),
        "alpha.png": color.convert("RGBA"),
        "lossless.webp": color,
        "photo.jpg": color,
        "photo.jpeg": color.convert("L"),
    }
    for name in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / name / label).mkdir(parents=True)
            for file, image in kinds.items():
                image.save(tmp_path / name / label / file, **({"lossless": True} if file.endswith("webp") else {}))
    for options, mode in ((RGB, "RGB"), (GRAY, "L")):
        train = load_dataset(section(name=f"folder:{tmp_path}", **options)).train
        for image, file in zip(train.images, sorted(kinds), strict=False):
            expected = np.asarray(Image.open(tmp_path / "train" / "a" / file).convert(mode)).reshape(image.shape)
            exact = mode == "RGB" and not file.startswith("photo")
            np.testing.assert_allclose(image.astype(int), expected, atol=0 if exact else 3, err_msg=file)


def test_file_that_is_no_picture_is_named_and_left_out(tmp_path, caplog):
    images = write_folder(tmp_path, {"cat": 25, "dog": 25})
    (tmp_path / "cat" / "000.png").write_text("<html>not found</html>")
    (tmp_path / "dog" / "000.png").write_bytes(b"")
    dataset = load_dataset(section(name=f"folder:{tmp_path}", test_share=0.001, **RGB))
    assert len(dataset.train.labels) + len(dataset.test.labels) == 48
    assert all((image != 0).any() for image in dataset.train.images)
    assert "2 of 48 images in the train split" in caplog.text
    assert f"{tmp_path / 'cat' / '000.png'}, {tmp_path / 'dog' / '000.png'}; left out" in caplog.text
    assert any((dataset.train.images == images["dog"][5]).all(axis=(1, 2, 3)))
    (tmp_path / "dog" / "001.png").write_text("")
    load_dataset.__globals__["_load"].cache_clear()
    with pytest.raises(UserError, match=r"3 of 48 images .* cannot be read: .*; at most 5 %"):
        load_dataset(section(name=f"folder:{tmp_path}", test_share=0.001, **RGB))


def test_folders_that_are_no_data_set(tmp_path):
    def loaded(name, **options):
        return load_dataset(section(name=f"folder:{name}", dir=str(tmp_path), **RGB, **options))

    write_folder(tmp_path / "one", {"cat": 3})
    write_folder(tmp_path / "empty", {"cat": 3, "dog": 0})
    write_folder(tmp_path / "single", {"cat": 3, "dog": 1})
    write_folder(tmp_path / "differ" / "train", {"cat": 3, "dog": 1})
    write_folder(tmp_path / "differ" / "test", {"cat": 3, "hog": 1})
    for name, message in {
        "none": "There is no folder .*none",
        "one": "one' must have at least two classes, not 1",
        "empty": "has sub-folders without pictures: dog; each one is a class and must have files that end in .jpeg",
        "single": "dog has one picture; it must have at least two",
        "differ": "differ: only one of them has dog, hog",
    }.items():
        with pytest.raises(UserError, match=message):
            loaded(name)
    with pytest.raises(UserError, match="cat' must have at least two classes, not 0"):
        loaded("one/cat")


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
    with pytest.raises(UserError, match="data.examples_per_class must be at most 131, .* not 132"):
        load_dataset(section(examples_per_class=132))


def test_some_classes_alone():
    whole, some = load_dataset(section()), load_dataset(section(classes=("7", "3")))
    assert some.class_names == ("7", "3")
    for split, everything in ((some.train, whole.train), (some.test, whole.test)):
        for label, digit in enumerate((7, 3)):
            np.testing.assert_array_equal(split.images[split.labels == label], everything.images[everything.labels == digit])
    few = load_dataset(section(classes=("7", "3"), examples_per_class=5, validation_examples=20))
    assert [len(split.labels) for split in few[:3]] == [10, 20, len(some.test.labels)]
    with pytest.raises(UserError, match="data.classes has 'x', which the data set 'digits' does not have; its classes are 0, 1"):
        load_dataset(section(classes=("7", "x")))


def test_digits_enlarged_in_color():
    dataset = load_dataset(section(image_size=16, **RGB))
    assert dataset.train.images.shape == (1348, 16, 16, 3)
    assert (dataset.train.images == dataset.train.images[..., :1]).all()


def test_network_learns_from_a_folder_of_pictures(tmp_path):
    """From files of two sizes, drawn here, to a trained network: bars that lie, and bars that stand."""
    generator = np.random.default_rng(0)
    for label, axis in (("lies", 0), ("stands", 1)):
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
    """A set that nothing here knows, from its published files to a trained network."""
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
