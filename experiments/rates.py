"""How does the best learning rate change with depth? From the atlas's grid, a line for each repair.

    python -m plain56.experiments.rates [--workdir=experiments/results/atlas]

Trains nothing: it reads grid.csv of a directory of `experiments.repairs`. For residual networks the claims are that rates fall as
layers^(−3/2) (arXiv 2510.04327), and that they stay the same where branches are scaled by 1/√blocks (Bordelon et al. 2023).
"""

from pathlib import Path

from plain56 import cli
from plain56.experiments.repairs import KEPT
from plain56.figures import rates


def show(options, arguments):
    """Prints the best rates and their exponents, and draws the figure."""
    cli.refuse_config(options, "only tables")
    folder = Path(options.workdir)
    table = rates.table(folder)
    cli.print_table("best learning rate by depth, and the exponent of the depth", table)
    drawn = rates.draw(folder)
    cli.print_paths("figure", drawn)
    cli.print_result({"table": table, "figure": str(drawn)})


if __name__ == "__main__":
    cli.run_experiment(show, {"workdir": KEPT}, __doc__)
