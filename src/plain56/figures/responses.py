"""Standard deviations of layer responses, in the order of the layers and sorted, as in He et al. 2015, Fig. 7."""

import numpy as np
from matplotlib.figure import Figure

from plain56 import runs
from plain56.figures.style import networks, save, styled


def _read(folder):
    """The networks, each with its responses [N] in the order of its layers."""
    found = networks(runs.read_table(folder, "responses"))
    return [(network, np.array([float(row["response"]) for row in network.rows])) for network in found]


def table(folder):
    """Median and range of each network's responses, as text by column, from the folder's responses.csv."""
    return [
        {
            "network": network.title,
            "median": f"{np.median(values):.3f}",
            "smallest": f"{values.min():.3f}",
            "largest": f"{values.max():.3f}",
        }
        for network, values in _read(folder)
    ]


@styled
def draw(folder):
    """Draws responses.png and .svg from the folder's responses.csv, and returns the path of the PNG."""
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    for network, values in _read(folder):
        style = {"color": network.color, "linestyle": "-" if network.residual else "--", "linewidth": 1.2}
        layers = 1 + np.arange(len(values))
        axes[0].plot(layers, values, label=network.title, **style)
        axes[1].plot(layers, np.sort(values)[::-1], **style)
    axes[0].set(title="in the order of the layers", ylabel="standard deviation", ylim=(0, None))
    axes[1].set(title="sorted by size", xlabel="layer", ylabel="standard deviation")
    figure.legend(loc="outside right center", frameon=False)
    return save(figure, folder, "responses")
