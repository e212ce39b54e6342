"""The gradient's growth at initialization against final training error, a dot for each repair and depth."""

import statistics

import numpy as np
from scipy import stats

from plain56 import runs
from plain56.figures import repairs
from plain56.figures.palette import depth_colors
from plain56.figures.style import canvas, palette, save, styled

# Repairs that leave the initial network as it is: their errors differ where the number cannot.
SAME_NETWORK = ("gradient clipped at 1", "Adam", "LARS", "Muon")
SAMPLES = 2_000  # of the bootstrap


def read(folder):
    """`(repair, depth, growth, mean training error in percent)` of each row of the folder's growth.csv.

    Networks through which no gradient flows at first are left out: Fixup's last layer begins at zero.
    """
    errors = repairs.read(folder)
    return [
        (
            row["repair"],
            int(row["depth"]),
            float(row["first"]) / float(row["last"]),
            statistics.mean(errors[row["repair"]][int(row["depth"])]),
        )
        for row in runs.read_table(folder, "growth")
        if float(row["last"]) and int(row["depth"]) in errors.get(row["repair"], {})
    ]


def correlation(folder):
    """Spearman's rank correlation of growth and error, and its 95 % interval by the bootstrap, without `SAME_NETWORK`."""
    dots = [(growth, error) for repair, _, growth, error in read(folder) if not repair.endswith(SAME_NETWORK)]
    growth, error = map(np.array, zip(*dots, strict=True))

    drawn = np.random.default_rng(0).integers(len(dots), size=(SAMPLES, len(dots)))
    # A sample of equal dots has no ranks.
    values = [stats.spearmanr(growth[i], error[i]).statistic for i in drawn if np.ptp(growth[i]) and np.ptp(error[i])]
    low, high = np.percentile(values, (2.5, 97.5))
    return stats.spearmanr(growth, error).statistic, low, high, len(dots)


def correlation_sentence(folder):
    """What the correlation is, in a sentence."""
    value, low, high, count = correlation(folder)
    return (
        f"Rank correlation of the gradient's growth at initialization and the training error, over {count} repairs and depths: "
        f"{value:.2f} (95 % interval {low:.2f} to {high:.2f})."
    )


@styled
def draw(folder):
    """Draws growth.png and .svg from the folder's growth.csv and runs.csv, and returns the PNG's path."""
    value, low, high, _ = correlation(folder)
    title = f"Growth of the gradient against error: rank correlation {value:.2f} ({low:.2f} to {high:.2f})"
    figure = canvas(8.4, 5, title, "A dot for each repair and depth. Gray: only the optimizer differs, not the initial network.")
    axis = figure.subplots()
    dots = read(folder)
    depths = sorted({depth for _, depth, *_ in dots})
    for repair, depth, growth, error in dots:
        residual = repair.startswith(repairs.RESIDUAL)
        color = depth_colors(depths, residual, palette())[depth]
        color = palette().muted if repair.endswith(SAME_NETWORK) else color
        axis.plot(growth, error, "os"[not residual], color=color, markersize=6, markeredgewidth=0)
    axis.axhline(repairs.CHANCE, color=palette().muted, linestyle=":", linewidth=1)
    axis.set(
        xscale="log",
        xlabel="gradient at the stem / gradient at the last block, at initialization",
        ylabel="final training error (%)",
    )
    kinds = {"plain": (False, "s"), "residual": (True, "o")}
    for name, (residual, marker) in kinds.items():
        for depth, color in depth_colors(depths, residual, palette()).items():
            axis.plot([], [], marker, color=color, markeredgewidth=0, label=f"{name}, {depth} layers")
    figure.legend(loc="outside right center")
    return save(figure, folder, "growth")
