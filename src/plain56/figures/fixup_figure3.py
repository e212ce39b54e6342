"""Test accuracy after one epoch against depth, a line for each way to begin a residual network."""

import statistics

from matplotlib.figure import Figure

from plain56 import runs
from plain56.figures.style import COLORS, name_lines, save, styled

GUESSING = 10.0  # % accuracy with ten classes


def read(folder):
    """Accuracies in percent, `{method: {depth: [of each seed]}}`, from the folder's first_epoch.csv.

    A run that diverged counts as guessing.
    """
    found = {}
    for row in runs.read_table(folder, "first_epoch"):
        guesses = row["state"] == "diverged" or not row["test_error"]
        accuracy = GUESSING if guesses else 100 * (1 - float(row["test_error"]))
        found.setdefault(row["method"], {}).setdefault(int(row["depth"]), []).append(accuracy)
    return found


def table(folder):
    """Means over seeds as text, a line for each method."""
    return [
        {"method": method} | {f"{depth} layers": f"{statistics.mean(values):.1f}" for depth, values in sorted(of_depth.items())}
        for method, of_depth in read(folder).items()
    ]


@styled
def draw(folder):
    """Draws fixup_figure3.png and .svg from the folder's first_epoch.csv, and returns the PNG's path."""
    found = read(folder)
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axis = figure.subplots()
    means = {method: {depth: statistics.mean(values) for depth, values in sorted(own.items())} for method, own in found.items()}
    for own, color in zip(means.values(), COLORS, strict=False):
        axis.plot(list(own), list(own.values()), marker="o", markersize=4, color=color)
    name_lines(axis, {method: list(own.items())[-1] for method, own in means.items()}, 3.2)
    axis.axhline(GUESSING, color="0.6", linestyle=":", linewidth=1)
    axis.set_xticks(sorted({depth for own in means.values() for depth in own}))
    axis.set(xlabel="layers", ylabel="test accuracy after one epoch (%)", ylim=(0, None))
    return save(figure, folder, "fixup_figure3")
