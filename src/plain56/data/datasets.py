"""Image classification sets, loaded or opened for reading picture by picture, and which of their examples a run has."""

import functools
import logging
import math
import os
from typing import NamedTuple

import jax
import numpy as np
import psutil
from rich.console import Console
from rich.progress import track

from plain56.data.pictures import Pictures, center, resize, told_lack
from plain56.data.sources import open_all
from plain56.errors import UserError

DEFAULT_DATA_DIR = "~/tensorflow_datasets"
# A few broken files are left out; more of them mean that something is wrong with the set as a whole.
UNREADABLE_SHARE = 0.05
SOME = 20  # pictures by which a set is judged
SAME_GRAY = 8  # levels of 255 by which the three channels of a gray picture may differ, as lossy compression makes them

logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """Images uint8 [N, H, W, C] and labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A train, perhaps a validation, and a test split, either all read or none, with the names of their classes."""

    train: Split | Pictures
    validation: Split | Pictures | None
    test: Split | Pictures
    class_names: tuple[str, ...]

    @property
    def splits(self):
        """The splits that are there, by name."""
        return {name: split for name in ("train", "validation", "test") if (split := getattr(self, name))}


def load_dataset(data):
    """Loads a data set whole, or only opens it, by `data.mode`. The latest one is kept, so the runs of a sweep read it once.

    Args:
        data: the config's `data` section. Images get as many channels as `data.mean` has numbers, 1 (gray) or 3 (RGB).

    Raises UserError if the set is not there, does not fit the config, or has too many pictures that cannot be read.
    """
    keys = ("image_size", "validation_examples", "examples_per_class", "split_seed")
    mode = choose_mode(data) if data.mode == "auto" else data.mode
    try:
        return _load(channels=len(data.mean), mode=mode, **_where(data), **{key: data[key] for key in keys})
    except MemoryError as error:
        raise told_lack(error) from error


def load_resident(data):
    """As `load_dataset`; raises UserError if the set is too large to be loaded whole."""
    dataset = load_dataset(data)
    if isinstance(dataset.test, Pictures):
        raise UserError(f"The data set {data.name!r} is streamed; it must be one that fits into memory.")
    return dataset


def choose_mode(data):
    """What `data.mode` "auto" means on this machine, "resident" or "stream"; raises as `load_dataset`."""
    return _choose_mode(channels=len(data.mean), image_size=data.image_size, **_where(data))


def open_test_split(data):
    """The test split's `Pictures`, each of its own size, and the names of the classes; raises as `load_dataset`."""
    return _open(**_where(data))[1:]


def are_in_color(data):
    """Whether some training pictures are in color, of a few that are looked at; raises as `load_dataset`."""
    return any(np.ptp(image, axis=-1).max() > SAME_GRAY for image in _some(data, 3))


def _some(data, channels):
    """A few training pictures of a set that can be read, spread over all of them, each of its own size."""
    pictures = _open(**_where(data))[0]
    places = np.unique(np.linspace(0, pictures.count - 1, SOME).astype(int)).tolist()
    return [decoded[0] for decoded in (pictures.decode(i, channels) for i in places) if decoded]


def _where(data):
    where = {key: data[key] for key in ("name", "train_split", "test_split", "test_share", "classes")}
    if data.name.startswith("folder:"):
        return {"dir": data.dir, "seed": data.split_seed, **where}
    # The split of all others is fixed: another seed must not open them again.
    return {"dir": data.dir or os.environ.get("TFDS_DATA_DIR") or DEFAULT_DATA_DIR, "seed": 0, **where}


@functools.lru_cache(maxsize=1)  # choosing classes may have to read the labels of all examples
def _open(*, name, classes, **where):
    """The pictures of the classes named, or of all, to train and to test on, and the names of the classes."""
    train, test, class_names = open_all(name=name, **where)
    if not classes:
        return train, test, class_names
    absent = [chosen for chosen in classes if chosen not in class_names]
    if absent:
        raise UserError(f"data.classes has {absent[0]!r}, but the classes of {name!r} are {', '.join(class_names)}.")
    numbers = {class_names.index(chosen): number for number, chosen in enumerate(classes)}
    train, test = _of_classes(train, numbers), _of_classes(test, numbers)
    for split, pictures in (("train", train), ("test", test)):
        if not pictures.count:
            raise UserError(f"The {split} split of {name!r} has no example of the classes {', '.join(classes)}.")
    return train, test, list(classes)


def _of_classes(pictures, numbers):
    """The pictures whose labels are keys of `numbers`; the values become their labels."""
    labels = pictures.all_labels()
    places = np.flatnonzero(np.isin(labels, list(numbers)))
    own_labels = np.array([numbers[label] for label in labels[places].tolist()])
    chosen = pictures.take(places)
    return chosen._replace(read=lambda i: (chosen.read(i)[0], own_labels[i]), labels=own_labels)


