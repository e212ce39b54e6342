"""Standard deviations of layer responses, in the order of the layers and sorted: the layout of He et al. 2015, Fig. 7."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from plain56 import runs
from plain56.figures.degradation import COLOURS, FAMILIES, STYLE, save


def _read(folder):
    """The responses of each network in the order of its layers: `{(residual, depth): [N]}`."""
    responses = {}
    for row in runs.read_table(folder, "responses"):
        responses.setdefault((row["residual"] == "True", int(row["depth"])), []).append(float(row["response"]))
    return {kind: np.array(values) for kind, values in sorted(responses.items())}


def table(folder):
    """Median and range of each network's responses, as text by column, from the folder's responses.csv."""
    return [
        {
            "network": f"{FAMILIES[residual]}, {depth} layers",
            "median": f"{np.median(values):.3f}",
            "smallest": f"{values.min():.3f}",
            "largest": f"{values.max():.3f}",
        }
        for (residual, depth), values in _read(folder).items()
    ]


def draw(folder):
    """Draws responses.png and responses.svg from the folder's responses.csv, and returns the path of the PNG."""
    found = _read(folder)
    depths = sorted({depth for _, depth in found})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 5.5), layout="constrained")
        axes = figure.subplots(2, 1, sharex=True, sharey=True)
        for (residual, depth), values in found.items():
            style = {
                "color": COLOURS[depths.index(depth) % len(COLOURS)],
                "linestyle": "-" if residual else "--",
                "linewidth": 1.2,
            }
            layers = 1 + np.arange(len(values))
            axes[0].plot(layers, values, label=f"{FAMILIES[residual]}, {depth} layers", **style)
            axes[1].plot(layers, np.sort(values)[::-1], **style)
        axes[0].set(title="in the order of the layers", ylabel="standard deviation", ylim=(0, None))
        axes[1].set(title="sorted by size", xlabel="layer", ylabel="standard deviation")
        figure.legend(loc="outside right center", frameon=False)
        return save(figure, Path(folder), "responses")
