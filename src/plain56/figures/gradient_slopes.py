"""How fast the gradient of a plain network grows at initialization, by its activation's slope and its normalization."""

import math

import numpy as np

from plain56 import runs
from plain56.figures.style import DASHED, canvas, mean_and_range, name_lines, palette, save, styled

NAMES = {"batch": "batch norm", "group": "group norm", "layer": "layer norm", "none": "no norm"}


def expected_growth(slope, normalization):
    """What mean-field theory expects of wide fully-connected networks, for each block of two layers; None where it says nothing.

    With batch norm: Yang et al. 2019, "A mean field theory of batch normalization", π / (π − 1) for ReLUs; for other slopes by
    the same argument, the second moment of an activation over its variance. Without, and with layer norm, He's
    initialization keeps the gradient's size. `slope` is that for negative values.
    """
    if normalization == "group":
        return None
    if normalization != "batch":
        return 1.0
    second_moment, mean = (1 + slope**2) / 2, (1 - slope) / math.sqrt(2 * math.pi)
    return second_moment / (second_moment - mean**2)


def _by_normalization(folder):
    """Growth of all seeds, by normalization and slope, from the folder's slopes.csv."""
    rows = runs.read_table(folder, "slopes")
    return {
        normalization: {slope: [float(row["growth"]) for row in own] for slope, own in _by_slope(members).items()}
        for normalization, members in runs.grouped(rows, lambda row: row["normalization"]).items()
    }


def _by_slope(rows):
    return runs.grouped(rows, lambda row: float(row["negative_slope"]))


def table(folder):
    """Means over seeds with the range, and the theory, as text by column, from the folder's slopes.csv."""
    lines = []
    for normalization, slopes in _by_normalization(folder).items():
        for slope, growth in slopes.items():
            expected = expected_growth(slope, normalization)
            lines.append(
                {
                    "normalization": normalization,
                    "negative slope": f"{slope:g}",
                    "growth per block": f"{np.mean(growth):.3f} ({min(growth):.3f} to {max(growth):.3f})",
                    "theory": "–" if expected is None else f"{expected:.3f}",
                }
            )
    return lines


@styled
def draw(folder):
    """Draws slopes.png and .svg from the folder's slopes.csv; returns the PNG's path."""
    title = "How fast the gradient grows, by slope and normalization"
    figure = canvas(7.2, 4.4, title, "Initial plain-56 on digits. Bars: range over seeds. Dashed: mean-field theory.")
    axis = figure.subplots()
    measured = _by_normalization(folder)
    for slopes, color in zip(measured.values(), palette().categories, strict=False):
        means, ranges = mean_and_range(slopes.values())
        axis.errorbar(list(slopes), means, ranges, color=color, marker="o", markersize=4, linewidth=1.8)
    curve, dashed = np.linspace(0, 1, 101), {"color": palette().muted, "linestyle": DASHED, "linewidth": 1.1}
    axis.plot(curve, [expected_growth(slope, "batch") for slope in curve], **dashed)
    place = 0.06, expected_growth(0.06, "batch")
    axis.annotate("theory, batch norm", place, (6, 2), textcoords="offset points", color=palette().muted)
    axis.axhline(1, **dashed)
    axis.set(xlabel="slope for negative values", ylabel="growth of the gradient per block", xlim=(-0.03, 1.0))
    ends = {NAMES[name]: (1, np.mean(list(slopes.values())[-1])) for name, slopes in measured.items()}
    name_lines(axis, ends, palette().categories[: len(ends)])
    return [save(figure, folder, "slopes")]
