"""The norm of the gradient at every block, from the first step of training to the last."""

import numpy as np

from plain56 import runs
from plain56.figures.style import FAMILIES, canvas, name_mark, networks, save, styled, with_thousands

MOST_LINES = 6  # of a network, evenly spaced in training


@styled
def draw(folder):
    """Draws gradients.png and .svg from the folder's gradients.csv, and returns the path of the PNG.

    A column of panels for each depth, plain above and residual below. A line is the norm at the stem and at every block at one
    step; the earliest is the faintest. Norms that are zero or not finite are left out.
    """
    measured = networks(runs.read_table(folder, "gradients"))
    depths = sorted({network.depth for network in measured})
    title = "The gradient on its way back, while networks learn"
    about = "Norm of one batch's gradient at the output of each block, from step 0 (faint) to the last step (strong)."
    figure = canvas(max(7.2, 1 + 2 * len(depths)), 5.6, title, about)
    axes = figure.subplots(2, len(depths), sharex="col", sharey=True, squeeze=False)
    for network in measured:
        axis = axes[int(network.residual), depths.index(network.depth)]
        by_step = runs.grouped(network.rows, lambda row: int(row["step"]))
        steps = sorted(by_step)
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, min(len(steps), MOST_LINES)).round().astype(int)]
        for number, step in enumerate(steps):
            norms = [float(row["norm"] or 0) for row in by_step[step]]
            places = [(block, norm) for block, norm in enumerate(norms) if norm > 0]
            strength = 1 - 0.8 * (len(steps) - 1 - number) / len(steps)
            axis.plot(*np.array(places).reshape(-1, 2).T, color=network.color, linewidth=1.6, alpha=strength)
            if number in (0, len(steps) - 1) and places:
                name_mark(axis, f"{step:,}", places[0], network.color, (0, 9 if number == 0 else -10))
    for (residual, depth), axis in np.ndenumerate(axes):
        axis.set(yscale="log", title=f"{FAMILIES[bool(residual)].capitalize()}, {depths[depth]} layers")
        with_thousands(axis.xaxis)
    for axis in axes[-1]:
        axis.set_xlabel("block")
    for axis in axes[:, 0]:
        axis.set_ylabel("norm of the gradient")
    axes[0, 0].margins(y=0.12)
    return save(figure, folder, "gradients")
