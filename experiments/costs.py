"""What the architectures cost: test error against multiply-adds, parameters and time, and what two ideas save.

Reads only the run directories of a sweep, such as that of configs/sweeps/landmarks.py. Without a sweep it draws only what
GoogLeNet's 1×1 reductions and VGG's stacks of 3×3 convolutions save at 224 pixels:

    python -m plain56.experiments.costs [--workdir=runs/landmarks]
"""

import sys
from pathlib import Path

from plain56 import cli, runs
from plain56.figures import costs as figure
from plain56.summary import summarize


def costs_of(workdir):
    """A row for each finished or stopped run of a sweep."""
    from plain56.analysis import complexity
    from plain56.config import build_model, from_json

    rows, summary = [], summarize(workdir)
    keys = runs.group_keys(summary)
    for row in summary:
        if row["state"] in runs.COMPLETE and row["test_error"] is not None:
            run = runs.Run(Path(workdir) / row["run"])
            data = run.environment()["data"]
            model = build_model(from_json(run.config()), len(data["class_names"]))
            total = complexity.total(complexity.parts(model, tuple(data["image_shape"])))
            kept = {key: row[key] for key in ("run", "model", "seed", "steps", "train_error", "test_error", "seconds")}
            kept["model"] = ", ".join(filter(None, (row["model"], runs.label(row, keys))))
            rows.append(kept | {"multiply_adds": total.multiply_adds, "parameters": total.parameters})
    return rows


def measure(options, arguments):
    """Writes costs.csv and savings.csv, and draws the figures."""
    from plain56.analysis import complexity, savings
    from plain56.models import create_model

    cli.refuse_config(options, "only the run directories")
    saved = []
    for name in ("googlenet", "vgg16"):
        model = create_model(name, 1000)
        found = savings.savings(model, (224, 224, 3), complexity.parts(model, (224, 224, 3)))
        saved += [{"network": name, **saving._asdict()} for saving in found]
    runs.write_table(options.workdir, "savings", saved)
    rows = costs_of(options.workdir) if runs.is_sweep(options.workdir) else []
    if rows:
        runs.write_table(options.workdir, "costs", rows)
        cli.print_table("cost", figure.table(options.workdir))
    else:
        print(f"{options.workdir} has no finished run of a sweep, so only what the ideas save is drawn.", file=sys.stderr)
    drawn = figure.draw(options.workdir)
    cli.print_paths("figure", *drawn)
    cli.print_result({"figures": list(map(str, drawn))})


if __name__ == "__main__":
    cli.run_experiment(measure, {"workdir": "runs/landmarks"}, __doc__)
