"""Image classification sets: the embedded digits, sets of TensorFlow Datasets (TFDS), and folders of pictures."""

import contextlib
import functools
import importlib.util
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
import psutil
from rich.console import Console
from rich.progress import track

from plain56.errors import UserError, first_line

DEFAULT_DATA_DIR = "~/tensorflow_datasets"
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
# A few broken files are left out; more of them mean that something is wrong with the set as a whole.
UNREADABLE_SHARE = 0.05

logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """Images uint8 [N, H, W, C] and labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


class Pictures(NamedTuple):
    """A split that is read picture by picture.

    `read(i)` gives picture i, as the bytes of a file or as uint8 [H, W, C], and its label; `name(i)` names it. `labels` [N] is
    None where they cannot be known without reading it all.
    """

    count: int
    read: Callable[[int], tuple[bytes | np.ndarray, int]]
    name: Callable[[int], str]
    labels: np.ndarray | None = None

    def take(self, indices):
        """The pictures at these places, in this order."""
        labels = None if self.labels is None else self.labels[indices]
        return Pictures(len(indices), lambda i: self.read(indices[i]), lambda i: self.name(indices[i]), labels)

    def decode(self, i, channels):
        """Picture i as uint8 [H, W, channels], at its own size, and its label; None where it cannot be read."""
        try:
            source, label = self.read(i)
        except (OSError, RuntimeError, ValueError):  # of files, and of damaged records
            return None
        image = _decode(source, channels)
        return None if image is None else (image, label)


class Dataset(NamedTuple):
    """A train, perhaps a validation, and a test split, all three read or all not, with the names of their classes."""

    train: Split | Pictures
    validation: Split | Pictures | None
    test: Split | Pictures
    class_names: tuple[str, ...]


def load_dataset(data):
    """Loads a data set whole, or opens it only, by `data.mode`; the newest one is kept, so the runs of a sweep read it once.

    Args:
        data: the config's `data` section. Images get as many channels as `data.mean` has numbers, 1 (grey) or 3 (RGB).

    Raises:
        UserError: the set is not there, does not fit the config, or has too many pictures that cannot be read.
    """
    keys = ("image_size", "validation_examples", "examples_per_class", "split_seed")
    mode = choose_mode(data) if data.mode == "auto" else data.mode
    return _load(channels=len(data.mean), mode=mode, **_where(data), **{key: data[key] for key in keys})


def choose_mode(data):
    """What `data.mode` "auto" means on this machine, "resident" or "stream"; raises as `load_dataset`."""
    return _choose_mode(channels=len(data.mean), image_size=data.image_size, **_where(data))


def open_test_split(data):
    """The test split's `Pictures`, each of its own size, and the names of the classes; raises as `load_dataset`."""
    return _open(**_where(data))[1:]


def _where(data):
    keys = ("name", "train_split", "test_split", "test_share", "classes")
    where = {"dir": data.dir, "seed": data.split_seed, **{key: data[key] for key in keys}}
    if not data.name.startswith("folder:"):
        where["dir"] = data.dir or os.environ.get("TFDS_DATA_DIR") or DEFAULT_DATA_DIR
        where["seed"] = 0  # these are split for good, and opened once
    return where


@functools.lru_cache(maxsize=1)  # the labels of all examples may have to be read for it
def _open(*, classes, **where):
    """The pictures of the classes named, or of all, to train and to test on, and the names of the classes."""
    train, test, class_names = _open_all(**where)
    if not classes:
        return train, test, class_names
    absent = [name for name in classes if name not in class_names]
    if absent:
        raise UserError(
            f"data.classes has {absent[0]!r}, which the data set {where['name']!r} does not have; allowed are "
            f"{', '.join(class_names)}."
        )
    numbers = {class_names.index(name): number for number, name in enumerate(classes)}
    train, test = _of_classes(train, numbers), _of_classes(test, numbers)
    for split, pictures in (("train", train), ("test", test)):
        if not pictures.count:
            raise UserError(f"The {split} split of {where['name']!r} has no example of the classes {', '.join(classes)}.")
    return train, test, list(classes)


