"""The results of a sweep, read only from its run directories: the rows of its summary, and the runs that figures look into."""

import logging
from pathlib import Path

from plain56 import runs
from plain56.errors import UserError
from plain56.models import parse_name

logger = logging.getLogger(__name__)


def summarize(workdir):
    """Writes and returns a row for every run of the sweep, read only from the run directories.

    Each config key in which the runs differ is a column by its full name. Errors are fractions, or None if a run has not come
    that far or does not measure them. `train_error` and `train_loss` are means over the last logging interval, in training mode
    with augmentation. `train_clean_error`, `validation_error` and `test_error` are without; each is the newest that was measured,
    at an earlier step if the run was cut.
    """
    runs.require_sweep(workdir)  # before anything is written there
    return runs.write_summary(workdir, lambda: _rows(runs.read_sweep(workdir)))


def of_run(workdir):
    """The row of a summary, as a list, for the run of a run directory. Raises UserError if it is none."""
    return _rows(runs.read_any(workdir))


def finished_runs(workdir):
    """`(run, row of the summary)` of the first complete seed of each network and overrides, plain ones first, by depth.

    Raises UserError if no run is finished or stopped.
    """
    rows = first_seeds([row for row in summarize(workdir) if row["state"] in runs.COMPLETE])
    if not rows:
        raise UserError(f"{workdir} has no finished run; it must be a sweep that has ended, such as that of `make degradation`.")
    return [(runs.Run(Path(workdir) / row["run"]), row) for row in rows]


def first_seeds(rows):
    """Of the rows of a summary, those of the first seed of each network and overrides, plain ones first, by depth."""
    rows = sorted(rows, key=lambda row: (row["residual"], row["depth"] or 0, row["model"], row["seed"]))
    keys, first = runs.group_keys(rows), {}
    for row in rows:
        first.setdefault((row["model"], row["depth"], *(row[key] for key in keys)), row)
    return list(first.values())


def shallowest_and_deepest(workdir):
    """As `finished_runs`, for the shallowest and the deepest plain and residual networks of each group of overrides.

    Raises UserError if there are none.
    """
    found = [(run, row) for run, row in finished_runs(workdir) if runs.family(row) in ("plain", "residual")]
    if not found:
        raise UserError(f"{workdir} has no finished run of a plain or residual network.")
    keys, families = runs.group_keys([row for _, row in found]), {}
    for run, row in found:
        families.setdefault((row["residual"], *(row[key] for key in keys)), []).append((run, row))
    return [members[i] for members in families.values() for i in sorted({0, len(members) - 1})]


def _rows(planned):
    views = [run.last_view() for run in planned]
    keys = runs.differing_keys([view.config for view in views if view.config and view.status.state != "damaged"])
    return [_row(run, view, keys) for run, view in zip(planned, views, strict=True)]


def _row(planned, view, keys):
    status, config, records = view
    if status.state == "damaged":  # the other runs are independent of it
        logger.error("%s is damaged: %s", planned.run.path.name, status.reason)
    last = {record["split"]: record for record in records}
    errors = {f"{split}_error": last.get(split, {}).get("top1_error") for split in ("train", "train_clean", "validation", "test")}
    model = planned.overrides.get("model.name", "")
    try:
        family, depth = parse_name(model, {"depth": config.get("model.options.depth")} if config else {})
    except UserError:
        family, depth = None, None
    return {
        "run": planned.run.path.name,
        "data": runs.cell(config.get("data.name")) if config else None,
        "model": model,
        "depth": depth,
        "residual": family == "resnet",
        "seed": planned.overrides.get("seed"),
        **{key: runs.cell(config.get(key)) for key in keys},
        "steps": status.step,
        "state": status.state,
        **errors,
        "train_loss": last.get("train", {}).get("loss"),
        "parameters": status.parameters,
        "seconds": status.seconds,
    }
