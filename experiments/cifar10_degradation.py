"""The degradation result on real images: plain and residual networks of 20 to 152 layers on CIFAR-10, and what is kept of them.

CIFAR-10 must have been prepared for TFDS. In few steps on two cores, or with the paper's recipe on a GPU:

    TFDS_DATA_DIR=FOLDER python -m plain56.experiments.cifar10_degradation [--workdir=runs/cifar10_short]
    TFDS_DATA_DIR=FOLDER python -m plain56.experiments.cifar10_degradation --config=configs/sweeps/degradation.py:cifar10 \\
        --config.sweep.depths='(56,20,110,152)' --config.sweep.seeds='(0,1,2,3,4)' --config.model.dtype=bfloat16 \\
        --config.train.log_every=500 --config.train.steps_per_call=500 --workers=4 --workdir=runs/cifar10

Networks are trained by seed, and then in the order of the depths, so that it may be ended at any time, for example by
`timeout 50m`: the same command goes on from the last checkpoints. At the end, also when it is ended, it writes to the directory
what is to be kept: summary.csv, curves.csv and gradients.csv, the figure of `resnet_table6`, and as weights/NAME.safetensors, in
float16, the finished networks of the first seed.
"""

from pathlib import Path

from plain56 import claim, cli, runs, summary
from plain56.experiments import gradients_in_training, resnet_table6

DEFAULTS = {"config": "configs/sweeps/degradation.py:cifar10_short", "workdir": "runs/cifar10_short"}


def keep_weights(workdir, rows):
    """Exports the finished networks of the first seed, except those that have been, and returns the files."""
    from plain56.pretrained import save_pretrained

    finished = [row for row in rows if row["state"] == "finished" and row["seed"] == min(row["seed"] for row in rows)]
    files = {row["run"]: Path(workdir) / "weights" / f"{row['model']}.safetensors" for row in finished}
    for run, file in files.items():
        if not file.exists():
            save_pretrained(file, Path(workdir) / run, dtype="float16")
    return list(files.values())


def reproduce(options, arguments):
    """Runs the sweep, keeps its results, and judges the claim; the exit status is 1 if it did not hold, or a run has failed."""
    workdir = options.workdir
    try:
        cli.run_sweep(options)
    finally:  # also what an interrupted sweep has made
        rows = summary.summarize(workdir) if runs.is_sweep(workdir) else []
        if any(row["steps"] for row in rows):
            weights = keep_weights(workdir, rows)
            gradients_in_training.write(workdir)
            options.config = None
            resnet_table6.tabulate(options, arguments)
            cli.print_paths("weights", *weights)
    status = cli.print_claim(*claim.judge(rows), None)
    return status if all(row["state"] in runs.COMPLETE for row in rows) else cli.FAILED


if __name__ == "__main__":
    cli.run_experiment(reproduce, DEFAULTS, f"{__doc__}\n{claim.RULE}")
