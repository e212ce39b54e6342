"""The degradation figure, as He et al. 2015, Fig. 1 and 6, drawn from a sweep directory or from what is kept of one."""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plain56 import runs
from plain56.errors import UserError
from plain56.figures.style import FAMILIES, LINES, SPLITS, color_by_depth, depth_handles, grouped, mean_and_range, save, styled

MOST_POINTS = 130  # of a curve that is kept


class Network(NamedTuple):
    """A network's row of the sweep's summary, and its errors in percent, `{split: {step: error}}`."""

    row: dict
    errors: dict


def read(folder):
    """The `Network`s that have records, in a sweep directory or a folder with its summary.csv and curves.csv.

    Raises UserError if the folder is neither.
    """
    if runs.is_sweep(folder):
        logged = [(row, _records(run)) for row, run in _rows_and_runs(folder) if row["state"] != "damaged"]
    else:
        kept = grouped(_typed(folder, "curves"), lambda record: record["run"])
        logged = [(row, kept.get(row["run"], [])) for row in _typed(folder, "summary")]
    networks = [
        Network(row, {split: {r["step"]: 100 * r["top1_error"] for r in records if r["split"] == split} for split in SPLITS})
        for row, records in logged
    ]
    return [network for network in networks if any(network.errors.values())]


def write_curves(workdir):
    """Writes curves.csv in a sweep directory: at most `MOST_POINTS` records of each split of each network, evenly spaced."""
    rows = []
    for row, run in _rows_and_runs(workdir):
        records = _records(run)
        for split in sorted({record["split"] for record in records}):
            of_split = [record for record in records if record["split"] == split]
            every = -(-len(of_split) // MOST_POINTS)
            for record in of_split[::-every][::-1]:  # counted from the last one
                rows.append({"run": row["run"], **{key: record.get(key) for key in ("split", "step", "loss", "top1_error")}})
    if rows:
        runs.write_table(workdir, "curves", rows)


def _rows_and_runs(workdir):
    rows = {row["run"]: row for row in runs.read_summary(workdir)}
    return [(rows[run.run.path.name], run) for run in runs.read_sweep(workdir) if run.run.path.name in rows]


def _records(run):
    """A run's records that have an error, unlike those of gradients. A damaged run has none."""
    return [record for record in run.view().records if record.get("top1_error") is not None]


def _typed(folder, name):
    return [{key: _value(row[key]) for key in row} for row in runs.read_table(folder, name)]


def _value(text):
    """The value that a cell of a table was written from."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


@styled
def draw(workdir):
    """Draws degradation.png and .svg in a folder that `read` reads, and returns the path of the PNG.

    Training error (in training mode, with augmentation) is dashed, test error bold, one color per depth, plain networks on the
    left and residual ones in the middle. On the right are the last errors of the finished and stopped runs against depth. Several
    seeds are shown by their mean and, as a band or bar, their range.

    Raises UserError if this is not a sweep directory, has nothing to draw yet, or runs differ in more than depth, kind and seed.
    """
    networks = read(workdir)
    others = sorted({row["model"] for row, _ in networks if not row["model"].startswith(("plain", "resnet"))})
    if others:
        raise UserError(f"{workdir} has {others[0]}; this figure shows only plain and residual networks.")
    shown = [(row["model"], row["seed"]) for row, _ in networks]
    if len(set(shown)) < len(shown):
        raise UserError(f"The runs in {workdir} differ in more than depth, kind and seed; this figure shows nothing else.")
    if not networks:
        raise UserError(f"There is nothing to draw in {workdir} yet: no run has been logged.")
    groups = grouped(networks, _kind)
    colors = color_by_depth(depth for _, depth in groups)
    last = [list(curve.values())[-1] for _, errors in networks for curve in errors.values() if curve]
    highest = 20 if max(last) < 20 else 100  # Fig. 6 ends at 20
    figure = Figure(figsize=(10, 3.7), layout="constrained")
    axes = figure.subplots(1, 3, gridspec_kw={"width_ratios": (1, 1, 0.8)})
    for (residual, depth), members in sorted(groups.items()):
        _draw_curves(axes[int(residual)], members, colors[depth])
    for residual, axis in zip(FAMILIES, axes, strict=False):
        axis.set(title=f"{FAMILIES[residual]} networks", xlabel="step", ylabel="error (%)")
        axis.set(ylim=(0, highest), xlim=(0, None))
        axis.locator_params("x", nbins=5)
    complete = [network for network in networks if network.row["state"] in runs.COMPLETE]
    _draw_final(axes[2], grouped(complete, _kind), list(colors), highest)
    handles = depth_handles(colors)
    handles += [Line2D([], [], color="0.4", label=f"{SPLITS[split]} error", **LINES[split]) for split in SPLITS]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return save(figure, workdir, "degradation")


def _kind(network):
    return network.row["residual"], network.row["depth"]


def _draw_curves(axis, members, color):
    for split in SPLITS:
        steps, errors = _curves(members, split)
        if not steps:
            continue
        axis.plot(steps, np.nanmean(errors, axis=0), color=color, **LINES[split])
        if len(members) > 1:
            low, high = np.nanmin(errors, axis=0), np.nanmax(errors, axis=0)
            axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def _curves(members, split):
    """All logged steps, and the networks' errors in percent [networks, steps], NaN where a network has none."""
    curves = [network.errors[split] for network in members]
    steps = sorted(set().union(*curves))
    return steps, np.array([[curve.get(step, np.nan) for step in steps] for curve in curves])


def _draw_final(axis, complete, depths, highest):
    for residual, marker, color in ((False, "s", "0.55"), (True, "o", "0")):
        present = [depth for depth in depths if (residual, depth) in complete]
        for split in SPLITS:
            finals = [[list(network.errors[split].values())[-1] for network in complete[residual, depth]] for depth in present]
            means, spread = mean_and_range(finals)
            style = {"color": color, "marker": marker, "markersize": 4, "capsize": 2, **LINES[split]}
            label = FAMILIES[residual] if split == "test" else None  # the figure's legend tells the errors apart
            axis.errorbar([depths.index(depth) for depth in present], means, spread, label=label, **style)
    axis.set(title="final error", xlabel="layers", ylabel="error (%)", ylim=(0, highest))
    axis.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axis.margins(x=0.15)
    axis.legend(frameon=False, loc="best")
