"""The degradation figure: the layout of He et al. 2015, Fig. 1 and 6, drawn from a sweep directory or what is kept of one."""

import io
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plain56 import runs
from plain56.errors import UserError

# Okabe and Ito's colours, told apart by colour-blind readers too; the lightest one is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
FAMILIES = {False: "plain", True: "residual"}
SPLITS = {"train": "training", "test": "test"}
LINES = {"train": {"linestyle": "--", "linewidth": 1}, "test": {"linestyle": "-", "linewidth": 2}}  # as in Fig. 6
MOST_POINTS = 130
# Fonts stay text in the SVG, and its ids do not change from one drawing to the next.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "plain56", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


class Network(NamedTuple):
    """What is known of a network: its row of the sweep's summary, and its errors in percent, `{split: {step: error}}`."""

    row: dict
    errors: dict


def read(folder):
    """The `Network`s that have been logged: of a sweep directory, or of a folder with its summary.csv and curves.csv.

    Raises:
        UserError: it is neither.
    """
    if runs.is_sweep(folder):
        logged = [(row, _records(run)) for row, run in _rows_and_runs(folder) if row["state"] != "damaged"]
    else:
        kept = {}
        for record in runs.read_table(folder, "curves"):
            kept.setdefault(record["run"], []).append({key: _value(record[key]) for key in record})
        rows = [{key: _value(row[key]) for key in row} for row in runs.read_table(folder, "summary")]
        logged = [(row, kept.get(row["run"], [])) for row in rows]
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
            for record in of_split[::-every][::-1]:  # from the last one
                rows.append({"run": row["run"], **{key: record.get(key) for key in ("split", "step", "loss", "top1_error")}})
    if rows:
        runs.write_table(workdir, "curves", rows)


def _rows_and_runs(workdir):
    rows = {row["run"]: row for row in runs.read_summary(workdir)}
    return [(rows[run.run.path.name], run) for run in runs.read_sweep(workdir) if run.run.path.name in rows]


def _records(run):
    """The records that have an error, which those of gradients have not, and a damaged run has none."""
    return [record for record in run.view().records if record.get("top1_error") is not None]


def _value(text):
    """What a cell of a table was written from."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def draw(workdir):
    """Draws degradation.png and degradation.svg in a folder that `read` reads, of every network that has been logged.

    Training error (in training mode, with augmentation) is dashed, test error bold, one colour per depth, plain networks left
    and residual ones in the middle; right, against depth, the last errors of the runs that are finished. Several seeds give
    their mean and, as a band or bar, their range.

    Returns:
        The path of the PNG.

    Raises:
        UserError: not a sweep directory, nothing to draw yet, or runs that differ in more than depth, kind and seed.
    """
    groups, finished = {}, {}
    networks = read(workdir)
    others = sorted({row["model"] for row, _ in networks if not row["model"].startswith(("plain", "resnet"))})
    if others:
        raise UserError(f"{workdir} has {others[0]}; this figure shows plain and residual networks alone.")
    shown = [(row["model"], row["seed"]) for row, _ in networks]
    if len(set(shown)) < len(shown):
        raise UserError(f"The runs in {workdir} differ in more than depth, kind and seed, which is all that this figure shows.")
    for row, errors in networks:
        groups.setdefault((row["residual"], row["depth"]), []).append(errors)
        if row["state"] == "finished":
            finished.setdefault((row["residual"], row["depth"]), []).append(errors)
    if not groups:
        raise UserError(f"There is nothing to draw in {workdir} yet: no run has been logged.")
    depths = sorted({depth for _, depth in groups})
    last = [list(curve.values())[-1] for members in groups.values() for errors in members for curve in errors.values() if curve]
    highest = 20 if max(last) < 20 else 100  # the first is Fig. 6's
    colours = {depth: COLOURS[i % len(COLOURS)] for i, depth in enumerate(depths)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.7), layout="constrained")
        axes = figure.subplots(1, 3, gridspec_kw={"width_ratios": (1, 1, 0.8)})
        for (residual, depth), members in sorted(groups.items()):
            _draw_curves(axes[int(residual)], members, colours[depth])
        for residual, axis in zip(FAMILIES, axes, strict=False):
            axis.set(title=f"{FAMILIES[residual]} networks", xlabel="step", ylabel="error (%)")
            axis.set(ylim=(0, highest), xlim=(0, None))
            axis.locator_params("x", nbins=5)
        _draw_final(axes[2], finished, depths, highest)
        handles = [Line2D([], [], color=colours[depth], linewidth=2, label=f"{depth} layers") for depth in depths]
        handles += [Line2D([], [], color="0.4", label=f"{SPLITS[split]} error", **LINES[split]) for split in SPLITS]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        return save(figure, Path(workdir), "degradation")


def save(figure, folder, name):
    """Writes a figure as SVG, PDF and PNG, each at once, and returns the path of the PNG.

    Raises:
        UserError: one of them cannot be written.
    """
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": None}
    for suffix, metadata in undated.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix[1:], dpi=160, metadata=metadata)
        runs.write_bytes(folder / f"{name}{suffix}", drawn.getvalue())
    return folder / f"{name}.png"


def _draw_curves(axis, members, colour):
    for split in SPLITS:
        steps, errors = _curves(members, split)
        if not steps:
            continue
        axis.plot(steps, np.nanmean(errors, axis=0), color=colour, **LINES[split])
        if len(members) > 1:
            low, high = np.nanmin(errors, axis=0), np.nanmax(errors, axis=0)
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _curves(members, split):
    """All logged steps, and the networks' errors in percent [networks, steps]: NaN where one has not come that far."""
    curves = [errors[split] for errors in members]
    steps = sorted(set().union(*curves))
    return steps, np.array([[curve.get(step, np.nan) for step in steps] for curve in curves])


def _draw_final(axis, finished, depths, highest):
    for residual, marker, colour in ((False, "s", "0.55"), (True, "o", "0")):
        present = [depth for depth in depths if (residual, depth) in finished]
        for split in SPLITS:
            finals = [[list(errors[split].values())[-1] for errors in finished[residual, depth]] for depth in present]
            means = np.array([np.mean(values) for values in finals])
            # A mean of equal values may differ from them in the last bit.
            spread = np.maximum(0, [means - [min(values) for values in finals], [max(values) for values in finals] - means])
            style = {"color": colour, "marker": marker, "markersize": 4, "capsize": 2, **LINES[split]}
            label = FAMILIES[residual] if split == "test" else None  # which line is which error, the figure's legend says
            axis.errorbar([depths.index(depth) for depth in present], means, spread, label=label, **style)
    axis.set(title="final error", xlabel="layers", ylabel="error (%)", ylim=(0, highest))
    axis.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axis.margins(x=0.15)
    axis.legend(frameon=False, loc="best")
