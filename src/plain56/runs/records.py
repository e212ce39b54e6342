"""A run's log: records in metrics.jsonl, and the same ones as TensorBoard's event files."""

import contextlib
import json
import os
import shutil
import sys

from plain56.errors import UserError
from plain56.runs.files import (
    finite,
    flatten,
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
def open_log(folder, step, start):
    """Yields the function that appends records to metrics.jsonl and tensorboard/; a number that is not finite becomes null.

    With `sync=True` the function returns when all records are on the disk. Records after the restored `step` are removed
    first, so that none comes twice, and the event files are rewritten to hold what metrics.jsonl holds.

    Args:
        start: when the run would have started, had it not been cut, as a time of the computer's clock.

    Raises:
        UserError: metrics.jsonl is damaged; or a file cannot be written, which the function raises as well.
    """
    EventsWriter, Event, scalar = _event_files()
    kept = [record for record in read(folder) if record["step"] <= step]
    # The last finite step of a network that diverges may be that of the checkpoint before.
    there = {(record["step"], record["split"]) for record in kept}
    write_text(folder / "metrics.jsonl", "".join(_line(record) for record in kept))
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)

    def show(record):
        for key, value in flatten(record).items():
            if key not in ("step", "split", "seconds") and isinstance(value, int | float):
                summary = scalar(f"{record['split']}/{key}", value)
                board.write_event(Event(summary=summary, step=record["step"], wall_time=start + record["seconds"]))

    def append(*records, sync=False):
        records = [record for record in records if (record["step"], record["split"]) not in there]
        with refusing_os_errors("run", folder):
            file.write("".join(map(_line, records)))
            file.flush()
            if sync:
                os.fsync(file.fileno())
            for record in records:
                show(finite(record))
            board.flush()

    with contextlib.ExitStack() as stack:
        with refusing_os_errors("run", folder):
            (folder / "tensorboard").mkdir(exist_ok=True)
            file = stack.enter_context(_closing((folder / "metrics.jsonl").open("a", encoding="utf-8")))
            board = stack.enter_context(_closing(EventsWriter(str(folder / "tensorboard" / "events"))))
            for record in kept:
                show(record)
            board.flush()
        yield append


def _event_files():
    """The parts of tensorboardX's SummaryWriter, which itself would wait forever for a thread that died of a full disk.

    Imported only when needed, and without PyTorch, which tensorboardX tries to import.
    """
    hidden = sys.modules.setdefault("torch", None) is None
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar
    finally:
        if hidden:
            del sys.modules["torch"]
    return EventsWriter, Event, scalar


def _line(record):
    """A record as a line of JSON."""
    return json.dumps(finite(record), allow_nan=False) + "\n"


@contextlib.contextmanager
def _closing(file):
    """Closes a file at the end. What a full disk did not take of it has raised an error before."""
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.close()
