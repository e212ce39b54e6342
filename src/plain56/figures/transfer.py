"""Test error against the number of examples per class: from scratch, linear probe, fine-tuning."""

import numpy as np

from plain56 import runs
from plain56.figures.style import canvas, mean_and_range, name_lines, palette, save, styled

APPROACHES = {"scratch": "from scratch", "probe": "linear probe", "finetune": "fine-tuning"}


def read(folder):
    """Test errors in percent of all seeds, `{(approach, examples per class): errors}`, from the folder's transfer.csv."""
    groups = runs.grouped(runs.read_table(folder, "transfer"), lambda row: (row["approach"], int(row["examples_per_class"])))
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
    figure = canvas(6.4, 4.2, "Few examples: from scratch, linear probe, fine-tuning", "Test error. Bars: range over seeds.")
    axis = figure.subplots()
    ends = {}
    for (approach, title), color, marker in zip(APPROACHES.items(), palette().categories, "so^", strict=False):
        errors = [of_each[approach, count] for count in counts]
        means, spread = mean_and_range(errors)
        axis.errorbar(counts, means, spread, color=color, marker=marker, markersize=5, linewidth=1.8)
        ends[title] = counts[-1], means[-1]
    axis.set(xlabel="training examples per class", ylabel="test error (%)", xscale="log", ylim=(0, None))
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    name_lines(axis, ends, palette().categories[: len(ends)])
    return save(figure, folder, "transfer")
