"""The gradient at initialisation: plain and residual networks of several depths, with and without batch norm.

Measures the norm of the gradient of one batch's loss at every block, draws it against depth, and prints by which factor it grows
with each block on its way back to the images:

    python -m experiments.gradient_flow [--workdir=runs/gradient_flow] [--config.sweep.depths='(20,56)']

With --config=configs/sweeps/degradation.py:cifar10 on CIFAR-10. Plain networks' gradients have "healthy norms with BN", say
He et al. 2015, section 4.1, and leave open why these networks train slowly.
"""

import copy
import json
import statistics
from pathlib import Path

import launch
from configs.sweeps import degradation
from plain56 import runs
from plain56.figures import gradient_flow

DEFAULTS = {
    "config": "configs/sweeps/degradation.py",
    "config.sweep.depths": "(20,56,110,152)",
    "config.sweep.seeds": "(0,1,2)",
    "workdir": "runs/gradient_flow",
}


def measure(config):
    """Rows for the initial network that a config describes: one for the stem and each block."""
    from plain56 import training
    from plain56.models import parse_name

    config = copy.deepcopy(config)
    config.train.gradients_every = 1
    experiment = training.prepare(config)
    state, _ = experiment.initial
    flow = experiment.gradients(state.params, state.batch_stats)
    family, depth = parse_name(config.model.name)
    network = {"network": config.model.name, "depth": depth, "residual": family == "resnet"}
    network |= {"batch_norm": config.model.normalise is not False, "seed": config.seed}
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
        for normalise in (None, False):
            config = copy.deepcopy(element.config)
            config.model.normalise = normalise
            configs.append(config)
    rows = []
    with launch.progress() as show:
        for i, config in enumerate(configs):
            show(config.model.name, i / len(configs))
            rows += measure(config)
    workdir = Path(options.workdir)
    runs.write_table(workdir, "gradient_flow", rows)
    networks = gradient_flow.read(workdir)
    launch.print_table("gradient at initialisation", table(networks))
    print(json.dumps({"figures": [str(path) for path in gradient_flow.draw(workdir)]}))


def table(networks):
    """Means over seeds, and the range of the growth, as text by column; of `figures.gradient_flow.read`."""
    lines = []
    for (name, normalised), members in gradient_flow.by_kind(networks).items():
        growth = [network.growth for network in members]
        ends = [statistics.mean(network.norms[i] for network in members) for i in (-1, 0)]
        shares = [network.shares.mean() for network in members if len(network.shares)]
        lines.append(
            {
                "network": name,
                "batch norm": "yes" if normalised else "no",
                "growth per block": f"{statistics.mean(growth):.3f} ({min(growth):.3f} to {max(growth):.3f})",
                "norm at the last block": f"{ends[0]:.3g}",
                "norm at the stem": f"{ends[1]:.3g}",
                "through the shortcut": f"{100 * statistics.mean(shares):.0f} %" if shares else "–",
            }
        )
    return lines


if __name__ == "__main__":
    launch.run_experiment(measure_all, DEFAULTS, __doc__)
