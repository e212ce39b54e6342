"""The norm of the gradient against depth, and how much of it comes through the shortcuts."""

import statistics
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from plain56 import runs
from plain56.figures.style import COLORS, FAMILIES, color_by_depth, depth_handles, grouped, kind_of, save, styled


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
    groups = grouped(runs.read_table(folder, "gradient_flow"), key)
    return [Network(*network, *(column(rows, name) for name in names)) for network, rows in groups.items()]


def by_kind(networks):
    """The networks of all seeds, by name and normalization."""
    return grouped(networks, lambda network: (network.name, network.normalization))


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
    colors = color_by_depth(network.depth for network in networks)
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    rows = {"batch": "with batch norm", "none": "without batch norm"}
    for line, title in zip(axes, rows.values(), strict=True):
        for axis, family in zip(line, FAMILIES.values(), strict=True):
            axis.set(yscale="log", title=f"{family} networks, {title}")
        line[0].set_ylabel("norm of the gradient")
    for members in by_kind(networks).values():
        axis = axes[list(rows).index(members[0].normalization), int(members[0].residual)]
        norms, color = np.array([network.norms for network in members]), colors[members[0].depth]
        blocks = np.arange(norms.shape[1])  # 0 is the stem
        axis.plot(blocks, np.exp(np.log(norms).mean(0)), color=color, linewidth=1.5)
        axis.fill_between(blocks, norms.min(0), norms.max(0), color=color, alpha=0.15, linewidth=0)
    for axis in axes[-1]:
        axis.set_xlabel("block")
    handles = depth_handles(colors)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    drawn = [save(figure, folder, "gradient_flow")]
    residual = [network for network in networks if network.residual and network.normalization == "batch"]
    if residual:
        drawn.append(_draw_parts(max(residual, key=lambda network: network.depth), folder))
    return drawn


def _draw_parts(network, folder):
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    blocks = 1 + np.arange(len(network.shares))
    left.plot(blocks, network.norms[:-1], color="0", label="whole")
    left.plot(blocks, network.shortcuts, color=COLORS[0], label="through the shortcut")
    left.plot(blocks, network.branches, color=COLORS[1], label="through the branch")
    left.set(yscale="log", xlabel="block", ylabel="norm of the gradient", title=f"{network.name}, at its blocks' inputs")
    left.legend(frameon=False)
    right.plot(blocks, 100 * network.shares, color=COLORS[0])
    right.set(ylim=(0, 100), xlabel="block", ylabel="share (%)", title="came through the shortcut")
    return save(figure, folder, "gradient_parts")
