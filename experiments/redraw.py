"""The figures of what has been measured, drawn again from its tables alone, without training.

In every folder of experiments/results, or in and under a given one:

    python -m experiments.redraw [--workdir=experiments/results/gradient_flow]
"""

from pathlib import Path

from plain56 import cli
from plain56.errors import UserError
from plain56.figures import costs, degradation, gradient_flow, landscape, lesions, responses, throughput, transfer

RESULTS = Path(__file__).parent / "results"
# By the table that a figure is drawn from.
FIGURES = {
    "curves.csv": degradation,
    "gradient_flow.csv": gradient_flow,
    "landscape.csv": landscape,
    "lesions.csv": lesions,
    "responses.csv": responses,
    "savings.csv": costs,
    "throughput.json": throughput,
    "transfer.csv": transfer,
}


def redraw(options, arguments):
    """Draws the figure of each table that is in or under the folder."""
    cli.refuse_config(options, "tables alone")
    tables = sorted(path for path in Path(options.workdir).rglob("*") if path.name in FIGURES)
    if not tables:
        raise UserError(f"{options.workdir} has no table of a figure: none of {', '.join(FIGURES)}.")
    for table in tables:
        FIGURES[table.name].draw(table.parent)
    cli.print_result({"redrawn": [str(table) for table in tables]})


if __name__ == "__main__":
    cli.run_experiment(redraw, {"workdir": RESULTS}, __doc__)
