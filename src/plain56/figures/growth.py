"""The gradient's growth at initialization against final training error, a dot for each repair and depth."""

import statistics

import numpy as np
from scipy import stats

from plain56 import runs
from plain56.figures import repairs
from plain56.figures.gradient_slopes import expected_growth
from plain56.figures.palette import depth_colors
from plain56.figures.style import DASHED, canvas, name_mark, palette, save, styled

# Repairs that leave the initial network as it is: their errors differ where the number cannot.
SAME_NETWORK = ("gradient clipped at 1", "Adam", "LARS", "Muon")
SAMPLES = 2_000  # of the bootstrap
NOTE = "A dot for each repair and depth. Gray: only the optimizer differs. Dashed: theory of ReLUs with batch norm."


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


def _ranked(folder):
    """As `read`, without `SAME_NETWORK`."""
    return [dot for dot in read(folder) if not dot[0].endswith(SAME_NETWORK)]


def contradicting(folder, count=3):
    """The rows of `read` whose growth has the rank that is furthest from that of their error."""
    dots = _ranked(folder)
    ranks = [stats.rankdata(values) for values in list(zip(*dots, strict=True))[2:]]
    order = np.argsort(-abs(ranks[0] - ranks[1]), kind="stable")
    return [dots[i] for i in order[:count] if ranks[0][i] != ranks[1][i]]


def contradicting_sentence(folder):
    """Which repairs train otherwise than the number says, in a sentence."""
    wrong = contradicting(folder)
    told = [f"{repair} at {depth} layers ({times:.2g} times, {error:.1f} %)" for repair, depth, times, error in wrong]
    return f"It is most wrong about {'; '.join(told)}." if told else ""


def correlation(folder):
    """Spearman's rank correlation of growth and error, and its 95 % interval by the bootstrap, without `SAME_NETWORK`."""
    dots = _ranked(folder)
    growth, error = map(np.array, list(zip(*dots, strict=True))[2:])
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
    figure = canvas(8.4, 5, title, NOTE)
    axis = figure.subplots()
    dots = read(folder)
    depths = sorted({depth for _, depth, *_ in dots})
    for repair, depth, growth, error in dots:
        residual = repair.startswith(repairs.RESIDUAL)
        color = depth_colors(depths, residual, palette())[depth]
        color = palette().muted if repair.endswith(SAME_NETWORK) else color
        axis.plot(growth, error, "os"[not residual], color=color, markersize=6, markeredgewidth=0)
    for repair, _, growth, error in contradicting(folder):
        name_mark(axis, repair, (growth, error), palette().ink, (6, 5), size=8)
    for depth, color in depth_colors(depths, False, palette()).items():
        expected = expected_growth(0, "batch") ** ((depth - 2) // 2)  # blocks
        axis.axvline(expected, color=color, linestyle=DASHED, linewidth=1)
        name_mark(axis, f"theory, {depth}", (expected, 101), color, (0, 0), ha="center", size=8)
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
