"""The atlas of repairs: final training errors of deep networks, a line for each repair."""

import statistics

from matplotlib.figure import Figure

from plain56 import runs
from plain56.figures.style import COLORS, grouped, save, styled

CHANCE = 90.0  # % error of guessing one of ten digits
RESIDUAL = "skip connections"
MARKERS = {20: "s", 56: "o", 110: "o"}  # by depth; that of 56 layers is filled


def error_of(row):
    """The training error of a row of runs.csv or grid.csv in percent; a run that diverged counts as guessing."""
    return 100 * float(row["train_error"]) if row["train_error"] and row["state"] != "diverged" else CHANCE


def read(folder):
    """Training errors in percent by repair, depth and seed, `{repair: {depth: [errors]}}`, from the folder's runs.csv."""
    rows = runs.read_table(folder, "runs")
    return {
        repair: {depth: [error_of(row) for row in own] for depth, own in sorted(_by_depth(members).items())}
        for repair, members in grouped(rows, lambda row: row["repair"]).items()
    }


def _by_depth(rows):
    return grouped(rows, lambda row: int(row["depth"]))


def _in_order(errors):
    """The repairs, from the least to the largest error of the networks of 56 layers, or else of the deepest."""
    depths = {depth for of_depth in errors.values() for depth in of_depth}
    depth = 56 if 56 in depths else max(depths)
    return sorted(errors, key=lambda repair: statistics.mean(errors[repair].get(depth, [CHANCE])))


def table(folder):
    """Means over seeds, with the range where there are several, as text by column, from the folder's runs.csv."""
    errors = read(folder)
    lines = []
    for repair in _in_order(errors):
        line = {"repair": repair}
        for depth, values in errors[repair].items():
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            line[f"{depth} layers"] = f"{statistics.mean(values):.1f}{spread}"
        lines.append(line)
    return lines


@styled
def draw(folder):
    """Draws atlas.png and .svg from the folder's runs.csv, and returns the PNG's path."""
    errors = read(folder)
    order = _in_order(errors)
    figure = Figure(figsize=(7.2, 0.6 + 0.27 * len(order)), layout="constrained")
    axis = figure.subplots()
    for place, repair in enumerate(order):
        color = COLORS[1] if repair.startswith(RESIDUAL) else COLORS[0]
        means = [statistics.mean(values) for values in errors[repair].values()]
        axis.plot([min(means), max(means)], [place, place], color="0.85", linewidth=2.5, zorder=1)
        for depth, values in errors[repair].items():
            marker, face, size = MARKERS.get(depth, "D"), color if depth == 56 else "white", 4 if depth == 20 else 6
            axis.plot(values, [place] * len(values), marker, color=color, markerfacecolor=face, markersize=size, zorder=2)
    axis.axvline(CHANCE, color="0.6", linestyle=":", linewidth=1)
    axis.annotate("guessing", (CHANCE, -0.9), ha="center", color="0.4", annotation_clip=False)
    last = errors[order[-1]]
    for depth in last:
        axis.annotate(
            f"{depth} layers", (statistics.mean(last[depth]), len(order) - 1), (0, 6), textcoords="offset points", ha="center"
        )
    axis.set_yticks(range(len(order)), order)
    axis.set(ylim=(len(order) - 0.4, -1.2), xlim=(-2, 95), xlabel="final training error (%)")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    return save(figure, folder, "atlas")
