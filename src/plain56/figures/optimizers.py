"""Is degradation an optimization problem? Training error against learning rate, a curve for each optimizer."""

from plain56 import runs
from plain56.errors import UserError
from plain56.figures.repairs import CHANCE, RESIDUAL, error_of
from plain56.figures.style import canvas, name_lines, palette, save, styled

# The rows of the grid that change only the optimizer, by what the figure calls them.
OPTIMIZERS = {"nothing": "SGD", "gradient clipped at 1": "SGD, clipped", "Adam": "Adam", "LARS": "LARS", "Muon": "Muon"}
DEPTHS = (56, 110)


def _optimizer(repair):
    """`(residual, optimizer)` of a row of the grid, or None if the row changes more than that."""
    residual = repair.startswith(RESIDUAL)
    own = repair.removeprefix(RESIDUAL).removeprefix(", ") or "nothing" if residual else repair
    return (residual, OPTIMIZERS[own]) if own in OPTIMIZERS else None


def read(folder):
    """Training errors in percent, `{(residual, depth): {optimizer: {rate: error}}}`, from the folder's grid.csv.

    Of the depths at which it has SGD for plain and for residual networks; raises UserError if there are none.
    """
    found = {}
    for row in runs.read_table(folder, "grid"):
        if (kind := _optimizer(row["repair"])) and int(row["depth"]) in DEPTHS:
            curves = found.setdefault((kind[0], int(row["depth"])), {})
            curves.setdefault(kind[1], {})[float(row["rate"])] = error_of(row)
    complete = [depth for depth in DEPTHS if all("SGD" in found.get((residual, depth), {}) for residual in (False, True))]
    if not complete:
        raise UserError(f"{folder}/grid.csv must have plain and residual networks of {' or '.join(map(str, DEPTHS))} layers.")
    return {kind: curves for kind, curves in found.items() if kind[1] in complete}


def closed(folder, depth):
    """`(share, optimizer)`: how much of the gap between plain and residual networks trained by SGD the best optimizer closes.

    At the best rate of each, by the training error of the folder's grid.csv.
    """
    errors = {
        residual: {name: min(curve.values()) for name, curve in read(folder)[residual, depth].items()} for residual in (0, 1)
    }
    best = min(errors[0], key=errors[0].get)
    return (errors[0]["SGD"] - errors[0][best]) / (errors[0]["SGD"] - errors[1]["SGD"]), best


@styled
def draw(folder):
    """Draws optimizers.png and .svg from the folder's grid.csv, and returns the PNG's path."""
    found = read(folder)
    note = (
        "Training error against learning rate. A rate is a multiple of the optimizer's own (SGD 1, LARS 30, Adam and Muon 0.1)."
    )
    depths = sorted({depth for _, depth in found})
    share, best = closed(folder, depths[0])
    title = f"At {depths[0]} layers, {best} closes {100 * share:.0f} % of the gap between plain and residual networks"
    figure = canvas(9, 1 + 2.7 * len(depths), title, note)
    axes = figure.subplots(len(depths), 2, sharex=True, sharey=True, squeeze=False)
    colors = dict(zip(OPTIMIZERS.values(), palette().categories, strict=False))
    for (residual, depth), curves in found.items():
        axis = axes[depths.index(depth), int(residual)]
        axis.set(title=f"{'Residual' if residual else 'Plain'}, {depth} layers", xscale="log", ylim=(-2, 100))
        for name, curve in curves.items():
            axis.plot(*zip(*sorted(curve.items()), strict=True), marker="o", markersize=3.5, color=colors[name], linewidth=1.8)
        axis.axhline(CHANCE, color=palette().muted, linestyle=":", linewidth=1)
        name_lines(axis, {name: max(curve.items()) for name, curve in curves.items()}, map(colors.get, curves))
    for axis in axes[-1]:
        axis.set_xlabel("learning rate")
    for axis in axes[:, 0]:
        axis.set_ylabel("final training error (%)")
    return save(figure, folder, "optimizers")
