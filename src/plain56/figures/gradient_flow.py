"""The norm of the gradient against depth, and how much of it comes through the shortcuts."""

import statistics
from typing import NamedTuple

import numpy as np

from plain56 import runs
from plain56.figures.palette import depth_colors
from plain56.figures.style import FAMILIES, canvas, kind_of, name_lines, name_mark, palette, save, styled


class Network(NamedTuple):
    """A network's gradient norms at the outputs of the stem and of each block, and their parts at each block's input."""

    name: str
    residual: bool
    depth: int
    normalization: str
    seed: int
    norms: np.ndarray
    shortcuts: np.ndarray  # as the next two, empty in plain networks
    branches: np.ndarray
    shares: np.ndarray

    @property
    def growth(self):
        return growth(self.norms)


def growth(norms):
    """The factor by which norms grow with each block on their way back, from a line fitted to their logarithm."""
    return float(np.exp(-np.polyfit(np.arange(len(norms)), np.log(norms), 1)[0]))


def read(folder):
    """The `Network`s of gradient_flow.csv, as `experiments.gradient_flow` writes it."""

    def key(row):
        return row["network"], *kind_of(row), row["normalization"], int(row["seed"])

    def column(rows, name):
        return np.array([float(row[name]) for row in rows if row[name]])

    names = ("norm", "shortcut_norm", "branch_norm", "shortcut_share")
    groups = runs.grouped(runs.read_table(folder, "gradient_flow"), key)
    return [Network(*network, *(column(rows, name) for name in names)) for network, rows in groups.items()]


def by_kind(networks):
    """The networks of all seeds, by name and normalization."""
    return runs.grouped(networks, lambda network: (network.name, network.normalization))


def table(folder):
    """Means over seeds, and the range of the growth, as text by column, from the folder's gradient_flow.csv."""
    lines = []
    for (name, normalization), members in by_kind(read(folder)).items():
        rates = [network.growth for network in members]
        ends = [statistics.mean(network.norms[i] for network in members) for i in (-1, 0)]
        shares = [network.shares.mean() for network in members if len(network.shares)]
        lines.append(
            {
                "network": name,
                "normalization": normalization,
                "growth per block": f"{statistics.mean(rates):.3f} ({min(rates):.3f} to {max(rates):.3f})",
                "norm at the last block": f"{ends[0]:.3g}",
                "norm at the stem": f"{ends[1]:.3g}",
                "through the shortcut": f"{100 * statistics.mean(shares):.0f} %" if shares else "–",
            }
        )
    return lines


@styled
def draw(folder):
    """Draws gradient_flow and gradient_parts, .png and .svg, from the folder's gradient_flow.csv; returns the PNGs' paths.

    The first has plain networks on the left and residual ones on the right, with batch norm above and without below, one color
    per depth; several seeds are shown by their geometric mean and, as a band, their range. The second has the two parts of the
    gradient at the inputs of the deepest residual network's blocks, and the share of the shortcut.
    """
    networks = read(folder)
    depths = [network.depth for network in networks]
    figure = canvas(
        9, 6.4, "The gradient on its way back through initial networks", "Norm of the gradient at each block of initial networks"
    )
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    rows = {"batch": "with batch norm", "none": "without"}
    for line, normalized in zip(axes, rows.values(), strict=True):
        for axis, family in zip(line, FAMILIES.values(), strict=True):
            axis.set(yscale="log", title=f"{family[0].upper()}{family[1:]}, {normalized}")
        line[0].set_ylabel("norm of the gradient")
    for members in by_kind(networks).values():
        residual, depth = members[0].residual, members[0].depth
        axis = axes[list(rows).index(members[0].normalization), int(residual)]
        norms, color = np.array([network.norms for network in members]), depth_colors(depths, residual, palette())[depth]
        blocks, means = np.arange(norms.shape[1]), np.exp(np.log(norms).mean(0))  # 0 is the stem
        axis.plot(blocks, means, color=color, linewidth=1.8)
        axis.fill_between(blocks, norms.min(0), norms.max(0), color=color, alpha=0.15, linewidth=0)
        name_mark(axis, str(depth), (blocks[-1], means[-1]), color, (-4, 9))
    for axis in axes[-1]:
        axis.set_xlabel("block (the number at a curve's end: layers)")
    drawn = [save(figure, folder, "gradient_flow")]
    residual = [network for network in networks if network.residual and network.normalization == "batch"]
    if residual:
        drawn.append(_draw_parts(max(residual, key=lambda network: network.depth), folder))
    return drawn


def _draw_parts(network, folder):
    title = "Which way the gradient comes"
    figure = canvas(9, 4, title, f"{network.name} at initialization, at the inputs of its blocks")
    left, right = figure.subplots(1, 2)
    blocks, (shortcut, branch, *_) = 1 + np.arange(len(network.shares)), palette().categories
    parts = {
        "whole": (network.norms[:-1], palette().ink),
        "shortcut": (network.shortcuts, shortcut),
        "branch": (network.branches, branch),
    }
    for values, color in parts.values():
        left.plot(blocks, values, color=color)
    left.set(yscale="log", xlabel="block", title="Norm of the gradient")
    name_lines(left, {name: (blocks[-1], values[-1]) for name, (values, _) in parts.items()}, [c for _, c in parts.values()])
    right.plot(blocks, 100 * network.shares, color=shortcut)
    right.set(ylim=(0, 100), xlabel="block", title="Share of the shortcut (%)")
    return save(figure, folder, "gradient_parts")
