"""The gradient's norm at every block, from the first step of training to the last: what skip connections do while networks learn.

Reads only the run directories of a sweep whose runs were trained with `train.gradients_every`. Writes gradients.csv, with the
norms of the first seed of each plain and residual network, and draws the figure from it:

    python -m plain56.experiments.gradients_in_training [--workdir=runs/cifar10_short]
"""

from plain56 import cli, runs, summary
from plain56.errors import UserError
from plain56.figures import gradients_in_training as figure


def write(workdir, rows):
    """Writes gradients.csv for the rows of a sweep's summary, if a run has measured gradients, and returns whether one has."""
    norms = {planned.run.path.name: _norms(planned) for planned in runs.read_sweep(workdir)}
    measured = [row for row in rows if runs.family(row) in ("plain", "residual") and norms[row["run"]]]
    kinds = [{key: row[key] for key in ("run", "residual", "depth")} for row in summary.first_seeds(measured)]
    if kinds:
        runs.write_table(workdir, "gradients", [kind | norm for kind in kinds for norm in norms[kind["run"]]])
    return bool(kinds)


def _norms(planned):
    """A row for the stem and each block at each step at which a run has measured the gradient."""
    return [
        {"step": record["step"], "block": block, "norm": "" if norm is None else f"{norm:.4g}"}
        for record in planned.records()
        if record["split"] == "gradients"
        for block, norm in record["outputs"].items()
    ]


def draw(options, arguments):
    """Draws the figure of a sweep's gradients."""
    cli.refuse_config(options, "only the run directories")
    if not write(options.workdir, summary.summarize(options.workdir)):
        raise UserError(f"No run in {options.workdir} has measured its gradients; train with --config.train.gradients_every=100.")
    drawn = figure.draw(options.workdir)
    cli.print_paths("figure", drawn)
    cli.print_result({"figure": str(drawn)})


if __name__ == "__main__":
    cli.run_experiment(draw, {"workdir": "runs/cifar10_short"}, __doc__)
