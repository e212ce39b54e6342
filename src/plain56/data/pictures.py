"""Single pictures, read, decoded and resized, and splits that are read picture by picture."""

import errno
import functools
import io
import os
import stat
import sys
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from plain56.errors import UserError, first_line
from plain56.runs import user_path

MOST_BYTES = 2**30  # of a file: what the most pixels that are decoded take without compression, at 64 bits each
MOST_STRETCHED = 16  # longer to shorter side of what is resized
LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC)


class Fingerprint(NamedTuple):
    """Checksums over the files of a whole data set: of their names and sizes, and of their times of change.

    A copy of the files has the same names and sizes, but may have other times.
    """

    files: int
    times: int


class Pictures(NamedTuple):
    """A split that is read picture by picture.

    `read(i)` returns picture i, as the bytes of a file or as uint8 [H, W, C], and its label; `name(i)` names it. `labels` [N] is
    None where only reading every picture would tell them, and `fingerprint` where there are no files.
    """

    count: int
    read: Callable[[int], tuple[bytes | np.ndarray, int]]
    name: Callable[[int], str]
    labels: np.ndarray | None = None
    fingerprint: Fingerprint | None = None

    def take(self, indices):
        """The pictures at these places, in this order."""
        labels = None if self.labels is None else self.labels[indices]
        read, name = (lambda i: self.read(indices[i])), (lambda i: self.name(indices[i]))
        return Pictures(len(indices), read, name, labels, self.fingerprint)

    def all_labels(self):
        """The labels of all pictures [N], read if need be; −1 for a record that cannot be read."""
        if self.labels is not None:
            return self.labels
        return np.array([-1 if record is None else record[1] for record in map(self.decode, range(self.count))])

    def decode(self, i, channels=None):
        """Picture i as uint8 [H, W, channels], at its own size, or without `channels` as `read` returns it; and its label.

        None if it cannot be read; raises UserError if the system lacks what reading takes, which is not the picture's fault.
        """
        try:
            source, label = self.read(i)
            return (_decode(source, channels) if channels else source), label
        except (OSError, RuntimeError, ValueError, MemoryError, cv2.error) as error:  # of files, and of damaged records
            if lack := told_lack(error):
                raise lack from error
            return None


def told_lack(error):
    """The UserError for an exception that means a lack of memory, open files or threads; None for any other exception."""
    if isinstance(error, OSError):
        lacking = error.errno in LACKS
    else:  # OpenCV and Python tell these only by their words
        words = ("Insufficient memory", "can't start new thread")
        lacking = isinstance(error, MemoryError) or any(word in str(error) for word in words)
    if not lacking:
        return None
    return UserError(f"The data cannot be read for lack of memory, open files or processes ({_reason(error)}); see `ulimit -a`.")


def _reason(error):
    return getattr(error, "strerror", None) or first_line(error)


def read_file(path):
    """The bytes of a file; raises OSError also for what reading might wait for or never finish, such as a pipe."""
    # With O_NONBLOCK, opening a pipe does not wait for its writer.
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "It is not a regular file")
        if status.st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return file.read()


def _decode(source, channels):
    """uint8 [H, W, channels] from the bytes of a file or from an image; raises ValueError if it cannot be read."""
    if isinstance(source, np.ndarray):
        if source.shape[-1] == channels:
            return source
        return cv2.cvtColor(source, cv2.COLOR_RGB2GRAY)[..., None] if channels == 1 else np.repeat(source, 3, axis=-1)
    if not source:
        raise ValueError("is empty")
    try:
        image = cv2.imdecode(np.frombuffer(source, np.uint8), cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" not in str(error):
            raise
        most = os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]
        raise ValueError(f"is too large: at most {most} pixels are read (OPENCV_IO_MAX_IMAGE_PIXELS)") from error
    if image is None:
        raise ValueError("is not a picture that can be read; it must be a JPEG, PNG or WebP file")
    return image if channels == 3 else image[..., None]


def read_picture(picture, channels):
    """A picture as uint8 [H, W, channels]; raises UserError if it cannot be read.

    Args:
        picture: a path, an image of PIL, or an array, uint8 [H, W], [H, W, 1] or [H, W, 3] (RGB).
    """
    if isinstance(picture, str | os.PathLike):
        name, read = str(picture), functools.partial(read_file, user_path(picture))
    elif _is_of_pil(picture):
        name, read = str(getattr(picture, "filename", "")), functools.partial(_source_of, picture)
    else:
        return _decode(_checked(picture), channels)
    try:
        return _decode(read(), channels)
    except (OSError, ValueError, SyntaxError, MemoryError, cv2.error) as error:  # the third: PIL, of a damaged PNG
        if lack := told_lack(error):
            raise lack from error
        if isinstance(error, ValueError):
            raise UserError(f"{name or 'The image'} {error}.") from error
        raise UserError(f"The picture {name} cannot be read: {_reason(error)}.") from error


def _is_of_pil(picture):
    """Whether it is an image of PIL, which need not be installed: if it is not imported, it has made none."""
    return "PIL.Image" in sys.modules and isinstance(picture, sys.modules["PIL.Image"].Image)


def _source_of(image):
    """What `_decode` takes of an image of PIL: the bytes of a file, or an array."""
    from PIL import ImageOps

    # PIL's grays differ slightly from OpenCV's, so OpenCV gets the file's bytes. PIL keeps the file open until it has decoded it.
    if image.format == "JPEG" and image.tile:
        if image.fp is None or image.fp.closed:
            raise ValueError("was closed before it was read")
        image.fp.seek(0)
        return image.fp.read()
    upright = ImageOps.exif_transpose(image)
    if image.format == "PNG" or image.mode.startswith("I"):  # also 16 bits, of which a PNG file keeps the upper 8
        file = io.BytesIO()
        upright.save(file, "PNG", compress_level=1)
        return file.getvalue()
    array = np.asarray(upright.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return _checked(array)


def _checked(picture):
    """A picture's array as uint8 [H, W, C]; raises UserError for anything else."""
    is_array = hasattr(picture, "__array__")
    array = np.asarray(picture) if is_array else np.empty(0)
    image = array[..., None] if array.ndim == 2 else array
    if not (image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] in (1, 3) and image.size):
        given = f"{array.dtype} {list(array.shape)}" if is_array else f"a value of type {type(picture).__name__}"
        raise UserError(
            f"A picture must be a path, an image of PIL, or an array uint8 [H, W], [H, W, 1] or [H, W, 3] (RGB), not {given}."
        )
    return image


def resize(image, side):
    """Resizes an image [H, W, C] so that its shorter side is `side`."""
    shorter = min(image.shape[:2])
    if shorter == side:
        return image
    # Only the middle of a stripe: enlarged whole, a line of a million pixels would take hundreds of gigabytes.
    longest = MOST_STRETCHED * shorter
    top, left = (max(0, length - longest) // 2 for length in image.shape[:2])
    image = image[top : top + longest, left : left + longest]
    height, width, channels = image.shape
    scale = side / shorter
    to = max(side, round(width * scale)), max(side, round(height * scale))
    try:
        # Shrinking averages over areas, which does not alias.
        resized = cv2.resize(image, to, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    except cv2.error as error:
        if lack := told_lack(error):
            raise lack from error
        raise
    return resized.reshape(*resized.shape[:2], channels)


def center(image, side):
    """The side×side middle of an image [H, W, C]."""
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]
