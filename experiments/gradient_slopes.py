"""How fast the gradient grows at initialization with each block of a plain network, beside what mean-field theory expects.

For leaky ReLUs of several slopes and every normalization, at 56 layers, on one batch of the digits:

    python -m plain56.experiments.gradient_slopes [--workdir=runs/gradient_slopes]

In the theory, with ReLUs and batch norm the gradient grows by 1.467 with every block. It does not grow in linear networks, nor
in those that rely only on He's initialization (`figures/gradient_slopes.py` has the sources).
"""

import copy

from plain56 import cli, runs
from plain56.experiments.gradient_flow import initial_flow
from plain56.figures import gradient_flow, gradient_slopes

DEFAULTS = {"config": "configs/digits.py:plain56", "workdir": "runs/gradient_slopes"}
SLOPES = (0.0, 0.25, 0.5, 0.75, 1.0)
SEEDS = (0, 1, 2)


def measure_all(options, arguments):
    """Measures all networks, then draws the figure and prints the table."""
    from plain56 import machine

    machine.set_up()
    rows = []
    chosen = [(name, slope, seed) for name in gradient_slopes.NAMES for slope in SLOPES for seed in SEEDS]
    with cli.progress() as show:
        for number, (normalization, slope, seed) in enumerate(chosen):
            show(f"{normalization}, slope {slope}", number / len(chosen))
            config = copy.deepcopy(options.config)
            config.model.update(normalization=normalization, activation="leaky_relu", negative_slope=slope)
            config.seed = seed
            norms = list(initial_flow(config).outputs.values())
            row = {"normalization": normalization, "negative_slope": slope, "seed": seed}
            ends = {"first": f"{norms[0]:.5g}", "last": f"{norms[-1]:.5g}"}
            rows.append(row | ends | {"growth": f"{gradient_flow.growth(norms):.5f}"})
    runs.write_table(options.workdir, "slopes", rows)
    cli.print_table("growth of the gradient with each block", gradient_slopes.table(options.workdir))
    drawn = gradient_slopes.draw(options.workdir)
    cli.print_paths("figure", *drawn)
    cli.print_result({"figures": list(map(str, drawn))})


if __name__ == "__main__":
    cli.run_experiment(measure_all, DEFAULTS, __doc__)
