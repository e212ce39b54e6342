"""The gradient at initialization: plain and residual networks of several depths, with and without batch norm.

Measures the norm of the gradient of one batch's loss at every block, draws it against depth, and prints the factor by which it
grows with each block on its way back to the images:

    python -m plain56.experiments.gradient_flow [--workdir=runs/gradient_flow] [--config.sweep.depths='(20,56)']

--config=configs/sweeps/degradation.py:cifar10 measures on CIFAR-10. He et al. 2015, section 4.1, say that the gradients of plain
networks have "healthy norms with BN", and leave open why these networks train slowly.
"""

import copy

from plain56 import cli, runs
from plain56.configs.sweeps import degradation
from plain56.figures import gradient_flow

DEFAULTS = {
    "config": "configs/sweeps/degradation.py",
    "config.sweep.depths": "(20,56,110,152)",
    "config.sweep.seeds": "(0,1,2)",
    "workdir": "runs/gradient_flow",
}


def initial_flow(config):
    """The `analysis.gradients.Flow` of the initial network of a config."""
    from plain56 import training

    program = training.prepare(config)
    state, _ = program.initial
    return program.gradients(state.params, state.batch_stats)


def measure(config):
    """Rows for the initial network of a config: one for the stem and each block."""
    from plain56.models import parse_name

    flow = initial_flow(config)
    family, depth = parse_name(config.model.name)
    network = {"network": config.model.name, "depth": depth, "residual": family == "resnet"}
    network |= {"normalization": config.model.normalization or "batch", "seed": config.seed}
    parts = {"shortcut_norm": flow.shortcuts, "branch_norm": flow.branches, "shortcut_share": flow.shortcut_shares}
    return [
        {**network, "block": block, "norm": f"{norm:.5g}"}
        | {key: f"{values[block]:.5g}" if block in values else "" for key, values in parts.items()}
        for block, norm in flow.outputs.items()
    ]


def measure_all(options, arguments):
    """Measures all networks of the sweep, then draws the figures and prints the table."""
    from plain56 import machine, sweeps

    machine.set_up()
    configs = []
    for element in sweeps.expand(options.config, degradation.sweep):
        for normalization in ("batch", "none"):
            config = copy.deepcopy(element.config)
            config.model.normalization = normalization
            configs.append(config)
    rows = []
    with cli.progress() as show:
        for i, config in enumerate(configs):
            show(config.model.name, i / len(configs))
            rows += measure(config)
    runs.write_table(options.workdir, "gradient_flow", rows)
    cli.print_table("gradient at initialization", gradient_flow.table(options.workdir))
    drawn = gradient_flow.draw(options.workdir)
    cli.print_paths("figure", *drawn)
    cli.print_result({"figures": list(map(str, drawn))})


if __name__ == "__main__":
    cli.run_experiment(measure_all, DEFAULTS, __doc__)
