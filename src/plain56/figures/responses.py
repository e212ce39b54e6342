"""Standard deviations of layer responses, in the order of the layers and sorted, as in He et al. 2015, Fig. 7."""

import numpy as np

from plain56 import runs
from plain56.figures.style import DASHED, canvas, name_lines, networks, save, styled


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
    note = "Standard deviation of each 3×3 layer's output after batch norm. Dashed: plain networks."
    figure = canvas(8, 6.2, "How strongly the layers respond", note)
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    ends, colors = {}, []
    for network, values in _read(folder):
        style = {"color": network.color, "linestyle": "-" if network.residual else DASHED, "linewidth": 1.6}
        layers = 1 + np.arange(len(values))
        axes[0].plot(layers, values, **style)
        axes[1].plot(layers, np.sort(values)[::-1], **style)
        ends[network.title] = layers[-1], values.min()
        colors.append(network.color)
    axes[0].set(title="In the order of the layers", ylim=(0, None))
    axes[1].set(title="Sorted by size", xlabel="layer")
    name_lines(axes[1], ends, colors, share=0.1)
    return save(figure, folder, "responses")
