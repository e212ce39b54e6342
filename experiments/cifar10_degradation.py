"""The degradation result on real images: plain and residual networks of 20 to 152 layers on CIFAR-10, and what is kept of them.

CIFAR-10 must have been prepared for TFDS. In few steps on two cores:

    TFDS_DATA_DIR=FOLDER python -m plain56.experiments.cifar10_degradation [--workdir=runs/cifar10_short]

With the paper's recipe on a GPU, these flags are added: --config=configs/sweeps/degradation.py:cifar10
--config.sweep.depths='(56,20,110,152)' --config.sweep.seeds='(0,1,2,3,4)' --config.model.dtype=bfloat16
--config.train.log_every=500 --config.train.steps_per_call=500 --workers=4 --workdir=runs/cifar10

Networks are trained by seed, and then in the order of the depths, so that it may be ended at any time, for example by
`timeout 50m`: the same command goes on from the last checkpoints. When it ends or is interrupted, it writes the results to the
directory: summary.csv, curves.csv, with `train.gradients_every` gradients.csv, the figure of `resnet_table6`, and in float16 the
finished networks of the first seed, as weights/RUN.safetensors.
"""

from pathlib import Path

from plain56 import claim, cli, runs, summary
from plain56.experiments import gradients_in_training, resnet_table6

DEFAULTS = {"config": "configs/sweeps/degradation.py:cifar10_short", "workdir": "runs/cifar10_short"}


def keep_weights(workdir, rows):
    """Exports the finished networks of the first seed, except those that have been, and returns the files."""
    from plain56.pretrained import save_pretrained

    first = min((row["seed"] for row in rows if row["seed"] is not None), default=None)
    finished = [row["run"] for row in rows if (row["state"], row["seed"]) == ("finished", first)]
    files = [Path(workdir) / "weights" / f"{run}.safetensors" for run in finished]
    for run, file in zip(finished, files, strict=True):
        if not file.exists():
            save_pretrained(file, Path(workdir) / run, dtype="float16")
    return files


def keep(workdir):
    """Writes and prints what is kept of a sweep that has logged something, and returns the path of the figure, or None."""
    rows = summary.summarize(workdir)
    if all(row["train_error"] is None for row in rows):
        return None
    gradients_in_training.write(workdir, rows)
    _, figure = resnet_table6.draw(workdir)
    cli.print_paths("weights", *keep_weights(workdir, rows))
    return figure


def reproduce(options, arguments):
    """Runs the sweep, keeps its results and judges the claim.

    Returns the exit status: 1 if the claim did not hold, or a run has neither finished nor been stopped by `train.stop_after`.
    """
    try:
        rows = cli.run_sweep(options)
    except KeyboardInterrupt:
        if runs.is_sweep(options.workdir):
            keep(options.workdir)
        raise
    status = cli.print_claim(*claim.judge(rows), keep(options.workdir))
    return status if all(row["state"] in runs.COMPLETE for row in rows) else cli.FAILED


if __name__ == "__main__":
    cli.run_experiment(reproduce, DEFAULTS, f"{__doc__}\n{claim.RULE}")
