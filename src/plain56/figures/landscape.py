"""The loss along a random direction, and over the plane of two, as in Li et al. 2018, Fig. 1 and 5."""

import numpy as np
from matplotlib.colors import LogNorm

from plain56 import runs
from plain56.figures.style import DASHED, canvas, name_lines, networks, save, styled


def _read(folder):
    """The networks, each with its losses by place: `{(x, y): loss}`."""
    found = networks(runs.read_table(folder, "landscape"))
    return [(network, {(float(r["x"]), float(r["y"])): float(r["loss"]) for r in network.rows}) for network in found]


@styled
def draw(folder):
    """Draws landscape.png and .svg from the folder's landscape.csv, and returns the path of the PNG.

    On the left is every network's loss along one direction; then, for each network with a plane, its surface above and its
    contours below, at the same levels for all.
    """
    found = _read(folder)
    planes = [(network, losses) for network, losses in found if any(y for _, y in losses)]
    title = "The loss around trained networks"
    figure = canvas(
        4.2 + 3.1 * len(planes), 6, title, "Along random directions, each filter scaled to its own norm (Li et al. 2018)"
    )
    grid = figure.add_gridspec(2, 1 + len(planes), width_ratios=[1.15] + [1] * len(planes))
    line = figure.add_subplot(grid[:, 0])
    ends = {}
    for network, losses in found:
        places = sorted((x, loss) for (x, y), loss in losses.items() if y == 0)
        dash = "-" if network.residual else DASHED
        line.plot(*zip(*places, strict=True), color=network.color, linestyle=dash, linewidth=1.8)
        ends[network.title] = places[-1]
    line.set(yscale="log", xlabel="along one direction", title="Loss along a line")
    name_lines(line, ends, [network.color for network, _ in found], share=0.05)
    values = np.array([loss for _, losses in planes for loss in losses.values()])
    exponents = np.log10(values[np.isfinite(values) & (values > 0)])
    low, high = np.floor(exponents.min()), np.ceil(exponents.max())
    levels = 10 ** np.arange(low, high + 0.1, 1 if high - low > 4 else 0.25)
    for number, (network, losses) in enumerate(planes):
        ys = sorted({y for _, y in losses})
        xs = sorted({x for x, y in losses if y == ys[0]})
        heights = np.array([[losses[x, y] for x in xs] for y in ys])
        _draw_surface(figure.add_subplot(grid[0, 1 + number], projection="3d"), xs, ys, heights, (low, high), network.title)
        axis = figure.add_subplot(grid[1, 1 + number])
        drawn = axis.contourf(xs, ys, heights, levels=levels, norm=LogNorm(), cmap="viridis")
        axis.contour(xs, ys, heights, levels=levels, colors="white", linewidths=0.4)
        axis.plot(0, 0, "+", color="white", markersize=9)
        axis.set(aspect="equal", xlabel="first direction")
        axis.grid(visible=False)
        if number == 0:
            axis.set_ylabel("second direction")
    figure.colorbar(drawn, ax=figure.axes[2::2], label="loss", ticks=levels[:: -(-len(levels) // 8)], format="%.2g")
    return save(figure, folder, "landscape")


def _draw_surface(axis, xs, ys, heights, exponents, title):
    """The logarithm of the loss over a plane, as Li et al. 2018, Fig. 1."""
    low, high = exponents
    logarithms = np.log10(np.where(np.isfinite(heights) & (heights > 0), heights, 10**high)).clip(low, high)
    axis.plot_surface(*np.meshgrid(xs, ys), logarithms, cmap="viridis", vmin=low, vmax=high, linewidth=0, rcount=60, ccount=60)
    axis.set(title=title, zlim=(low, high), xticks=[], yticks=[], zticks=[])
    axis.set_box_aspect((1, 1, 0.8), zoom=1.6)
    axis.set_axis_off()
    axis.view_init(elev=28, azim=-50)
