"""Where pictures come from: the embedded digits, folders of pictures, and sets of TensorFlow Datasets (TFDS)."""

import contextlib
import importlib.util
import itertools
import os
import stat
import zlib
from pathlib import Path

import numpy as np

from plain56.data.pictures import Fingerprint, Pictures, read_file
from plain56.errors import UserError, first_line
from plain56.runs import user_path

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


def open_all(*, name, dir, train_split, test_split, test_share, seed):
    """The pictures to train and to test on, and the names of the classes; raises UserError if the set cannot be read."""
    if name == "digits":
        if (train_split, test_split) != ("train", "test"):
            raise UserError(f"The digits have only the splits 'train' and 'test', not {train_split!r} and {test_split!r}.")
        train, test, class_names = _digits()
    elif name.startswith("folder:"):
        path = user_path(dir) / user_path(name.removeprefix("folder:"))
        try:
            train, test, class_names = _folder(path, train_split, test_split, test_share, seed)
        except OSError as error:
            raise UserError(f"The data set {name!r} cannot be read: {error.strerror}: {error.filename}.") from error
    else:
        path = user_path(dir)
        try:
            train, test, class_names = _tfds(name, path.absolute(), train_split, test_split)
        except UserError:
            raise
        except Exception as error:  # damaged files raise many kinds
            raise UserError(f"The data set {name!r} in {path} cannot be read: {first_line(error)}.") from error
    if len(class_names) < 2:
        raise UserError(f"The data set {name!r} must have at least two classes, not {len(class_names)}.")
    return train, test, class_names


def _digits():
    """scikit-learn's 1,797 handwritten digits, 8×8 pixels, gray: 1,348 to train on and 449 to test on.

    Source: UCI "Optical recognition of handwritten digits", the test part, as shipped with scikit-learn. The split is fixed
    and stratified: sorted by class, and within a class in the source's order, the second example and every fourth from there
    is for testing. Values 0…16 become 0…255.
    """
    # Only its file: the import takes a second, and never ends if memory is too small for its libraries.
    library = Path(importlib.util.find_spec("sklearn").origin).parent
    digits = np.loadtxt(library / "datasets" / "data" / "digits.csv.gz", delimiter=",")  # 64 gray levels and the digit
    images = np.round(digits[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = digits[:, 64].astype(int)
    is_test = np.zeros(len(images), bool)
    is_test[np.argsort(labels, kind="stable")[1::4]] = True
    pictures = Pictures(len(labels), lambda i: (images[i], labels[i]), "digit {}".format, labels)
    train, test = (pictures.take(np.flatnonzero(chosen)) for chosen in (~is_test, is_test))
    return train, test, [str(digit) for digit in range(10)]


def _folder(path, train_split, test_split, test_share, seed):
    """A folder with a sub-folder of pictures per class, or with one such folder for each split.

    Without split folders, `test_share` of each class, chosen by the seed, is for testing.
    """
    if not path.is_dir():
        raise UserError(f"There is no folder {path.absolute()} (data.name, in data.dir); it must have one sub-folder per class.")
    train_folder, test_folder = path / train_split, path / test_split
    if train_folder.is_dir() and not test_folder.is_dir() and any(entry.is_dir() for entry in train_folder.iterdir()):
        raise UserError(
            f"{path} has the folder {train_split!r} but no {test_split!r}; it must have both (data.train_split, "
            "data.test_split), or neither and one sub-folder per class."
        )
    if train_folder.is_dir() and test_folder.is_dir():
        train, class_names = _class_folders(train_folder)
        test, test_names = _class_folders(test_folder)
        if class_names != test_names:
            only = sorted(set(class_names) ^ set(test_names))
            raise UserError(f"The classes of {train_folder} and {test_folder} differ: only one of them has {', '.join(only)}.")
        fingerprint = _fingerprint(itertools.chain(*train, *test))
        return _pictures(train_folder, train, fingerprint), _pictures(test_folder, test, fingerprint), class_names
    by_class, class_names = _class_folders(path)
    train, test = [], []
    for label, files in enumerate(by_class):
        if len(files) < 2:
            raise UserError(f"{path / class_names[label]} has one picture; it must have at least two, to train and to test on.")
        order = np.random.default_rng((seed, 0, label)).permutation(len(files))
        tests = set(order[: min(len(files) - 1, max(1, round(test_share * len(files))))])
        test.append([file for i, file in enumerate(files) if i in tests])
        train.append([file for i, file in enumerate(files) if i not in tests])
    fingerprint = _fingerprint(itertools.chain(*by_class))
    return _pictures(path, train, fingerprint), _pictures(path, test, fingerprint), class_names


def _class_folders(path):
    """The pictures of each class, as `_list` returns them but named from `path` on, and the sorted names of the classes."""
    with os.scandir(path) as entries:
        class_names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))
    by_class = [[(f"{name}/{file}", *rest) for file, *rest in _list(path / name, SUFFIXES)] for name in class_names]
    empty = [name for name, files in zip(class_names, by_class, strict=True) if not files]
    if empty:
        raise UserError(f"{path} has sub-folders (classes) without files that end in {', '.join(SUFFIXES)}: {', '.join(empty)}.")
    return by_class, class_names


