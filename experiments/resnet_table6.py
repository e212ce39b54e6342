"""Errors by depth beside the paper's: He et al. 2015, Table 6, and the plain networks of section 4.2.

Reads only a sweep over depths, for CIFAR-10 that of configs/sweeps/degradation.py:cifar10. With another data set, the paper's
errors are only a comparison:

    python -m plain56.experiments.resnet_table6 [--workdir=runs/degradation]

Writes curves.csv beside the sweep's summary.csv, and, of the full recipe, published.csv with the paper's errors, which the figure
shows. These files, in any folder, are enough for the same command to print the table and redraw the figure:

    python -m plain56.experiments.resnet_table6 --workdir=experiments/results/cifar10_degradation/full_recipe
"""

import statistics

from plain56 import cli, runs
from plain56.errors import UserError
from plain56.figures import degradation
from plain56.summary import summarize

SPLITS = {"train": "training error", "test": "test error"}
# Test error (%) on CIFAR-10 by layers. Five runs of 110 layers have 6.61 ± 0.16 (Table 6), plain-110 is "higher than 60 %".
PAPER = {20: "8.75", 32: "7.51", 44: "7.17", 56: "6.97", 110: "6.43 (best of five)", 1202: "7.93"}
PAPER_PLAIN = {110: "> 60"}
PAPER_STEPS = 64_000


def lines(rows):
    """Means ± standard deviations of last errors (%) in a sweep's summary, finished or not, by depth, family and overrides."""
    table, keys = [], runs.group_keys(rows)
    for depth in sorted({row["depth"] for row in rows}):
        for residual, published in ((False, PAPER_PLAIN), (True, PAPER)):
            found = [row for row in rows if (row["depth"], row["residual"]) == (depth, residual)]
            for members in runs.grouped(found, lambda row: (row["model"], *(row[key] for key in keys))).values():
                table.append(_line(members, runs.label(members[0], keys), published.get(depth, "–")))
    return table


def _line(members, overrides, published):
    """A line for runs that differ only in their seeds."""
    line = {"network": ", ".join(filter(None, (members[0]["model"], overrides))), "runs": str(len(members))}
    line["steps"] = " or ".join(f"{steps:,}" for steps in sorted({row["steps"] for row in members}))
    for split, title in SPLITS.items():
        errors = [100 * row[f"{split}_error"] for row in members if row[f"{split}_error"] is not None]
        deviation = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        line[title] = f"{statistics.mean(errors):.2f}{deviation}" if len(errors) == len(members) else "–"
    line["paper's test error"] = published
    line["parameters"] = " or ".join(f"{count:,}" for count in sorted({row["parameters"] for row in members}))
    return line


def _write_published(workdir):
    """Writes published.csv for a sweep that trains as long as the paper, on its data set."""
    configs = [config for _, config, _ in (planned.last_view() for planned in runs.read_sweep(workdir)) if config]
    if configs and all(config["data.name"] == "cifar10" and config["train.steps"] >= PAPER_STEPS for config in configs):
        errors = {depth: float(error.split()[0]) / 100 for depth, error in PAPER.items()}
        rows = [{"depth": depth, "residual": True, "test_error": error} for depth, error in errors.items()]
        runs.write_table(workdir, "published", rows)


def draw(workdir):
    """Writes the curves of a sweep, prints its errors and draws its figure, or does so from kept tables: `(lines, figure)`.

    The summary of a sweep must have been written.

    Raises UserError if no plain or residual network has been logged.
    """
    if runs.is_sweep(workdir):
        degradation.write_curves(workdir)
        _write_published(workdir)
    rows = [row for row, _ in degradation.read(workdir) if runs.family(row) in ("plain", "residual")]
    if not rows:
        raise UserError(f"{workdir} has no plain or residual network that has been logged.")
    table = lines(rows)
    cli.print_table("error (%), at the last step", table)
    return table, cli.draw_degradation(workdir)


def tabulate(options, arguments):
    """Prints the table, and draws the figure."""
    cli.refuse_config(options, "only the run directories")
    if runs.is_sweep(options.workdir):
        summarize(options.workdir)
    table, figure = draw(options.workdir)
    cli.print_paths("figure", figure)
    cli.print_result({"table": table, "figure": figure})


if __name__ == "__main__":
    cli.run_experiment(tabulate, {"workdir": "runs/degradation"}, __doc__)
