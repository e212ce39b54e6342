"""The atlas of repairs: final training errors of deep networks, a line for each repair."""

import itertools
import statistics

from plain56 import runs
from plain56.figures.palette import depth_colors
from plain56.figures.style import canvas, name_mark, palette, save, styled

CHANCE = 90.0  # % error of guessing one of ten digits
NOTHING, RESIDUAL = "nothing", "skip connections"
NEAR = 5.0  # a repair is near the residual network if it is fewer than so many points above it


def error_of(row):
    """The training error of a row of runs.csv or grid.csv in percent; a run that diverged counts as guessing."""
    return 100 * float(row["train_error"]) if row["train_error"] and row["state"] != "diverged" else CHANCE


def read(folder):
    """Training errors in percent by repair, depth and seed, `{repair: {depth: [errors]}}`, from the folder's runs.csv."""
    rows = runs.read_table(folder, "runs")
    return {
        repair: {depth: [error_of(row) for row in own] for depth, own in sorted(_by_depth(members).items())}
        for repair, members in runs.grouped(rows, lambda row: row["repair"]).items()
    }


def _by_depth(rows):
    return runs.grouped(rows, lambda row: int(row["depth"]))


def _main_depth(errors):
    depths = {depth for of_depth in errors.values() for depth in of_depth}
    return 56 if 56 in depths else max(depths)


def _in_order(errors):
    """The repairs, from the least to the largest error of the networks of 56 layers, or else of the deepest."""
    depth = _main_depth(errors)
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


def _title(errors):
    """How many repairs train plain networks of 56 layers, or else of the deepest, as well as skip connections, as a sentence."""
    depth = _main_depth(errors)
    means = {repair: statistics.mean(of_depth[depth]) for repair, of_depth in errors.items() if depth in of_depth}
    plain = [mean for repair, mean in means.items() if not repair.startswith(RESIDUAL) and repair != NOTHING]
    if RESIDUAL not in means:
        return f"Repairs of networks of {depth} layers"
    near = sum(mean < means[RESIDUAL] + NEAR for mean in plain)
    return f"{near} of {len(plain)} repairs bring a plain network of {depth} layers within {NEAR:g} points of a residual one"


@styled
def draw(folder):
    """Draws atlas.png and .svg from the folder's runs.csv, and returns the PNG's path."""
    errors = read(folder)
    order, depth = _in_order(errors), _main_depth(errors)
    depths = sorted({depth for of_depth in errors.values() for depth in of_depth})
    seeds = max(len(values) for of_depth in errors.values() for values in of_depth.values())
    note = "Final training error, each at its own learning rate, the best on digits; a dot for each of the seeds"
    figure = canvas(8, 1.5 + 0.29 * len(order), _title(errors), note if seeds > 1 else note.partition(";")[0])
    axis = figure.subplots()
    for place, repair in enumerate(order):
        residual = repair.startswith(RESIDUAL)
        colors = depth_colors(depths, residual, palette())
        means = [statistics.mean(values) for values in errors[repair].values()]
        axis.plot([min(means), max(means)], [place, place], color=palette().faint, linewidth=3, zorder=1)
        for own, values in errors[repair].items():
            face = colors[own] if own == depth else palette().page
            axis.plot(values, [place] * len(values), "o", color=colors[own], markerfacecolor=face, markersize=6, zorder=2)
    axis.axvline(CHANCE, color=palette().muted, linestyle=":", linewidth=1)
    axis.annotate("guessing", (CHANCE, -0.9), ha="center", color=palette().muted, annotation_clip=False)
    widest = max(order, key=lambda repair: _spread(errors[repair]))
    for own, values in errors[widest].items():
        place = statistics.mean(values), order.index(widest)
        color = depth_colors(depths, widest.startswith(RESIDUAL), palette())[own]
        name_mark(axis, f"{own} layers", place, color, (0, 9), ha="center", size=8.5)
    axis.set_yticks(range(len(order)), order)
    for label, repair in zip(axis.get_yticklabels(), order, strict=True):
        label.set(color=palette().ink, weight="bold" if repair in (NOTHING, RESIDUAL) else "normal")
    axis.set(ylim=(len(order) - 0.4, -1.3), xlim=(-2, 95), xlabel="final training error (%)")
    return save(figure, folder, "atlas")


def _spread(of_depth):
    """How far apart the nearest two depths of a repair are."""
    means = sorted(statistics.mean(values) for values in of_depth.values())
    return min((high - low for low, high in itertools.pairwise(means)), default=0)
