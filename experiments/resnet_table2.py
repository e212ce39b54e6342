"""Plain and residual networks of 18 and 34 layers in the ImageNet form: He et al. 2015, Table 2 and Fig. 4.

Runs the sweep, draws the figure and prints the errors beside the paper's. By default on the digits, at 32 pixels and for 200
steps; on ImageNet as in the paper:

    python -m plain56.experiments.resnet_table2 [--config=configs/sweeps/degradation.py:imagenet] [--workdir=runs/resnet_table2]

The paper tests ten crops of ImageNet's validation images, as does `plain56 evaluate --protocol=ten_crop`.
"""

from plain56 import cli, runs

DEFAULTS = {
    "config": "configs/sweeps/degradation.py",
    "config.sweep.form": "imagenet",
    "config.sweep.depths": "(18,34)",
    "config.data.image_size": 32,
    "config.train.batch_size": 64,
    "config.train.steps": 200,
    "config.optimizer.schedule.warmup_steps": 20,
    "workdir": "runs/resnet_table2",
}
# Table 2: top-1 error (%) on ImageNet's validation images with ten crops, by layers.
PAPER = {"plain": {18: 27.94, 34: 28.54}, "resnet": {18: 27.88, 34: 25.03}}


def compare(options, arguments):
    """Runs the sweep, draws the figure and prints the table."""
    rows = cli.run_sweep(options)
    figure = cli.draw_degradation(options.workdir)
    shown = [row for row in rows if runs.family(row) in ("plain", "residual")]
    lines, keys = [], runs.group_keys(shown)
    groups = runs.grouped(shown, lambda row: (row["depth"], *(row[key] for key in keys)))
    for (depth, *_), members in sorted(groups.items(), key=lambda group: group[0][0]):
        line = {"layers": depth, **({"overrides": runs.label(members[0], keys)} if keys else {})}
        for family, published in PAPER.items():
            of_family = [row for row in members if row["model"] == f"{family}{depth}"]
            errors = [row["test_error"] for row in of_family if row["test_error"] is not None]
            line[family] = f"{100 * sum(errors) / len(errors):.2f}" if errors else "–"
            line[f"{family}, paper on ImageNet"] = published.get(depth, "–")
        lines.append(line)
    cli.print_table("test error (%)", lines)
    cli.print_paths("figure", figure)
    cli.print_result({"figure": figure, "table": lines})
    return cli.FAILED if any(row["state"] not in runs.COMPLETE for row in rows) else 0


if __name__ == "__main__":
    cli.run_experiment(compare, DEFAULTS, __doc__)
