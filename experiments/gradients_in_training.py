"""The gradient's norm at every block, from the first step of training to the last: what skip connections do while networks learn.

Reads only the run directories of a sweep whose runs were trained with `train.gradients_every`. Writes gradients.csv, with the
norms of the first seed of each plain and residual network, and draws the figure from it:

    python -m plain56.experiments.gradients_in_training [--workdir=runs/cifar10_short]
"""

import logging

from plain56 import cli, runs, summary
from plain56.errors import UserError
from plain56.figures import gradients_in_training as figure

logger = logging.getLogger("plain56.experiments")


def write(workdir):
    """Writes gradients.csv, if a run has measured gradients, and returns whether one has. A damaged run is left out."""
    rows = {row["run"]: row for row in summary.summarize(workdir) if runs.family(row) in ("plain", "residual")}
    keys, networks, norms = runs.group_keys(list(rows.values())), {}, []
    for planned in runs.read_sweep(workdir):
        row = rows.get(planned.run.path.name)
        if row and (found := _norms(planned)):
            networks.setdefault((row["model"], *(row[key] for key in keys)), []).append((row["seed"], row, found))
    for members in networks.values():
        _, row, found = min(members, key=lambda member: member[0])
        norms += [{key: row[key] for key in ("run", "residual", "depth")} | norm for norm in found]
    if norms:
        runs.write_table(workdir, "gradients", norms)
    return bool(norms)


def _norms(planned):
    """A row for the stem and each block at each step at which a run has measured the gradient."""
    status, _, records = planned.view()
    if status.state == "damaged":
        logger.warning("%s is left out: %s", planned.run.path.name, status.reason)
        return []
    return [
        {"step": record["step"], "block": block, "norm": "" if norm is None else f"{norm:.4g}"}
        for record in records
        if record["split"] == "gradients"
        for block, norm in record["outputs"].items()
    ]


def draw(options, arguments):
    """Draws the figure of a sweep's gradients."""
    cli.refuse_config(options, "only the run directories")
    if not write(options.workdir):
        raise UserError(f"No run in {options.workdir} has measured its gradients; train with --config.train.gradients_every=100.")
    drawn = figure.draw(options.workdir)
    cli.print_paths("figure", drawn)
    cli.print_result({"figure": str(drawn)})


if __name__ == "__main__":
    cli.run_experiment(draw, {"workdir": "runs/cifar10_short"}, __doc__)