@functools.lru_cache(maxsize=1)  # a set that has been read leaves less memory free, which must not change the choice
def _choose_mode(*, channels, image_size, **where):
    """Resident if the set takes at most half of a device's memory; if no device tells how much it has, of what is free here."""
    total = sum(pictures.count * math.prod(_shape(pictures, channels, image_size)) for pictures in _open(**where)[:2])
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    fits = total <= min((limit for limit in limits if limit), default=psutil.virtual_memory().available) / 2
    return "resident" if fits else "stream"


@functools.lru_cache(maxsize=1)
def _load(*, channels, mode, image_size, validation_examples, examples_per_class, split_seed, **where):
    name = where["name"]
    train, test, class_names = _open(**where)
    chosen, validation = _carve(train, validation_examples, examples_per_class, class_names, split_seed)
    splits = {"train": train.take(chosen), "validation": train.take(validation), "test": test}
    if not validation_examples:
        del splits["validation"]
    if mode == "resident":
        for split, pictures in splits.items():
            splits[split] = _read(pictures, f"{split} split of {name!r}", channels, image_size)
        shapes = {split.images.shape[1:] for split in splits.values()}
        if len(shapes) > 1:
            raise _sizes_differ(name, sorted(shapes))
    return Dataset(splits["train"], splits.get("validation"), splits["test"], tuple(class_names))


def image_shape(split, data):
    """`(H, W, C)` of the images of a split that is read or not; `data` is the config's section."""
    if isinstance(split, Split):
        return split.images.shape[1:]
    return _shape(split, len(data.mean), data.image_size)


def how_resized(data):
    """What resizing does to the pictures of a set, judged by some of them: "shrunk to ", "enlarged to ", "resized to " or ""."""
    if not data.image_size:
        return ""
    sides = [min(image.shape[:2]) for image in _some(data, len(data.mean))]
    shrunk, enlarged = (any(sign * side > sign * data.image_size for side in sides) for sign in (1, -1))
    if not (shrunk or enlarged):
        return ""
    return "resized to " if shrunk and enlarged else "shrunk to " if shrunk else "enlarged to "


def _shape(pictures, channels, image_size):
    """`image_size` squared, or the size of the first picture that can be read."""
    if image_size:
        return image_size, image_size, channels
    decoded = (pictures.decode(i, channels) for i in range(pictures.count))
    return next((image.shape for image, _ in filter(None, decoded)), (1, 1, channels))


def _carve(pictures, validation_examples, examples_per_class, class_names, seed):
    """The places of the training and of the validation examples in the training split, each in rising order."""
    count = pictures.count
    if validation_examples >= count:
        raise UserError(
            f"data.validation_examples must be less than the {count} examples to train on, not {validation_examples}."
        )
    validation, train = np.split(np.random.default_rng((seed, 1)).permutation(count), [validation_examples])
    if examples_per_class:
        labels = pictures.all_labels()
        by_class = [train[labels[train] == label] for label in range(len(class_names))]
        most, name = min(zip(map(len, by_class), class_names, strict=True), key=lambda pair: pair[0])
        if most < examples_per_class:
            raise UserError(f"data.examples_per_class must be at most {most} (all of class {name!r}), not {examples_per_class}.")
        train = np.concatenate([members[:examples_per_class] for members in by_class])
    return np.sort(train), np.sort(validation)


def _read(pictures, title, channels, image_size):
    """Reads, decodes and resizes the pictures of a split; those that cannot be read are named and left out."""
    count, images, labels, unreadable = pictures.count, None, [], []
    if image_size:  # before the first picture is read: one may be too large
        check_memory(f"The {title}", count * image_size**2 * channels)
    numbers = track(range(count), f"Reading {title}", console=Console(stderr=True), transient=True, disable=count < 20_000)
    for i in numbers:
        decoded = pictures.decode(i, channels)
        if decoded is None:
            unreadable.append(i)
            continue
        image, label = decoded
        labels.append(label)
        if image_size:
            image = center(resize(image, image_size), image_size)
        if images is None:
            check_memory(f"The {title}", count * image.nbytes)
            images = np.empty((count, *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise _sizes_differ(title, (images.shape[1:], image.shape))
        images[i] = image
    readable = leave_out(pictures, unreadable, title)
    return Split(images[readable] if unreadable else images, np.array(labels, np.int32))


def leave_out(pictures, unreadable, title):
    """The places of all pictures but the `unreadable` ones, which a warning names; raises UserError if these are too many."""
    count = pictures.count
    if unreadable:
        named = ", ".join(pictures.name(i) for i in unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        found = f"{len(unreadable)} of {count} images in the {title} cannot be read: {named}"
        if len(unreadable) > UNREADABLE_SHARE * count:
            raise UserError(f"{found}; at most {100 * UNREADABLE_SHARE:.0f} % may be left out.")
        logger.warning("%s; left out.", found)
    return np.delete(np.arange(count), unreadable)


def check_memory(what, needed, advice="a smaller data.image_size, or a part of it, needs less"):
    """Raises a UserError that ends in the advice unless so many bytes are free."""
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(f"{what} needs {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB are free; {advice}.")


def _sizes_differ(title, shapes):
    sizes = " and ".join("×".join(map(str, shape[:2])) for shape in shapes)
    return UserError(f"The {title} has images of {sizes} pixels; choose data.image_size to resize all of them to one size.")
