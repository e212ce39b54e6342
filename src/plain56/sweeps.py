"""A sweep: many runs of one recipe, one after another, resumable, gathered in one table."""

import contextlib
import copy
from pathlib import Path
from typing import NamedTuple

from absl import logging

from plain56 import runs
from plain56.analysis.complexity import count_multiply_adds
from plain56.config import build_model, check
from plain56.errors import UserError
from plain56.models import parse_name
from plain56.training import load, train


class Element(NamedTuple):
    """One run of a sweep: its name, what it overrides, and its resolved config."""

    name: str
    overrides: dict
    config: object


def expand(config, sweep):
    """The elements of a sweep.

    Args:
        config: the sweep's config; its section `sweep` chooses the elements and is no part of a run's config.
        sweep: `config -> iterable of flat overrides`.

    Raises:
        UserError: a run's config is wrong, two runs are the same, or there is none.
    """
    elements = []
    try:
        all_overrides = list(sweep(config))
    except (TypeError, ValueError) as error:
        raise UserError(f"The section `sweep` of the config holds a value of the wrong type: {error}.") from error
    for overrides in all_overrides:
        resolved = copy.deepcopy(config).unlock()
        if "sweep" in resolved:
            del resolved.sweep
        resolved.lock()
        try:
            resolved.update_from_flattened_dict(overrides)
        except (KeyError, TypeError) as error:
            raise UserError(f"The sweep's overrides {overrides} do not fit the config: {error.args[0]}.") from error
        check(resolved)
        elements.append(Element(_name(resolved, overrides), overrides, resolved))
    names = [element.name for element in elements]
    if not names:
        raise UserError("The sweep is empty: it needs at least one depth and one seed.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"The sweep names a run twice: {', '.join(twice)}.")
    return elements


def _name(config, overrides):
    """ "resnet56-seed0": the network, then every other key that is overridden, with its value."""
    rest = [f"{key.rpartition('.')[-1]}{value}" for key, value in overrides.items() if key != "model.name"]
    return "-".join([config.model.name, *rest])


def run_sweep(elements, workdir, on_progress=lambda name, number, share: None):
    """Runs every element that has not ended, in order; a run that fails does not stop the ones after it.

    Args:
        elements: of `expand`.
        workdir: the sweep directory; launched again on it, a sweep goes on where it was cut.
        on_progress: called with the run's name, its number from 0, and the share done, in [0, 1], of the work that this call
            began with.

    Returns:
        The rows of the summary, which is rewritten after every run.

    Raises:
        UserError: a mistake that concerns the sweep as a whole, before anything is run.
    """
    todo = [_work_left(element, runs.Run(Path(workdir) / element.name)) for element in elements]
    described = [{"model.name": e.config.model.name, "seed": e.config.seed, **e.overrides} for e in elements]
    runs.write_sweep(workdir, dict(zip([element.name for element in elements], described, strict=True)))
    summary = summarise(workdir)
    for number, element in enumerate(elements):
        run = runs.Run(Path(workdir) / element.name)

        def show(share, name=element.name, number=number):
            on_progress(name, number, (sum(todo[:number]) + share * todo[number]) / max(1, sum(todo)))

        try:
            train(element.config, run.path, show)
        except Exception as error:  # the other runs are independent of it
            logging.error("%s failed: %s", element.name, error)
            failed = run.status()._replace(state="failed", reason=f"{type(error).__name__}: {error}"[:500])
            with contextlib.suppress(UserError, OSError):  # it may be the disk that fails
                runs.open_run(run.path, element.config.to_dict()).write_status(failed)
        finally:
            summary = summarise(workdir)
    return summary


def _work_left(element, run):
    """Checks an element against its run directory and data, and returns the multiply-adds that it has left, up to a factor."""
    runs.check_identity(run, element.config.to_dict())
    status, options = run.status(), element.config.train
    if status.state in runs.ENDED:
        return 0
    dataset = load(element.config)
    per_step = count_multiply_adds(build_model(element.config, len(dataset.class_names)), dataset.train.images.shape[1:])
    return max(0, min(options.steps, options.stop_after or options.steps) - status.step) * per_step


def summarise(workdir):
    """Writes and returns a row for every run of the sweep, read off the run directories alone.

    Errors are fractions: `train_error` and `train_loss` are means over the last logging interval, in training mode with
    augmentation; `test_error` is the last step's. None where a run has not come that far.
    """
    rows = [_row(run, overrides) for run, overrides in runs.read_sweep(workdir)]
    runs.write_summary(workdir, rows)
    return rows


def _row(run, overrides):
    status = run.status()
    trained, tested = (next(reversed(run.metrics(split)), {}) for split in ("train", "test"))
    family, depth = parse_name(overrides["model.name"])
    return {
        "model": overrides["model.name"],
        "depth": depth,
        "residual": family == "resnet",
        "seed": overrides["seed"],
        "steps": status.step,
        "state": status.state,
        "train_error": trained.get("top1_error"),
        "test_error": tested.get("top1_error"),
        "train_loss": trained.get("loss"),
        "parameters": status.parameters,
        "seconds": status.seconds,
    }