def _of_classes(pictures, numbers):
    """The pictures whose labels are keys of `numbers`, whose values are their labels from then on."""
    labels = _labels(pictures)
    places = np.flatnonzero(np.isin(labels, list(numbers)))

    def read(i):
        return pictures.read(places[i])[0], own_labels[i]

    own_labels = np.array([numbers[label] for label in labels[places].tolist()])
    return Pictures(len(places), read, lambda i: pictures.name(places[i]), own_labels)


def _labels(pictures):
    """All labels; −1 for a record that cannot be read."""

    def label(i):
        try:
            return pictures.read(i)[1]
        except (OSError, RuntimeError, ValueError):
            return -1

    return np.array([label(i) for i in range(pictures.count)]) if pictures.labels is None else pictures.labels


def _open_all(*, name, dir, train_split, test_split, test_share, seed):
    """The pictures to train and to test on, and the names of the classes."""
    if name == "digits":
        if (train_split, test_split) != ("train", "test"):
            raise UserError(f"The digits have the splits 'train' and 'test' alone; given are {train_split!r} and {test_split!r}.")
        train, test, class_names = _digits()
    elif name.startswith("folder:"):
        try:
            path = Path(dir).expanduser() / Path(name.removeprefix("folder:")).expanduser()
            train, test, class_names = _folder(path, train_split, test_split, test_share, seed)
        except (OSError, RuntimeError) as error:
            raise UserError(f"The data set {name!r} cannot be read: {error}.") from error
    else:
        path = Path(dir).expanduser().absolute()
        try:
            train, test, class_names = _tfds(name, path, {"data.train_split": train_split, "data.test_split": test_split})
        except UserError:
            raise
        except Exception as error:  # of many kinds, where its files are damaged
            raise UserError(f"The data set {name!r} in {path} cannot be read: {first_line(error)}.") from error
    if len(class_names) < 2:
        raise UserError(f"The data set {name!r} has {len(class_names)} class; needed are at least two.")
    return train, test, class_names


@functools.lru_cache(maxsize=1)  # what has been read leaves less memory free, and may not change the choice
def _choose_mode(*, channels, image_size, **where):
    train, test, _ = _open(**where)
    return "resident" if _fit((train, test), channels, image_size) else "stream"


@functools.lru_cache(maxsize=1)
def _load(*, channels, mode, image_size, validation_examples, examples_per_class, split_seed, **where):
    name = where["name"]
    train, test, class_names = _open(**where)
    chosen, validation = _carve(train, validation_examples, examples_per_class, class_names, split_seed)
    splits = {"train": train.take(chosen), "validation": train.take(validation), "test": test}
    splits = {split: pictures for split, pictures in splits.items() if pictures.count or split != "validation"}
    if mode == "resident":
        splits = {
            split: _read(pictures, f"{split} split of {name!r}", channels, image_size) for split, pictures in splits.items()
        }
        shapes = {split.images.shape[1:] for split in splits.values()}
        if len(shapes) > 1:
            raise _sizes_differ(name, sorted(shapes))
    return Dataset(splits["train"], splits.get("validation"), splits["test"], tuple(class_names))


def _fit(splits, channels, image_size):
    """Whether splits take at most half of a device's memory; for one that does not say how much it has, of what is free here."""
    total = sum(pictures.count * math.prod(_shape(pictures, channels, image_size)) for pictures in splits)
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return total <= min((limit for limit in limits if limit), default=psutil.virtual_memory().available) / 2


def image_shape(split, data):
    """`(H, W, C)` of the images of a split that is read or not; `data` is the config's section."""
    if isinstance(split, Split):
        return split.images.shape[1:]
    return _shape(split, len(data.mean), data.image_size)


