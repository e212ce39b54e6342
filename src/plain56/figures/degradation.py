"""The degradation figure: the layout of He et al. 2015, Fig. 1 and 6, drawn from the run directories of a sweep."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from plain56 import runs
from plain56.errors import UserError

# Okabe and Ito's colours, told apart by colour-blind readers too; the lightest one is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
FAMILIES = {False: "plain", True: "ResNet"}
# Fonts stay text in the SVG, and its ids do not change from one drawing to the next.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "plain56", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def draw(workdir):
    """Draws degradation.png and degradation.svg in a sweep directory, of every run that has records.

    Training error (in training mode, with augmentation) is dashed, test error bold, one colour per depth, plain networks left
    and residual ones in the middle; right, the final errors against depth. Several seeds give their mean and, as a band,
    their range.

    Returns:
        The path of the PNG.

    Raises:
        UserError: not a sweep directory, or nothing to draw yet.
    """
    groups = {}
    for (run, _), row in zip(runs.read_sweep(workdir), runs.read_summary(workdir), strict=True):
        if run.metrics("train") and run.metrics("test"):
            groups.setdefault((row["residual"], row["depth"]), []).append(run)
    if not groups:
        raise UserError(f"There is nothing to draw in {workdir} yet: no run has been logged and tested.")
    depths = sorted({depth for _, depth in groups})
    colours = {depth: COLOURS[i % len(COLOURS)] for i, depth in enumerate(depths)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        axes = figure.subplots(1, 3, gridspec_kw={"width_ratios": (1, 1, 0.8)})
        for (residual, depth), members in sorted(groups.items()):
            _draw_curves(axes[int(residual)], members, f"{FAMILIES[residual]}-{depth}", colours[depth])
        for residual, axis in zip(FAMILIES, axes, strict=False):
            axis.set(title=f"{FAMILIES[residual]} networks", xlabel="step", ylabel="error (%)", ylim=(0, 100), xlim=(0, None))
            axis.plot([], [], color="0.4", linestyle="--", linewidth=1, label="training error")
            axis.plot([], [], color="0.4", linewidth=2, label="test error")
            axis.legend(frameon=False, loc="upper right")
        _draw_final(axes[2], groups, depths)
        for suffix in (".png", ".svg"):
            part = Path(workdir) / f"degradation.part{suffix}"
            figure.savefig(part, dpi=160, metadata={"Date": None} if suffix == ".svg" else None)
            part.replace(Path(workdir) / f"degradation{suffix}")
    return Path(workdir) / "degradation.png"


def _draw_curves(axis, members, label, colour):
    for split, style in (("train", {"linestyle": "--", "linewidth": 1}), ("test", {"linewidth": 2, "label": label})):
        steps, errors = _curves(members, split)
        axis.plot(steps, errors.mean(axis=0), color=colour, **style)
        if len(members) > 1:
            axis.fill_between(steps, errors.min(axis=0), errors.max(axis=0), color=colour, alpha=0.15, linewidth=0)


def _curves(members, split):
    """Steps that all runs have, and their errors in percent [runs, steps]."""
    curves = [{record["step"]: 100 * record["top1_error"] for record in run.metrics(split)} for run in members]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return steps, np.array([[curve[step] for step in steps] for curve in curves])


def _draw_final(axis, groups, depths):
    positions = {depth: i for i, depth in enumerate(depths)}
    for residual, colour in zip(FAMILIES, ("0.45", "#0072B2"), strict=True):
        present = [depth for depth in depths if (residual, depth) in groups]
        for split, style in (("train", {"linestyle": "--", "linewidth": 1}), ("test", {"linewidth": 2})):
            finals = [[100 * run.metrics(split)[-1]["top1_error"] for run in groups[residual, depth]] for depth in present]
            means = np.array([np.mean(values) for values in finals])
            spread = [means - [min(values) for values in finals], [max(values) for values in finals] - means]
            label = f"{FAMILIES[residual]}, {'training' if split == 'train' else 'test'}"
            where = [positions[depth] for depth in present]
            axis.errorbar(where, means, spread, color=colour, marker="o", markersize=4, capsize=2, label=label, **style)
    axis.set(title="final error", xlabel="layers", ylabel="error (%)", ylim=(0, 100))
    axis.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axis.margins(x=0.15)
    axis.legend(frameon=False, loc="upper left")
