"""A sweep: many runs of one recipe, one after another, resumable, gathered in one table."""

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
    for overrides in sweep(config):
        resolved = copy.deepcopy(config).unlock()
        del resolved.sweep
        resolved.lock()
        resolved.update_from_flattened_dict(overrides)
        check(resolved)
        elements.append(Element(_name(overrides), overrides, resolved))
    names = [element.name for element in elements]
    if not names:
        raise UserError("The sweep is empty: it needs at least one depth and one seed.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"The sweep names a run twice: {', '.join(twice)}.")
    return elements


def _name(overrides):
    """ "resnet56-seed0" from its overrides: the network, then every other key with its value."""
    rest = [f"{key.rpartition('.')[-1]}{value}" for key, value in overrides.items() if key != "model.name"]
    return "-".join([overrides["model.name"], *rest])


def run_sweep(elements, workdir, on_progress=lambda name, number, share: None):
    """Runs every element that has not ended, in order; a run that fails does not stop the ones after it.

    Args:
        elements: of `expand`.
        workdir: the sweep directory; launched again on it, a sweep goes on where it was cut.
        on_progress: called with the run's name, its number from 0, and the share of all work that is done, in [0, 1].

    Returns:
        The rows of the summary, which is rewritten after every run.

    Raises:
        UserError: a mistake that concerns the sweep as a whole, before anything is run.
    """
    work = []
    for element in elements:
        runs.check_identity(runs.Run(Path(workdir) / element.name), element.config.to_dict())
        dataset = load(element.config)
        model = build_model(element.config, len(dataset.class_names))
        # Time goes with the multiply-adds.
        work.append(count_multiply_adds(model, dataset.train.images.shape[1:]) * element.config.train.steps)
    runs.write_sweep(workdir, {element.name: element.overrides for element in elements})
    for number, element in enumerate(elements):
        before = sum(work[:number])

        def on_step(step, name=element.name, number=number, before=before, steps=element.config.train.steps):
            on_progress(name, number, (before + work[number] * step / steps) / sum(work))

        try:
            train(element.config, Path(workdir) / element.name, on_step)
        except UserError:
            raise
        except Exception as error:  # the other runs are independent of it
            logging.error("%s failed: %s", element.name, error)
        on_step(element.config.train.steps)
        summary = summarise(workdir)
    return summary


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
