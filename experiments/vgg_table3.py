"""VGG's configurations A to E beside the paper's errors: Simonyan & Zisserman 2014, Table 3, single-scale evaluation.

Trains all of them, and tests each at one scale by the paper's dense evaluation. By default on the digits, whose 8×8 pixels take
the place of 224×224, and without the paper's warm start of the deeper networks:

    python -m plain56.experiments.vgg_table3 [--config=configs/sweeps/vgg.py:imagenet] [--workdir=runs/vgg]
"""

from pathlib import Path

from plain56 import cli, runs

# Table 3: the test scale, and top-1 and top-5 error (%) on ImageNet's validation images, by configuration and training scale.
PAPER = {
    "A-256": (256, 29.6, 10.4),
    "A-LRN-256": (256, 29.7, 10.5),
    "B-256": (256, 28.7, 9.9),
    "C-256": (256, 28.1, 9.4),
    "C-384": (384, 28.1, 9.3),
    "C-256-512": (384, 27.3, 8.8),
    "D-256": (256, 27.0, 8.8),
    "D-384": (384, 26.8, 8.7),
    "D-256-512": (384, 25.6, 8.1),
    "E-256": (256, 27.3, 9.0),
    "E-384": (384, 26.9, 8.7),
    "E-256-512": (384, 25.5, 8.0),
}


def compare(options, arguments):
    """Runs the sweep, tests its networks densely and prints the table."""
    from plain56 import training

    cli.run_sweep(options)
    lines = []
    for run, *_ in runs.read_sweep(options.workdir):
        name = run.path.name
        side, top1_error, top5_error = PAPER.get(name, (256 if name.endswith("-256") else 384, "–", "–"))
        line = {"run": name, "test scale": side}
        if run.status().state in runs.COMPLETE:
            size = run.environment()["data"]["image_shape"][0]
            tested = training.evaluate_run(run.path, protocol="dense", sides=(round(side * size / 224),))
            line |= {"top-1": f"{100 * tested['top1_error']:.1f}", "top-5": f"{100 * tested['top5_error']:.1f}"}
        else:
            line |= {"top-1": run.status().state, "top-5": "–"}
        lines.append(line | {"paper's top-1, ImageNet": top1_error, "paper's top-5": top5_error})
    cli.print_table("test error (%)", lines)
    runs.write_table(Path(options.workdir), "vgg_table3", lines)
    cli.print_result({"table": lines})
    return cli.FAILED if any(run.status().state not in runs.COMPLETE for run, *_ in runs.read_sweep(options.workdir)) else 0


if __name__ == "__main__":
    cli.run_experiment(compare, {"config": "configs/sweeps/vgg.py", "workdir": "runs/vgg"}, __doc__)
