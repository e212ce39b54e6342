"""Files that are read without trusting them, and replaced whole or not at all."""

import contextlib
import csv
import io
import itertools
import json
import os
import stat
import uuid
import warnings
from pathlib import Path

import filelock

from plain56.errors import UserError, first_line

PART = ".{}.{}.part"  # a file being written
MOST_LEVELS = 20  # of JSON: four times what our own files have
BLOCK_BYTES = 1 << 13  # read at first from the end of a file


def user_path(text):
    """The path that a user gave, with ~ expanded. Raises UserError for an unknown user's home, too long a name, or a NUL."""
    try:
        path = Path(text).expanduser()
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (OSError, RuntimeError, ValueError) as error:
        shown = repr(str(text)) if len(str(text)) <= 80 else repr(str(text)[:80]) + "…"
        raise UserError(f"{shown} cannot be a path: {getattr(error, 'strerror', None) or first_line(error)}.") from error
    return path


def read_text(path):
    """The text of a file, or None if there is none. Raises UserError if it cannot be read or is not a text file."""
    with _opened(path) as file:
        try:
            return file and file.read().decode()
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}.") from error


def lines_from_end(path):
    """Yields the lines of a file, as bytes, from the last one to the first, and reads no more of it than that takes.

    What comes after the last line break was cut off while being written, and is left out. A missing file has no lines.
    Raises UserError if it cannot be read.
    """
    with _opened(path) as file:
        yield from itertools.islice(_parts_from_end(file), 1, None) if file else ()


def _parts_from_end(file):
    """Yields what lies between the line breaks of a file, from its end."""
    begin, size, part = file.seek(0, os.SEEK_END), BLOCK_BYTES, b""
    while begin:
        end, begin = begin, max(0, begin - size)
        file.seek(begin)
        part, *later = (file.read(end - begin) + part).split(b"\n")
        yield from reversed(later)
        size *= 2  # a long line is not copied many times
    yield part


@contextlib.contextmanager
def _opened(path):
    """Yields a file that is opened to read bytes, or None if there is none. Raises UserError if it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise UserError(f"{path} is damaged: it must be a file.")
        with path.open("rb") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError):
        yield None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def parse_json(text):
    """The value of a JSON text. Raises ValueError if it is not JSON, has a NaN or infinity, or is nested too deep."""

    def refuse(constant):
        raise ValueError(f"{constant} is not a JSON value")

    try:
        value = json.loads(text, parse_constant=refuse)
        # Most texts have too few brackets to be nested so deep.
        deep = text.count("[") + text.count("{") > MOST_LEVELS and _is_deeper(value, MOST_LEVELS)
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")
    return value


def _is_deeper(value, levels):
    nested = _nested([value])
    for _ in range(levels):
        nested = _nested(part for some in nested for part in (some.values() if isinstance(some, dict) else some))
    return bool(nested)


def _nested(values):
    return [value for value in values if isinstance(value, dict | list)]


def read_value(path, otherwise):
    """The JSON value in a file, or `otherwise` if there is no file. Raises UserError if it cannot be read or is not JSON."""
    text = read_text(path)
    try:
        return otherwise if text is None else parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def read_json(path):
    """The JSON object in a file, or {} if there is no file. Raises UserError if it cannot be read or holds something else."""
    value = read_value(path, {})
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it must hold a JSON object, not a {type(value).__name__}.")
    return value


def is_number(value):
    """Whether a JSON value is a number that a float can hold."""
    return type(value) in (int, float) and abs(value) < 1e300


def is_count(value):
    """Whether a JSON value is a count of things or steps."""
    return type(value) is int and 0 <= value < 2**63


def write_text(path, text):
    """As `write_bytes`, for a text."""
    write_bytes(path, text.encode())


def write_bytes(path, content):
    """Replaces a file at once, so that no reader, crash or power cut meets half of it. Raises UserError if it stays as it was."""
    # Several processes, on several machines, may write a sweep's files at a time. A long name has no room for more.
    part = path.with_name(PART.format(path.name[:50], uuid.uuid4().hex))
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def refusing_os_errors(kind, folder):
    """Turns an OSError into a UserError that names the run's or sweep's (`kind`) directory."""
    try:
        yield
    except OSError as error:
        raise UserError(f"The {kind} directory {folder} cannot be written: {error.strerror or error}.") from error


@contextlib.contextmanager
def lock_file(path, timeout):
    """Holds a lock that ends with the process, however it ends.

    If the file system has no such locks, filelock writes the process into the file, so nothing else may write there.

    Raises:
        filelock.Timeout: another process holds it for longer than `timeout` seconds.
        OSError: the file cannot be locked.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the file system has no locks of its own
        lock = filelock.FileLock(path)
        lock.acquire(timeout=timeout)
    try:
        yield
    finally:
        lock.release()


def write_table(folder, name, rows):
    """Writes a list of equal dicts as NAME.csv in a folder, which may be new."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with refusing_os_errors("result", folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    write_text(Path(folder) / f"{name}.csv", text.getvalue())


def read_table(folder, name):
    """The rows that `write_table` wrote, all values as text. Raises UserError if the table is missing or damaged."""
    path = Path(folder) / f"{name}.csv"
    text = read_text(path)
    if text is None:
        raise UserError(f"{path} cannot be read: there is no such file.")
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path} is damaged: its rows are of different lengths.")
    return rows


def flatten(nested, prefix=""):
    """`{"a": {"b": 1}}` to `{"a.b": 1}`."""
    flat = {}
    for key, value in nested.items():
        deeper = isinstance(value, dict) and value  # an empty one would be lost
        flat.update(flatten(value, f"{prefix}{key}.") if deeper else {prefix + key: value})
    return flat


def finite(value):
    """A JSON value with null in place of NaN and infinities, which JSON does not have."""
    return json.loads(json.dumps(value), parse_constant=lambda constant: None)
