"""Test error against the number of examples per class: from scratch, linear probe, fine-tuning."""

import numpy as np
from matplotlib.figure import Figure

from plain56 import runs
from plain56.figures.style import COLORS, grouped, mean_and_range, save, styled

APPROACHES = {"scratch": "from scratch", "probe": "linear probe", "finetune": "fine-tuning"}


def read(folder):
    """Test errors in percent of all seeds, `{(approach, examples per class): errors}`, from the folder's transfer.csv."""
    groups = grouped(runs.read_table(folder, "transfer"), lambda row: (row["approach"], int(row["examples_per_class"])))
    return {key: [100 * float(row["test_error"]) for row in rows] for key, rows in groups.items()}


def table(folder):
    """Mean and range of the test errors of each approach, as text by column, from the folder's transfer.csv."""
    errors = read(folder)
    counts = sorted({count for _, count in errors})
    lines = []
    for approach, title in APPROACHES.items():
        line = {"": title}
        for count in counts:
            v = errors.get((approach, count), [])
            line[f"{count} per class"] = f"{np.mean(v):.1f} ({min(v):.1f} to {max(v):.1f})" if v else "–"
        lines.append(line)
    return lines


@styled
def draw(folder):
    """Draws transfer.png and .svg from the folder's transfer.csv, and returns the path of the PNG."""
    of_each = read(folder)
    counts = sorted({count for _, count in of_each})
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for (approach, title), color, marker in zip(APPROACHES.items(), COLORS, "so^", strict=False):
        errors = [of_each[approach, count] for count in counts]
        means, spread = mean_and_range(errors)
        axis.errorbar(counts, means, spread, label=title, color=color, marker=marker, markersize=5, capsize=3)
    axis.set(xlabel="training examples per class", ylabel="test error (%)", xscale="log", ylim=(0, None))
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.legend(frameon=False)
    return save(figure, folder, "transfer")
