"""The best learning rate against depth, with the exponent of a power of the depth."""

import math

import numpy as np

from plain56 import runs
from plain56.figures.style import canvas, name_lines, palette, save, styled

# The rows of the grid that are drawn, by what the figure calls them.
SHOWN = {
    "nothing": "plain",
    "Dirac initializer": "plain, Dirac initializer",
    "leaky ReLU, slope 0.8": "plain, leaky ReLU 0.8",
    "skip connections": "residual",
    "skip connections, Fixup, no norm": "residual, Fixup",
    "skip connections, 1/√blocks, no norm": "residual, 1/√blocks",
}


def best_rate(losses):
    """The rate with the least loss of `{rate: loss}`, by a parabola in logarithms through it and its two neighbors.

    None where the least loss is at an end of the grid or beside a run that diverged: the best rate is then not known.
    """
    rates = sorted(losses)
    middle = min(range(len(rates)), key=lambda i: losses[rates[i]])
    around = rates[max(0, middle - 1) : middle + 2]
    if len(around) < 3 or middle == 0 or not all(0 < losses[rate] < math.inf for rate in around):
        return None
    square, slope, _ = np.polyfit(np.log(around), np.log([losses[rate] for rate in around]), 2)
    return float(np.exp(-slope / (2 * square)))


def read(folder):
    """`{repair: {depth: best rate or None}}` of the repairs in `SHOWN`, from the validation losses of the folder's grid.csv."""
    losses = {}
    for row in runs.read_table(folder, "grid"):
        if row["repair"] in SHOWN:
            loss = float(row["validation_loss"] or "inf")
            of_depth = losses.setdefault(row["repair"], {}).setdefault(int(row["depth"]), {})
            of_depth[float(row["rate"])] = loss if math.isfinite(loss) else math.inf
    return {repair: {depth: best_rate(own) for depth, own in sorted(by_depth.items())} for repair, by_depth in losses.items()}


def exponent(rates):
    """b of the power a · depth^b that fits `{depth: rate}` best in logarithms; None if fewer than two rates are known."""
    known = {depth: rate for depth, rate in rates.items() if rate}
    return float(np.polyfit(np.log(list(known)), np.log(list(known.values())), 1)[0]) if len(known) > 1 else None


def table(folder):
    """The best rates as text, "–" where one is not known, and the exponent."""
    lines, found = [], read(folder)
    depths = sorted({depth for rates in found.values() for depth in rates})
    for repair, rates in found.items():
        power = exponent(rates)
        own = {f"{depth} layers": f"{rates[depth]:.3g}" if rates.get(depth) else "–" for depth in depths}
        lines.append({"network": SHOWN[repair], **own, "exponent": "–" if power is None else f"{power:+.2f}"})
    return lines


@styled
def draw(folder):
    """Draws rates.png and .svg from the folder's grid.csv, and returns the PNG's path."""
    found = {repair: {depth: rate for depth, rate in rates.items() if rate} for repair, rates in read(folder).items()}
    found = {repair: rates for repair, rates in found.items() if rates}
    note = "The rate with the least validation loss. In brackets: b, where the rate goes as layers^b."
    figure = canvas(8, 4.6, "The best learning rate of SGD by depth", note)
    axis = figure.subplots()
    axis.set(xscale="log", yscale="log", xlabel="layers", ylabel="learning rate")
    ends, colors = {}, palette().categories[: len(found)]
    for (repair, rates), color in zip(found.items(), colors, strict=True):
        axis.plot(list(rates), list(rates.values()), marker="o", markersize=4, color=color, linewidth=1.8)
        power = exponent(rates)
        ends[SHOWN[repair] + ("" if power is None else f" ({power:+.1f})")] = list(rates.items())[-1]
    depths = sorted({depth for rates in found.values() for depth in rates})
    axis.set_xticks(depths, depths)
    axis.minorticks_off()
    name_lines(axis, ends, colors)
    return save(figure, folder, "rates")
