"""Is degradation an optimization problem? Training error by learning rate, a curve for each optimizer, from the atlas's grid.

    python -m plain56.experiments.optimizers [--workdir=experiments/results/atlas]

Trains nothing: it reads grid.csv of a directory of `experiments.repairs`, and says how much of the gap between plain and residual
networks, both trained by SGD at its best rate, the best optimizer closes at its own best rate.
"""

from pathlib import Path

from plain56 import cli
from plain56.experiments.repairs import KEPT
from plain56.figures import optimizers


def show(options, arguments):
    """Draws the figure and prints what share of the gap the best optimizer closes."""
    cli.refuse_config(options, "only tables")
    folder, shares = Path(options.workdir), {}
    for depth in sorted({depth for _, depth in optimizers.read(folder)}):
        share, name = optimizers.closed(folder, depth)
        shares[depth] = share
        print(f"{depth} layers: the best optimizer, {name}, closes {100 * share:.0f} % of the gap to residual networks.")
    drawn = optimizers.draw(folder)
    cli.print_paths("figure", drawn)
    cli.print_result({"closed": shares, "figure": str(drawn)})


if __name__ == "__main__":
    cli.run_experiment(show, {"workdir": KEPT}, __doc__)
