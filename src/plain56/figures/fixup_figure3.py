"""Test accuracy after one epoch against depth, a line for each way to begin a residual network."""

import statistics

from plain56 import runs
from plain56.figures.style import canvas, name_lines, palette, save, styled

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
    means = {method: {depth: statistics.mean(values) for depth, values in sorted(own.items())} for method, own in found.items()}
    figure = canvas(7.2, 4.4, "Test accuracy after one epoch", "Residual networks on CIFAR-10 at the rate of 0.1")
    axis = figure.subplots()
    colors = palette().categories[: len(means)]
    for own, color in zip(means.values(), colors, strict=True):
        axis.plot(list(own), list(own.values()), marker="o", markersize=5, color=color, linewidth=1.8)
    axis.axhline(GUESSING, color=palette().muted, linestyle=":", linewidth=1)
    axis.set_xticks(sorted({depth for own in means.values() for depth in own}))
    axis.set(xlabel="layers", ylabel="test accuracy (%)", ylim=(0, None))
    name_lines(axis, {method: list(own.items())[-1] for method, own in means.items()}, colors)
    return save(figure, folder, "fixup_figure3")
