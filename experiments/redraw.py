"""Draws the figures of what has been measured again, only from the tables, without training.

In every folder of experiments/results, or in and under another folder:

    python -m plain56.experiments.redraw [--workdir=experiments/results/gradient_flow]
"""

from pathlib import Path

from plain56 import cli
from plain56.errors import UserError
from plain56.figures import (
    costs,
    degradation,
    fixup_figure3,
    gradient_flow,
    gradient_slopes,
    gradients_in_training,
    growth,
    landscape,
    lesions,
    optimizers,
    rates,
    repairs,
    responses,
    throughput,
    transfer,
)

RESULTS = Path(__file__).parent / "results"
FIGURES = {  # by the table that each is drawn from
    "curves.csv": (degradation,),
    "first_epoch.csv": (fixup_figure3,),
    "gradient_flow.csv": (gradient_flow,),
    "gradients.csv": (gradients_in_training,),
    "grid.csv": (optimizers, rates),
    "growth.csv": (growth,),
    "landscape.csv": (landscape,),
    "lesions.csv": (lesions,),
    "responses.csv": (responses,),
    "runs.csv": (repairs,),
    "savings.csv": (costs,),
    "slopes.csv": (gradient_slopes,),
    "throughput.json": (throughput,),
    "transfer.csv": (transfer,),
}


def redraw(options, arguments):
    """Draws the figure of each table in or under the folder."""
    cli.refuse_config(options, "only tables")
    tables = sorted(path for path in Path(options.workdir).rglob("*") if path.name in FIGURES)
    if not tables:
        raise UserError(f"{options.workdir} has no table of a figure; it must have one of {', '.join(FIGURES)}.")
    for table in tables:
        for figure in FIGURES[table.name]:
            figure.draw(table.parent)
    cli.print_paths("redrawn from", *tables)
    cli.print_result({"redrawn": [str(table) for table in tables]})


if __name__ == "__main__":
    cli.run_experiment(redraw, {"workdir": RESULTS}, __doc__)
