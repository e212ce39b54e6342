"""What all figures share: colors, line styles and words, reading their tables, and writing them."""

import io
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.lines import Line2D

from plain56 import runs

# Okabe and Ito's colors, which colorblind readers can tell apart, without the lightest one.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
FAMILIES = {False: "plain", True: "residual"}
SPLITS = {"train": "training", "test": "test"}
LINES = {"train": {"linestyle": "--", "linewidth": 1}, "test": {"linestyle": "-", "linewidth": 2}}  # as in Fig. 6
# Fonts stay text in the SVG, and its ids do not change from one drawing to the next.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "plain56", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
styled = matplotlib.rc_context(STYLE)  # decorates what draws a figure and saves it


def grouped(rows, key):
    """Lists of the rows by `key(row)`, in the order in which they come."""
    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def kind_of(row):
    """`(residual, depth)` of a table's row that was read from a file."""
    return row["residual"] == "True", int(row["depth"])


def name_of(kind):
    """The name of a kind `(residual, depth)` of network in legends."""
    residual, depth = kind
    return f"{FAMILIES[residual]}, {depth} layers"


class Measured(NamedTuple):
    """A network that a table has rows of, with its title in legends and its color."""

    title: str
    residual: bool
    depth: int
    color: str
    rows: list


def networks(rows):
    """The `Measured` networks of a table's rows that were read from a file, plain ones first, by depth.

    A network is known by its kind; where runs of different overrides have one kind, by its run, with a color for each.
    """
    found = sorted(grouped(rows, lambda row: (*kind_of(row), row["run"])).items())
    depths = color_by_depth(depth for (_, depth, _), _ in found)
    unique = len({kind[:2] for kind, _ in found}) == len(found)
    return [
        Measured(name_of((residual, depth)), residual, depth, depths[depth], members)
        if unique
        else Measured(run, residual, depth, COLORS[number % len(COLORS)], members)
        for number, ((residual, depth, run), members) in enumerate(found)
    ]


def color_by_depth(depths):
    """A color for each depth, in rising order."""
    return {depth: COLORS[i % len(COLORS)] for i, depth in enumerate(sorted(set(depths)))}


def depth_handles(colors):
    """The legend's handles for the colors of `color_by_depth`."""
    return [Line2D([], [], color=color, linewidth=2, label=f"{depth} layers") for depth, color in colors.items()]


def mean_and_range(groups):
    """Means of groups of values [N], and how far each group extends below and above its mean [2, N], for error bars."""
    means = np.array([np.mean(values) for values in groups])
    # A mean of equal values may differ from them in the last bit.
    return means, np.maximum(0, [means - [min(values) for values in groups], [max(values) for values in groups] - means])


def apart(values, distance):
    """Values moved as little as it takes, in their order, to be at least a distance apart: where labels of lines can stand."""
    order, placed = np.argsort(values, kind="stable"), np.array(values, float)
    for _ in range(100 * len(values)):
        gaps = np.diff(placed[order])
        if (gaps >= distance * (1 - 1e-6)).all():
            break
        for low, high, gap in zip(order, order[1:], gaps, strict=False):
            if gap < distance:
                middle = (placed[low] + placed[high]) / 2
                placed[low], placed[high] = middle - distance / 2, middle + distance / 2
    return placed


def name_lines(axis, lines, distance, colors=COLORS):
    """Writes names at the right ends of lines, `{name: (x of the end, y of the end)}`, at least a distance apart."""
    if not lines:
        return
    scaled = axis.get_yaxis().get_transform()
    ends = apart(scaled.transform([y for _, y in lines.values()]), distance)
    for (name, (x, _)), end, color in zip(lines.items(), scaled.inverted().transform(ends), colors, strict=False):
        axis.annotate(name, (x, end), (8, 0), textcoords="offset points", color=color, va="center", annotation_clip=False)


def save(figure, folder, name):
    """Writes a figure as SVG, PDF and PNG, and returns the path of the PNG. Raises UserError if one cannot be written."""
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": None}
    for suffix, metadata in undated.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix[1:], dpi=160, metadata=metadata)
        runs.write_bytes(Path(folder) / f"{name}{suffix}", drawn.getvalue())
    return Path(folder) / f"{name}.png"
