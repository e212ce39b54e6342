"""Loggers: they show a run's records elsewhere, while `metrics.jsonl` keeps them. The config names them in `train.loggers`.

A logger is "tensorboard", "wandb", or `package.module:function`, whose `function(workdir, config)` returns an object with

    write(record)   called for each record once it is in metrics.jsonl, as `runs.Run.metrics` returns it: a dict of step, epoch,
                    split, seconds, and of numbers or None; gradients also have dicts of these
    close()         called when training ends, however it ends

Only process 0 calls them. `workdir` is the run directory, whose metrics.jsonl has the records of earlier launches; those after
the checkpoint that a run goes on from come once more. `config` cannot be changed. A logger that cannot begin stops the run.
Later, an exception only ends the logger, with a warning, because no run should be lost for one; a UserError stops the run.
"""

import contextlib
import copy
import logging
import os
import shutil
import sys
import uuid

from ml_collections import FrozenConfigDict

from plain56 import runs
from plain56.errors import UserError, first_line
from plain56.references import resolve
from plain56.runs.files import refusing_os_errors

KEY = "train.loggers"

logger = logging.getLogger(__name__)


def check(names):
    """Raises UserError where a logger cannot be imported."""
    for name in names:
        _find(name)


@contextlib.contextmanager
def open_loggers(config, workdir, start):
    """Yields the function that writes records to all loggers of a config.

    Args:
        workdir: the run directory, whose metrics.jsonl is open already.
        start: when the run would have started, had it not been cut, as a time of the computer's clock.

    Raises UserError if a logger cannot begin.
    """
    loggers, failed = {}, set()

    def call(name, method, *arguments):
        try:
            method(*arguments)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            if name not in failed:
                sentence = "The logger %r failed (%s); it gets no more records, and metrics.jsonl has them all."
                logger.warning(sentence, name, _reason(error))
            failed.add(name)

    def write(records):
        for record in records:
            for name in [name for name in loggers if name not in failed]:
                call(name, loggers[name].write, copy.deepcopy(record))  # it may take it apart

    try:
        for name in config.train.loggers:
            loggers[name] = _begin(name, config, workdir, start)
        yield write
    finally:
        for name, opened in loggers.items():
            call(name, opened.close)


def _find(name):
    """The function that begins a logger; raises UserError if there is none."""
    if name == "tensorboard":
        return TensorBoard
    if name == "wandb":
        try:
            from wandb import init  # noqa: F401 (a folder `wandb` in the current one is a module, too, but an empty one)
        except Exception as error:  # also where a package that it needs is of another version
            raise UserError(
                f"{KEY} has 'wandb', which cannot be imported ({_reason(error)}); install it by: pip install 'plain56[wandb]'."
            ) from error
        return WeightsAndBiases
    return resolve(name, KEY)


def _begin(name, config, workdir, start):
    function = _find(name)
    try:
        begun = function(workdir, start if name == "tensorboard" else FrozenConfigDict(config))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"The logger {name!r} cannot begin: {_reason(error)}; leave it out of {KEY} to go on.") from error
    for method in ("write", "close"):
        if not callable(getattr(begun, method, None)):
            kind = type(begun).__name__
            raise UserError(f"The logger {name!r} must return an object with write(record) and close(); {kind} has no {method}.")
    return begun


def _reason(error):
    return f"{type(error).__name__}: {first_line(error)}"


@contextlib.contextmanager
def _closing_on_errors(logger):
    try:
        yield
    except BaseException:
        logger.close()
        raise


def scalars(record):
    """The numbers of a record by the names that loggers show: {"train/loss": …}."""
    flat = {key: value for key, value in runs.flatten(record).items() if key not in ("step", "split", "seconds")}
    return {f"{record['split']}/{key}": value for key, value in flat.items() if value not in (None, {})}


class TensorBoard:
    """Event files in `tensorboard/`, written anew at each start to hold what metrics.jsonl holds."""

    def __init__(self, workdir, start):
        EventsWriter, self._event, self._scalar = _event_files()
        self.workdir, self.start = workdir, start
        folder = workdir / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        with refusing_os_errors("run", workdir):
            folder.mkdir(exist_ok=True)
            self._file = EventsWriter(str(folder / "events"))
        with _closing_on_errors(self):
            for record in runs.Run(workdir).metrics():
                self.write(record)

    def write(self, record):
        with refusing_os_errors("run", self.workdir):  # a full disk stops the run, whatever it meets first
            for key, value in scalars(record).items():
                at = {"step": record["step"], "wall_time": self.start + record["seconds"]}
                self._file.write_event(self._event(summary=self._scalar(key, value), **at))
            self._file.flush()

    def close(self):
        with contextlib.suppress(OSError):  # what a full disk did not take has raised an error before
            self._file.close()


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


class WeightsAndBiases:
    """A run of Weights & Biases, the same one after each resume. It is named by `wandb/id` in the run directory.

    `WANDB_MODE=offline` and the other variables of wandb keep their meaning.
    """

    def __init__(self, workdir, config):
        from wandb import Settings, init

        file = workdir / "wandb" / "id"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            runs.write_text(file, uuid.uuid4().hex[:12])
        self._run = init(
            project=os.environ.get("WANDB_PROJECT", "plain56"),
            name=os.environ.get("WANDB_NAME", workdir.name),
            config=config.to_dict(),
            dir=str(workdir),
            id=file.read_text(),
            resume="allow",
            settings=Settings(silent=True, console="off"),
        )
        if not self._run.offline:
            logger.info("Weights & Biases shows this run at %s.", self._run.url)
        with _closing_on_errors(self):
            for record in runs.Run(workdir).metrics():
                self.write(record)

    def write(self, record):
        # After a resume the run there may be ahead, with the same numbers; offline it is a new file, which gets all records.
        if record["step"] >= self._run.step:
            self._run.log(scalars(record), step=record["step"])

    def close(self):
        self._run.finish()
