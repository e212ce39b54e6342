"""Test error of damaged networks: without one block, without several, and with two neighbors swapped."""

import numpy as np

from plain56 import runs
from plain56.figures.style import DASHED, canvas, name_lines, networks, save, styled

LESIONS = {"without": "one block left out", "swapped": "swapped with the next block", "several": "several left out"}


def _read(folder):
    """The networks, each with its test errors in percent: `{lesion: [(place, number of blocks, error)]}`."""
    read = []
    for network in networks(runs.read_table(folder, "lesions")):
        by_lesion = runs.grouped(network.rows, lambda row: row["lesion"])
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
    note = "Test error of trained networks. Bands: range over drawn blocks. Dashed: undamaged."
    figure = canvas(11, 4.4, "Trained networks without some of their blocks", note)
    axes = figure.subplots(1, 3, sharey=True)
    ends, colors = {}, []
    for network, found in read:
        marker, color = "o" if network.residual else "s", network.color
        for axis, lesion in zip(axes, ("without", "swapped"), strict=False):
            values = found.get(lesion, [])
            axis.plot([place for place, *_ in values], [error for *_, error in values], marker, ms=4, color=color)
        several = runs.grouped(found.get("several", []), lambda lesion: lesion[1])
        if several:
            errors_of = [[error for *_, error in drawn] for drawn in several.values()]
            axes[2].plot(list(several), [np.mean(values) for values in errors_of], color=color)
            low, high = zip(*((min(values), max(values)) for values in errors_of), strict=True)
            axes[2].fill_between(list(several), low, high, color=color, alpha=0.2, linewidth=0)
            ends[network.title] = max(several), np.mean(errors_of[-1])
            colors.append(color)
        for axis in axes:
            axis.axhline(found["none"][0][-1], color=color, linewidth=1, linestyle=DASHED)
    for axis, title in zip(axes, LESIONS.values(), strict=True):
        axis.set(title=f"{title[0].upper()}{title[1:]}", ylim=(0, 100), xlabel="block")
    axes[0].set_ylabel("test error (%)")
    axes[2].set_xlabel("number of blocks left out, drawn at random")
    name_lines(axes[2], ends, colors)
    return save(figure, folder, "lesions")
