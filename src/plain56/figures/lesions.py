"""Test error of damaged networks: without one block, without several, and with two neighbors swapped."""

import numpy as np
from matplotlib.figure import Figure

from plain56 import runs
from plain56.figures.style import COLORS, grouped, networks, save, styled

LESIONS = {"without": "one block left out", "swapped": "swapped with the next block", "several": "several left out"}


def _read(folder):
    """The networks, each with its test errors in percent: `{lesion: [(place, number of blocks, error)]}`."""
    read = []
    for network in networks(runs.read_table(folder, "lesions")):
        by_lesion = grouped(network.rows, lambda row: row["lesion"])
        errors = {
            lesion: [(int(r["position"]), len(r["blocks"].split()), 100 * float(r["top1_error"])) for r in rows]
            for lesion, rows in by_lesion.items()
        }
        read.append((network, errors))
    return read


def table(folder):
    """The median and the worst error of each lesion, as text by column, from the folder's lesions.csv."""
    lines = []
    for network, found in _read(folder):
        line = {"run": network.rows[0]["run"], "undamaged": f"{found['none'][0][-1]:.1f}"}
        for lesion in ("without", "swapped"):
            values = [error for *_, error in found.get(lesion, [])]
            line[LESIONS[lesion]] = f"median {np.median(values):.1f}, worst {max(values):.1f}" if values else "–"
        lines.append(line)
    return lines


@styled
def draw(folder):
    """Draws lesions.png and .svg from the folder's lesions.csv, and returns the path of the PNG."""
    read = _read(folder)
    depths = sorted({network.depth for network, _ in read})
    unique = len({(network.residual, network.depth) for network, _ in read}) == len(read)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for network, found in read:
        # A depth's two networks have neighboring colors.
        color = COLORS[(2 * depths.index(network.depth) + (not network.residual)) % len(COLORS)] if unique else network.color
        marker = "o" if network.residual else "s"
        for axis, lesion in zip(axes, ("without", "swapped"), strict=False):
            values = found.get(lesion, [])
            axis.plot([place for place, *_ in values], [error for *_, error in values], marker, ms=4, color=color)
        axes[2].plot([], [], marker, color=color, label=network.title)
        several = grouped(found.get("several", []), lambda lesion: lesion[1])
        if several:
            errors_of = [[error for *_, error in drawn] for drawn in several.values()]
            axes[2].plot(list(several), [np.mean(values) for values in errors_of], color=color)
            low, high = zip(*((min(values), max(values)) for values in errors_of), strict=True)
            axes[2].fill_between(list(several), low, high, color=color, alpha=0.2, linewidth=0)
        for axis in axes:
            axis.axhline(found["none"][0][-1], color=color, linewidth=1, linestyle="--")
    for axis, title in zip(axes, LESIONS.values(), strict=True):
        axis.set(title=title, ylim=(0, 100))
    axes[0].set(ylabel="test error (%)", xlabel="block")
    axes[1].set(xlabel="block")
    axes[2].set(xlabel="number of blocks left out, drawn at random")
    axes[2].plot([], [], color="0.4", linestyle="--", linewidth=1, label="undamaged")
    axes[2].legend(frameon=False, loc="lower right")
    return save(figure, folder, "lesions")
