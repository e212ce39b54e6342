"""The loss along a random direction, and over the plane of two, as in Li et al. 2018, Fig. 1 and 5."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from plain56 import runs
from plain56.figures.style import networks, save, styled


def _read(folder):
    """The networks, each with its losses by place: `{(x, y): loss}`."""
    found = networks(runs.read_table(folder, "landscape"))
    return [(network, {(float(r["x"]), float(r["y"])): float(r["loss"]) for r in network.rows}) for network in found]


@styled
def draw(folder):
    """Draws landscape.png and .svg from the folder's landscape.csv, and returns the path of the PNG.

    On the left is every network's loss along one direction; then contours over two directions, at the same levels for all.
    """
    found = _read(folder)
    planes = [(network, losses) for network, losses in found if any(y for _, y in losses)]
    figure = Figure(figsize=(3.6 + 3.2 * len(planes), 3.5), layout="constrained")
    axes = figure.subplots(1, 1 + len(planes), squeeze=False)[0]
    for network, losses in found:
        line = sorted((x, loss) for (x, y), loss in losses.items() if y == 0)
        style = {"color": network.color, "linestyle": "-" if network.residual else "--"}
        axes[0].plot(*zip(*line, strict=True), label=network.title, **style)
    axes[0].set(yscale="log", xlabel="along one direction", ylabel="loss", title="along a line")
    axes[0].legend(frameon=False, fontsize=8)
    values = np.array([loss for _, losses in planes for loss in losses.values()])
    exponents = np.log10(values[np.isfinite(values) & (values > 0)])
    low, high = np.floor(exponents.min()), np.ceil(exponents.max())
    levels = 10 ** np.arange(low, high + 0.1, 1 if high - low > 4 else 0.25)
    for axis, (network, losses) in zip(axes[1:], planes, strict=True):
        ys = sorted({y for _, y in losses})
        xs = sorted({x for x, y in losses if y == ys[0]})
        heights = np.array([[losses[x, y] for x in xs] for y in ys])
        drawn = axis.contourf(xs, ys, heights, levels=levels, norm=matplotlib.colors.LogNorm(), cmap="viridis")
        axis.contour(xs, ys, heights, levels=levels, colors="white", linewidths=0.4)
        axis.plot(0, 0, "+", color="red")
        axis.set(title=network.title, aspect="equal", xlabel="first direction")
    axes[1].set_ylabel("second direction")
    figure.colorbar(drawn, ax=axes[1:], label="loss", ticks=levels[:: -(-len(levels) // 8)], format="%.2g")
    return save(figure, folder, "landscape")
