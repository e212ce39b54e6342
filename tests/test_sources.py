import sys

import numpy as np
import pytest

from plain56.data import load_dataset
from plain56.errors import UserError
from tests.fixtures.sets import GRAY, RGB, load_anew, noise, section, write_folder, write_tfds


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


@pytest.mark.parametrize(
    ("file_format", "label", "message"),
    [
        ("tfrecord", 0, "stored as tfrecord.*must be array_record"),
        ("array_record", -1, "'test' of the data set 'insects' has no labeled examples"),
    ],
)
def test_set_that_cannot_be_used_is_refused(tmp_path, file_format, label, message):
    images = {split: np.zeros((1, 4, 4, 3), np.uint8) for split in ("train", "test")}
    write_tfds(tmp_path, "insects", images, {"train": [0], "test": [label]}, file_format)
    with pytest.raises(UserError, match=message):
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
    with pytest.raises(UserError, match=f"{tmp_path}.*plain56.prepare"):
        load_dataset(section(name="cifar10", dir=str(tmp_path)))


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
    """As Pillow reads it: exactly, if the format is lossless."""
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
    with pytest.raises(UserError, match=r"3 of 48 images .* cannot be read: .*; at most 5 %"):
        load_anew(name=f"folder:{tmp_path}", test_share=0.001, **RGB)


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
        "empty": "has sub-folders .classes. without files that end in .jpeg, .jpg, .png, .webp: dog",
        "single": "dog has one picture; it must have at least two",
        "differ": "differ: only one of them has dog, hog",
    }.items():
        with pytest.raises(UserError, match=message):
            loaded(name)
    with pytest.raises(UserError, match="cat' must have at least two classes, not 0"):
        loaded("one/cat")