def _shape(pictures, channels, image_size):
    """`image_size` squared, or the size of the first picture that can be read."""
    if image_size:
        return image_size, image_size, channels
    decoded = (pictures.decode(i, channels) for i in range(pictures.count))
    return next((image.shape for image, _ in filter(None, decoded)), (1, 1, channels))


def _carve(pictures, validation_examples, examples_per_class, class_names, seed):
    """Where in the training split the training and the validation examples are: two rising sequences of places."""
    if validation_examples >= pictures.count:
        raise UserError(
            f"data.validation_examples is {validation_examples}; allowed is less than the {pictures.count} examples to train on."
        )
    validation, train = np.split(np.random.default_rng((seed, 1)).permutation(pictures.count), [validation_examples])
    if examples_per_class:
        labels = _labels(pictures)
        by_class = [train[labels[train] == label] for label in range(len(class_names))]
        fewest = min(range(len(class_names)), key=lambda label: len(by_class[label]))
        if len(by_class[fewest]) < examples_per_class:
            raise UserError(
                f"data.examples_per_class is {examples_per_class}; allowed are numbers up to {len(by_class[fewest])}, which is "
                f"what the class {class_names[fewest]!r} has to train on."
            )
        train = np.concatenate([members[:examples_per_class] for members in by_class])
    return np.sort(train), np.sort(validation)


def _read(pictures, title, channels, image_size):
    """Reads, decodes and fits the pictures of a split; those that cannot be read are named and left out."""
    count, images, labels, unreadable = pictures.count, None, [], []
    numbers = track(range(count), f"Reading {title}", console=Console(stderr=True), transient=True, disable=count < 20_000)
    for i in numbers:
        decoded = pictures.decode(i, channels)
        if decoded is None:
            unreadable.append(i)
            continue
        image, label = decoded
        labels.append(label)
        if image_size:
            image = centre(resize(image, image_size), image_size)
        if images is None:
            _check_memory(title, count * image.nbytes)
            images = np.empty((count, *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise _sizes_differ(title, (images.shape[1:], image.shape))
        images[i] = image
    leave_out(pictures, unreadable, title)
    if unreadable:
        images = np.delete(images, unreadable, axis=0)
    return Split(images, np.array(labels, np.int32))


def leave_out(pictures, unreadable, title):
    """The places of all pictures but the `unreadable` ones, which are named in a warning.

    Raises:
        UserError: too many cannot be read.
    """
    count = pictures.count
    if unreadable:
        named = ", ".join(pictures.name(i) for i in unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        found = f"{len(unreadable)} of {count} images in the {title} cannot be read: {named}"
        if len(unreadable) > UNREADABLE_SHARE * count:
            raise UserError(f"{found}; allowed are {100 * UNREADABLE_SHARE:.0f} %, which would be left out.")
        logger.warning("%s; left out.", found)
    return np.delete(np.arange(count), unreadable)


def _check_memory(title, needed):
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"The {title} needs {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB are free; a smaller "
            "data.image_size, or a part of it, needs less."
        )


def _sizes_differ(title, shapes):
    sizes = " and ".join("×".join(map(str, shape[:2])) for shape in shapes)
    return UserError(f"The {title} has images of {sizes} pixels; needed is one size, so choose data.image_size to resize to.")


def _decode(source, channels):
    """uint8 [H, W, channels] from the bytes of a file or from an image; None where it cannot be read."""
    if isinstance(source, np.ndarray):
        if source.shape[-1] == channels:
            return source
        return cv2.cvtColor(source, cv2.COLOR_RGB2GRAY)[..., None] if channels == 1 else np.repeat(source, 3, axis=-1)
    mode = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(source, np.uint8), mode)
    except cv2.error:  # an empty file, or one of absurd size
        return None
    return image if image is None or channels == 3 else image[..., None]


def read_picture(picture, channels):
    """A picture, a path or uint8 [H, W, C], as uint8 [H, W, channels].

    Raises:
        UserError: the file is not there, or is no picture.
    """
    try:
        source = picture if isinstance(picture, np.ndarray) else Path(picture).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"The picture {picture} cannot be read: {error.strerror}.") from error
    image = _decode(source, channels)
    if image is None:
        raise UserError(f"{picture} is no picture that can be read; allowed are JPEG, PNG and WebP.")
    return image


