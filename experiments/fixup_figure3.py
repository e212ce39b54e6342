"""Test accuracy after one epoch of CIFAR-10 by depth, without batch norm and with it: Zhang, Dauphin & Ma 2019, Fig. 3.

Trains residual networks for one epoch at the rate that batch norm allows. CIFAR-10 must have been prepared for TFDS:

    TFDS_DATA_DIR=FOLDER python -m plain56.experiments.fixup_figure3 [--workdir=runs/fixup_figure3]
"""

from plain56 import cli, runs
from plain56.configs.sweeps.fixup_figure3 import runs_of
from plain56.figures import fixup_figure3 as figure

DEFAULTS = {"config": "configs/sweeps/fixup_figure3.py", "workdir": "runs/fixup_figure3"}


def compare(options, arguments):
    """Runs the sweep, writes first_epoch.csv, prints the table and draws the figure."""
    summary = {row["run"]: row for row in cli.run_sweep(options)}
    rows = [
        {"method": method, "depth": depth, "seed": seed} | {key: summary[name][key] for key in ("state", "steps", "test_error")}
        for name, (method, depth, seed) in runs_of(options.config).items()
    ]
    runs.write_table(options.workdir, "first_epoch", rows)
    cli.print_table("test accuracy after one epoch (%)", figure.table(options.workdir))
    drawn = figure.draw(options.workdir)
    cli.print_paths("figure", drawn)
    cli.print_result({"figure": str(drawn)})
    return 0 if all(row["state"] in (*runs.COMPLETE, *runs.ENDED) for row in rows) else cli.FAILED


if __name__ == "__main__":
    cli.run_experiment(compare, DEFAULTS, __doc__)