def _is_folder(entry):
    if entry.is_symlink() and not Path(entry).exists():
        raise UserError(f"{entry.path} is a link to nothing; it must lead to a folder of pictures, or be removed.")
    return entry.is_dir()


def _list(folder, suffixes=""):
    """The visible entries of a folder that end in a suffix, in alphabetical order: name, size, and time of change in ns.

    Size and time are −1 for what cannot be read as a file: a link to nothing, a pipe, another folder. It is listed all the same,
    because whoever expects a picture there wants to hear of it.
    """

    def describe(entry):
        try:
            status = entry.stat()
        except OSError:
            return entry.name, -1, -1
        return (entry.name, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (entry.name, -1, -1)

    with os.scandir(folder) as entries:
        return sorted(describe(entry) for entry in entries if entry.name.lower().endswith(suffixes) and entry.name[0] != ".")


def _fingerprint(files):
    """The `Fingerprint` of files: name, size and time of change of each."""
    names, times = 0, 0
    for name, size, time in files:
        names = zlib.crc32(b"%b\0%d\0" % (os.fsencode(name), size), names)
        times = zlib.crc32(b"%d\0" % time, times)
    return Fingerprint(names, times)


def _pictures(folder, by_class, fingerprint):
    """The pictures of a folder; `by_class` has the files of each class."""
    names = [name for files in by_class for name, _, _ in files]  # no sizes and times: processes may get copies of this list
    labels = np.repeat(np.arange(len(by_class)), [len(files) for files in by_class])

    def path(i):
        return f"{folder}/{names[i]}"

    return Pictures(len(names), lambda i: (read_file(path(i)), labels[i]), path, labels, fingerprint)


def _tfds(name, folder, train_split, test_split):
    """The two splits of a TFDS set and the names of its classes; a set that is prepared in `folder` needs no TensorFlow."""
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
    is_image = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8
    if not (is_image and isinstance(label, tfds.features.ClassLabel)):
        found = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in features.items())
        raise UserError(
            f"The data set {name!r} in {folder} is not an image classification set: each example must have an Image of type "
            f"uint8 and a ClassLabel, and has {found or 'neither'}."
        )
    splits, fingerprint = [], _fingerprint(_list(builder.data_dir))
    skip = {other: tfds.decode.SkipDecoding() for other in features if other != label_key}
    for key, split in (("data.train_split", train_split), ("data.test_split", test_split)):
        try:
            source = builder.as_data_source(split, decoders=skip)
        except NotImplementedError as error:
            raise UserError(
                f"The data set {name!r} in {folder} is stored as {builder.info.file_format.value}, which only TensorFlow reads; "
                f"it must be array_record: prepare it again with `{_command(name, folder)}`."
            ) from error
        except ValueError as error:
            raise UserError(
                f"{key} is {split!r}, which the data set {name!r} does not have; it must be one of "
                f"{', '.join(builder.info.splits)}, or a part of one, such as 'train[:80%]' and 'train[80%:]'."
            ) from error
        if len(source) == 0 or source[0][label_key] < 0:
            raise UserError(f"The split {split!r} of the data set {name!r} has no labeled examples; choose another {key}.")

        def read(i, source=source):
            example = source[i]
            if not 0 <= example[label_key] < len(label.names):
                raise ValueError("its class has no name")
            return example[image_key], example[label_key]

        splits.append(Pictures(len(source), read, f"{split} example {{}}".format, fingerprint=fingerprint))
    return *splits, label.names


@contextlib.contextmanager
def _refusing_code(connector):
    """Lets TFDS refuse features of modules other than its own: reading a prepared set would import these, and so run them."""
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
            f"The data set {name!r} is not prepared in {folder} (data.dir, or TFDS_DATA_DIR), and preparing needs TensorFlow: "
            f"pip install 'plain56[prepare]' and launch again, prepare it elsewhere with `{_command(name, folder)}`, "
            "or choose 'digits', which needs nothing, or 'folder:PATH'."
        )
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # TensorFlow would take all of its memory
    try:
        builder = tfds.builder(name, data_dir=str(folder), file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # a set's own script, the network and the disk raise any kind
        raise UserError(f"TFDS cannot prepare the data set {name!r} in {folder}: {first_line(error)}.") from error
    return builder


def _command(name, folder):
    return f"tfds build {name} --file_format=array_record --data_dir={folder}"
