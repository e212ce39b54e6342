"""A run's log: the records in metrics.jsonl."""

import contextlib
import json
import os

from plain56.errors import UserError
from plain56.runs.files import (
    finite,
    is_count,
    is_number,
    lines_from_end,
    parse_json,
    read_text,
    refusing_os_errors,
    write_text,
)

MOST_STEPS = 2**31  # steps are int32 on the devices


def read(folder, split=None):
    """See `Run.metrics`."""
    path = folder / "metrics.jsonl"
    found = []
    *lines, _ = (read_text(path) or "").split("\n")  # the last one is empty, or was cut off while being written
    for number, line in enumerate(lines, start=1):
        record = _parsed(line, f"{path} is damaged: line {number} is not a record.")
        if split in (None, record["split"]):
            found.append(record)
    return found


def newest(folder, splits):
    """See `Run.newest`."""
    path, found = folder / "metrics.jsonl", {}
    for number, line in enumerate(lines_from_end(path), start=1):
        if found.keys() == splits:
            break
        record = _parsed(line, f"{path} is damaged: line {number}, counted from the last one, is not a record.")
        if record["split"] in splits:
            found.setdefault(record["split"], record)
    return found


def _parsed(line, damage):
    """The record in a line. Raises UserError with the sentence `damage` if it holds something else."""
    try:
        record = parse_json(line if isinstance(line, str) else line.decode())
    except ValueError:
        record = None
    if not _is_record(record):
        raise UserError(damage)
    return record


def _is_record(value):
    """Whether a JSON value is a record: step, split, seconds, and numbers or null by name; of gradients, also dicts of these."""
    if not isinstance(value, dict) or not is_count(value.get("step")) or value["step"] >= MOST_STEPS:
        return False
    if type(value.get("split")) is not str or not is_number(value.get("seconds")):
        return False
    of_gradients = value["split"] == "gradients"
    if of_gradients and not isinstance(value.get("outputs"), dict):
        return False
    parts = [part for key, part in value.items() if key != "split"]
    if of_gradients:
        parts = [number for part in parts for number in (part.values() if isinstance(part, dict) else [part])]
    return all(part is None or is_number(part) for part in parts)


@contextlib.contextmanager
def open_log(folder, step):
    """Yields the function that appends records to metrics.jsonl, and returns them; a number that is not finite becomes null.

    With `sync=True` the function returns when all records are on the disk. Records after the restored `step` are removed
    first, and those that are there already are neither appended nor returned, so that none comes twice.

    Raises:
        UserError: metrics.jsonl is damaged; or it cannot be written, which the function raises as well.
    """
    kept = [record for record in read(folder) if record["step"] <= step]
    # The last finite step of a network that diverges may be that of the checkpoint before.
    there = {(record["step"], record["split"]) for record in kept}
    write_text(folder / "metrics.jsonl", "".join(_line(record) for record in kept))

    def append(*records, sync=False):
        new = [finite(record) for record in records if (record["step"], record["split"]) not in there]
        with refusing_os_errors("run", folder):
            file.write("".join(map(_line, new)))
            file.flush()
            if sync:
                os.fsync(file.fileno())
        return new

    with contextlib.ExitStack() as stack:
        with refusing_os_errors("run", folder):
            file = stack.enter_context(_closing((folder / "metrics.jsonl").open("a", encoding="utf-8")))
        yield append


def _line(record):
    """A record as a line of JSON."""
    return json.dumps(record, allow_nan=False) + "\n"


@contextlib.contextmanager
def _closing(file):
    """Closes a file at the end. What a full disk did not take of it has raised an error before."""
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.close()
