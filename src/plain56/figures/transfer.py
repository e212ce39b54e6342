"""Test error against the number of examples per class: from scratch, linear probe, fine-tuning."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from plain56 import runs
from plain56.figures.degradation import COLOURS, STYLE, save

APPROACHES = {"scratch": "from scratch", "probe": "linear probe", "finetune": "fine-tuning"}


def read(workdir):
    """A row for each run of a sweep over approaches that is finished: approach, examples per class, seed, errors (fractions)."""
    rows = []
    for run, overrides in runs.read_networks(workdir):
        probe, weights = overrides.get("transfer.probe"), overrides.get("transfer.weights")
        last = {record["split"]: record["top1_error"] for record in run.metrics() if "top1_error" in record}
        status = run.status()
        if status.state == "finished":
            rows.append(
                {
                    "approach": "probe" if probe else "finetune" if weights else "scratch",
                    "examples_per_class": overrides["data.examples_per_class"],
                    "seed": overrides["seed"],
                    "train_error": last["train"],
                    "test_error": last["test"],
                    "steps": status.step,
                    "seconds": status.seconds,
                }
            )
    return rows


def _errors(rows, approach, count):
    """Test errors in percent of all seeds."""
    return [100 * row["test_error"] for row in rows if (row["approach"], row["examples_per_class"]) == (approach, count)]


def table(rows):
    """Mean and range of the test errors, a row for each approach, as text by column."""
    counts = sorted({row["examples_per_class"] for row in rows})
    lines = []
    for approach, title in APPROACHES.items():
        cells = {f"{count} per class": _errors(rows, approach, count) for count in counts}
        lines.append(
            {"": title, **{key: f"{np.mean(v):.1f} ({min(v):.1f} to {max(v):.1f})" if v else "–" for key, v in cells.items()}}
        )
    return lines


def draw(rows, folder):
    """Draws transfer.png and transfer.svg in a folder from rows of `read`, and returns the path of the PNG."""
    counts = sorted({row["examples_per_class"] for row in rows})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.6), layout="constrained")
        axis = figure.subplots()
        for (approach, title), colour, marker in zip(APPROACHES.items(), COLOURS, "so^", strict=False):
            errors = [_errors(rows, approach, count) for count in counts]
            means = np.array([np.mean(values) for values in errors])
            spread = np.maximum(0, [means - [min(values) for values in errors], [max(values) for values in errors] - means])
            axis.errorbar(counts, means, spread, label=title, color=colour, marker=marker, markersize=5, capsize=3)
        axis.set(xlabel="training examples per class", ylabel="test error (%)", xscale="log", ylim=(0, None))
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.legend(frameon=False)
        return save(figure, Path(folder), "transfer")