def resize(image, side):
    """Resizes an image [H, W, C] so that its shorter side is `side`."""
    height, width, channels = image.shape
    if min(height, width) == side:
        return image
    scale = side / min(height, width)
    to = max(side, round(width * scale)), max(side, round(height * scale))
    # Shrinking averages over areas, which does not alias.
    resized = cv2.resize(image, to, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return resized.reshape(*resized.shape[:2], channels)


def centre(image, side):
    """The side×side middle of an image [H, W, C]."""
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _digits():
    """scikit-learn's 1,797 handwritten digits, 8×8 pixels, grey: 1,348 to train on and 449 to test on.

    Source: UCI "Optical recognition of handwritten digits", the test part, as shipped with scikit-learn. The split is fixed
    and stratified: of the examples sorted by class, in the source's order within one, the second and every fourth from there
    is a test example. Values 0…16 become 0…255.
    """
    # Imported here: it takes a second that runs on other sets need not wait.
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    by_class = np.argsort(digits.target, kind="stable")
    is_test = np.zeros(len(images), bool)
    is_test[by_class[1::4]] = True
    labels = digits.target
    pictures = Pictures(len(labels), lambda i: (images[i], labels[i]), "digit {}".format, labels)
    train, test = (pictures.take(np.flatnonzero(chosen)) for chosen in (~is_test, is_test))
    return train, test, [str(digit) for digit in range(10)]


def _folder(path, train_split, test_split, test_share, seed):
    """A folder with a sub-folder of pictures per class, or with one such folder for each split.

    Without split folders, `test_share` of each class, chosen by the seed, is for testing.
    """
    if not path.is_dir():
        raise UserError(
            f"There is no folder {path.absolute()} (data.name, in data.dir); needed is one with a sub-folder per class."
        )
    train_folder, test_folder = path / train_split, path / test_split
    if train_folder.is_dir() and not test_folder.is_dir() and any(entry.is_dir() for entry in train_folder.iterdir()):
        raise UserError(
            f"{path} has the folder {train_split!r} but no {test_split!r}; needed are both (data.train_split, data.test_split), "
            "or one sub-folder per class and neither."
        )
    if train_folder.is_dir() and test_folder.is_dir():
        files, class_names = _class_folders(train_folder)
        test_files, test_names = _class_folders(test_folder)
        if class_names != test_names:
            only = sorted(set(class_names) ^ set(test_names))
            raise UserError(f"The classes of {train_folder} and {test_folder} differ: only one of them has {', '.join(only)}.")
        return _files(files), _files(test_files), class_names
    files, class_names = _class_folders(path)
    train, test = [], []
    for label, members in enumerate(files):
        if len(members) < 2:
            raise UserError(f"{path / class_names[label]} has one picture; needed are at least two, to train and to test on.")
        order = np.random.default_rng((seed, 0, label)).permutation(len(members))
        tests = set(order[: min(len(members) - 1, max(1, round(test_share * len(members))))])
        test.append([file for i, file in enumerate(members) if i in tests])
        train.append([file for i, file in enumerate(members) if i not in tests])
    return _files(train), _files(test), class_names


def _class_folders(path):
    """The picture files of each class, and the names of the classes, in alphabetical order."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [
        sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and f.is_file())
        for folder in folders
    ]
    empty = [folder.name for folder, members in zip(folders, files, strict=True) if not members]
    if empty:
        raise UserError(
            f"{path} has sub-folders without pictures: {', '.join(empty)}; each one is a class and needs files that end in "
            f"{', '.join(SUFFIXES)}."
        )
    return files, [folder.name for folder in folders]


def _files(by_class):
    files = [str(file) for members in by_class for file in members]  # which take less memory, and processes may want copies
    labels = np.repeat(np.arange(len(by_class)), [len(members) for members in by_class])
    return Pictures(len(files), lambda i: (Path(files[i]).read_bytes(), labels[i]), files.__getitem__, labels)


def _tfds(name, folder, wanted):
    """The splits of a TFDS set that are `wanted`, by config key, and its classes.

    One that lies prepared in `folder` needs no TensorFlow to be read.
    """
    import tensorflow_datasets as tfds

    try:
        with _refusing_code(tfds.features.FeatureConnector):
            builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=str(folder))
    except (tfds.core.DatasetNotFoundError, ValueError):
        if any((folder / name.split(":")[0].split("/")[0]).rglob("dataset_info.json")):
            raise
        builder = _prepare(name, folder)
    features = dict((builder.info.features or {}).items())
    keys = builder.info.supervised_keys
    image_key, label_key = keys if keys and len(keys) == 2 and all(isinstance(k, str) for k in keys) else ("image", "label")
    image, label = features.get(image_key), features.get(label_key)
    sound = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8 and isinstance(label, tfds.features.ClassLabel)
    if not sound:
        found = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in features.items())
        raise UserError(
            f"The data set {name!r} in {folder} is no image classification set; needed are an Image of type uint8 and a "
            f"ClassLabel in each example, and there is {found or 'neither'}."
        )
    splits = []
    for key, split in wanted.items():
        try:
            skip = {other: tfds.decode.SkipDecoding() for other in features if other != label_key}
            source = builder.as_data_source(split, decoders=skip)
        except NotImplementedError as error:
            raise UserError(
                f"The data set {name!r} in {folder} is stored as {builder.info.file_format.value}, which only TensorFlow reads; "
                f"needed is array_record: prepare it again with `{_command(name, folder)}`."
            ) from error
        except ValueError as error:
            raise UserError(
                f"{key} is {split!r}, which the data set {name!r} does not have; allowed are {', '.join(builder.info.splits)} "
                "and parts of them, such as 'train[:80%]' and 'train[80%:]'."
            ) from error
        if len(source) == 0 or source[0][label_key] < 0:
            raise UserError(f"The split {split!r} of the data set {name!r} has no labelled examples; choose another {key}.")

        def read(i, source=source):
            example = source[i]
            if not 0 <= example[label_key] < len(label.names):
                raise ValueError("its class has no name")
            return example[image_key], example[label_key]

        splits.append(Pictures(len(source), read, f"{split} example {{}}".format))
    return *splits, label.names


@contextlib.contextmanager
def _refusing_code(connector):
    """Has TFDS refuse features of modules that are none of its own, which reading a prepared set would import and so run."""
    original = connector.__dict__["cls_from_name"]

    def of_tfds(name):
        if not str(name).startswith("tensorflow_datasets."):
            raise UserError(f"The set is refused: it names {name!r}, whose code reading it would run.")
        return original.__get__(None, connector)(name)

    connector.cls_from_name = of_tfds
    try:
        yield
    finally:
        connector.cls_from_name = original


def _prepare(name, folder):
    """Downloads and prepares a set for the first time, with TFDS's own progress bar."""
    import tensorflow_datasets as tfds

    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"The data set {name!r} does not lie prepared in {folder} (data.dir, or TFDS_DATA_DIR); allowed are 'digits', which "
            "needs nothing, 'folder:PATH', and TFDS sets that lie there: install the extra 'prepare' and launch again, or "
            f"prepare it elsewhere with `{_command(name, folder)}`."
        )
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # TensorFlow would take all of its memory
    try:
        builder = tfds.builder(name, data_dir=str(folder), file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # whatever a set's own script, the network or the disk raises
        raise UserError(f"TFDS cannot prepare the data set {name!r} in {folder}: {first_line(error)}.") from error
    return builder


def _command(name, folder):
    return f"tfds build {name} --file_format=array_record --data_dir={folder}"
