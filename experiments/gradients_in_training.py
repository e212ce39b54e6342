"""The gradient's norm at every block, from the first step of training to the last: what skip connections do while networks learn.

Reads only the run directories of a sweep whose runs were trained with `train.gradients_every`. Writes gradients.csv, with the
norms of the first seed of each network, and draws the figure from it:

    python -m plain56.experiments.gradients_in_training [--workdir=runs/cifar10_short]
"""

from plain56 import cli, runs, summary
from plain56.errors import UserError
from plain56.figures import gradients_in_training as figure


def write(workdir):
    """Writes gradients.csv, if a run has measured gradients, and returns whether one has."""
    rows = [row for row in summary.summarize(workdir) if row["depth"] is not None and row["state"] != "damaged"]
    first, records = min((row["seed"] for row in rows), default=0), []
    for row in rows:
        if row["seed"] == first:
            records += [{"run": row["run"], **norm} for norm in _norms(runs.Run(runs.user_path(workdir) / row["run"]))]
    if records:
        runs.write_table(workdir, "gradients", records)
    return bool(records)


def _norms(run):
    """A row for the stem and each block at each step at which a run has measured the gradient."""
    return [
        {"step": record["step"], "block": block, "norm": "" if norm is None else f"{norm:.4g}"}
        for record in run.metrics()
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
