"""Image classification sets in memory: the embedded digits, and sets prepared by TensorFlow Datasets (TFDS)."""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plain56.errors import UserError

DEFAULT_DATA_DIR = "~/tensorflow_datasets"


class Split(NamedTuple):
    """Images uint8 [N, H, W, C] and labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A train and a test split with the names of their classes."""

    train: Split
    test: Split
    class_names: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def load_dataset(name, data_dir=""):
    """Loads a data set whole; the newest one is kept, so the runs of a sweep read it once.

    Args:
        name: "digits", or the TFDS name of a set that lies prepared in the data folder ("cifar10", "mnist:3.0.1", …).
        data_dir: the TFDS folder; empty means the environment's TFDS_DATA_DIR, or TFDS's own default.

    Raises:
        UserError: the set is not there.
    """
    if name == "digits":
        return load_digits()
    return load_tfds(name, data_dir or os.environ.get("TFDS_DATA_DIR") or DEFAULT_DATA_DIR)


def load_digits():
    """scikit-learn's 1,797 handwritten digits, 8×8 pixels, grey: 1,348 to train on and 449 to test on.

    Source: UCI "Optical recognition of handwritten digits", the test part, as shipped with scikit-learn. The split is fixed
    and stratified: of the examples sorted by class, in the source's order within one, the second and every fourth from there
    is a test example. Values 0…16 become 0…255.
    """
    # Imported here: it takes a second that runs on other sets need not wait.
    from sklearn.datasets import load_digits as source

    digits = source()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    by_class = np.argsort(labels, kind="stable")
    is_test = np.zeros(len(labels), bool)
    is_test[by_class[1::4]] = True
    train, test = (Split(images[chosen], labels[chosen]) for chosen in (~is_test, is_test))
    return Dataset(train, test, tuple(str(digit) for digit in range(10)))


def load_tfds(name, data_dir):
    """A TFDS set with "image" and "label" that lies prepared in `data_dir`; reading it needs no TensorFlow."""
    import tensorflow_datasets as tfds

    folder = Path(data_dir).expanduser().absolute()
    prepare = f"`tfds build {name} --file_format=array_record --data_dir={folder}`, with the extra 'prepare' installed"
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=str(folder))
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(
            f"The data set {name!r} does not lie prepared in {folder} (data.dir, or TFDS_DATA_DIR); allowed are 'digits', which "
            f"needs nothing, and TFDS sets that lie there: prepare it once with {prepare}."
        ) from error
    features = builder.info.features or {}
    missing = {"train", "test"} - set(builder.info.splits) or {"image", "label"} - set(features)
    if missing:
        raise UserError(
            f"The data set {name!r} in {folder} has no {' and no '.join(map(repr, sorted(missing)))}; needed are the splits "
            "'train' and 'test' with an 'image' and a 'label' in each example."
        )
    image, label = features["image"], features["label"]
    if None in image.shape or image.np_dtype != np.uint8 or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(
            f"The data set {name!r} has images of shape {image.shape} and type {np.dtype(image.np_dtype)}, and labels of type "
            f"{type(label).__name__}; needed are images of one size and type uint8, and class labels."
        )
    try:
        splits = [_read_split(builder.as_data_source(split), image.shape) for split in ("train", "test")]
    except NotImplementedError as error:
        raise UserError(
            f"The data set {name!r} in {folder} is stored as {builder.info.file_format.value}, which only TensorFlow reads; "
            f"needed is array_record: prepare it again with {prepare}."
        ) from error
    return Dataset(*splits, tuple(label.names))


def _read_split(source, shape):
    split = Split(np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int32))
    for i, example in enumerate(source):
        split.images[i], split.labels[i] = example["image"], example["label"]
    return split
