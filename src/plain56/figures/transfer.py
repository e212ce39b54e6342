"""Test error against the number of examples per class: from scratch, linear probe, fine-tuning."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from plain56 import runs
from plain56.figures.degradation import COLOURS, STYLE, save

APPROACHES = {"scratch": "from scratch", "probe": "linear probe", "finetune": "fine-tuning"}


def read(folder):
    """Test errors in percent of all seeds, `{(approach, examples per class): errors}`, from the folder's transfer.csv."""
    errors = {}
    for row in runs.read_table(folder, "transfer"):
        key = row["approach"], int(row["examples_per_class"])
        errors.setdefault(key, []).append(100 * float(row["test_error"]))
    return errors


def table(folder):
    """Mean and range of the test errors, a row for each approach, as text by column, from the folder's transfer.csv."""
    errors = read(folder)
    counts = sorted({count for _, count in errors})
    lines = []
    for approach, title in APPROACHES.items():
        cells = {f"{count} per class": errors.get((approach, count), []) for count in counts}
        lines.append(
            {"": title, **{key: f"{np.mean(v):.1f} ({min(v):.1f} to {max(v):.1f})" if v else "–" for key, v in cells.items()}}
        )
    return lines


def draw(folder):
    """Draws transfer.png and transfer.svg from the folder's transfer.csv, and returns the path of the PNG."""
    of_each = read(folder)
    counts = sorted({count for _, count in of_each})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.6), layout="constrained")
        axis = figure.subplots()
        for (approach, title), colour, marker in zip(APPROACHES.items(), COLOURS, "so^", strict=False):
            errors = [of_each[approach, count] for count in counts]
            means = np.array([np.mean(values) for values in errors])
            spread = np.maximum(0, [means - [min(values) for values in errors], [max(values) for values in errors] - means])
            axis.errorbar(counts, means, spread, label=title, color=colour, marker=marker, markersize=5, capsize=3)
        axis.set(xlabel="training examples per class", ylabel="test error (%)", xscale="log", ylim=(0, None))
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.legend(frameon=False)
        return save(figure, Path(folder), "transfer")
