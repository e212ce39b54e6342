"""The degradation figure, as He et al. 2015, Fig. 1 and 6, drawn from a sweep directory or from what is kept of one."""

import itertools
import logging
import textwrap
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plain56 import runs
from plain56.errors import UserError
from plain56.figures.style import FAMILIES, LINES, SPLITS, color_by_depth, depth_handles, grouped, mean_and_range, save, styled

MOST_POINTS = 130  # of a curve that is kept
MOST_GROUPS = 16  # of overrides, each of which takes a column of the figure
TITLE_LETTERS = 36  # of a line above a column
MARKERS = (("s", "0.55"), ("o", "0"), ("^", "0.3"), ("D", "0.7"))  # of families, and their colors

logger = logging.getLogger(__name__)


class Network(NamedTuple):
    """A network's row of the sweep's summary, and its errors in percent, `{split: {step: error}}`."""

    row: dict
    errors: dict


def read(folder):
    """The `Network`s that have records, in a sweep directory or a folder with its summary.csv and curves.csv.

    Raises UserError if the folder is neither.
    """
    if runs.is_sweep(folder):
        logged = [(row, _records(run)) for row, run in _rows_and_runs(folder)]
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
    found = [(rows[run.run.path.name], run) for run in runs.read_sweep(workdir) if run.run.path.name in rows]
    return [(row, run) for row, run in found if row["state"] != "damaged"]


def _records(run):
    """A run's records that have an error, unlike those of gradients. A damaged run has none."""
    status, _, records = run.view()
    if status.state == "damaged":  # in a part of its log that the summary does not read
        logger.warning("%s is left out: %s", run.run.path.name, status.reason)
    return [record for record in records if record.get("top1_error") is not None]


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
    left, residual ones next, and then those of a user's own. On the right are the last errors of the finished and stopped runs
    against depth. Several seeds are shown by their mean and, as a band or bar, their range. Several groups of overrides have a
    column each, with these panels one below the other.

    Raises UserError if this is not a sweep directory, has nothing to draw yet, has other networks or too many groups, or if runs
    of one group, network and seed differ.
    """
    networks = read(workdir)
    others = sorted({row["model"] for row, _ in networks if runs.family(row) is None})
    if others:
        raise UserError(f"{workdir} has {others[0]}; this figure shows plain and residual networks, and others of known depth.")
    if not networks:
        raise UserError(f"There is nothing to draw in {workdir} yet: no run has been logged.")
    keys = runs.group_keys([row for row, _ in networks])
    groups = grouped(networks, lambda network: tuple(network.row[key] for key in keys))
    if len(groups) > MOST_GROUPS:
        raise UserError(f"The runs in {workdir} have {len(groups)} groups of overrides; the figure shows at most {MOST_GROUPS}.")
    shown = [(group, _kind(member), member.row["seed"]) for group, members in groups.items() for member in members]
    if len(set(shown)) < len(shown):
        raise UserError(f"Some runs in {workdir} have the same network, seed and overrides; this figure cannot tell them apart.")
    colors = color_by_depth(row["depth"] for row, _ in networks)
    last = [list(curve.values())[-1] for _, errors in networks for curve in errors.values() if curve]
    highest = 20 if max(last) < 20 else 100  # Fig. 6 ends at 20
    own = sorted({runs.family(row) for row, _ in networks} - set(FAMILIES.values()))
    families = [*FAMILIES.values(), *own]
    if len(groups) == 1:
        figure = Figure(figsize=(10 + 3.6 * len(own), 3.7), layout="constrained")
        columns = [figure.subplots(1, len(families) + 1, gridspec_kw={"width_ratios": (*[1] * len(families), 0.8)})]
    else:
        figure = Figure(figsize=(max(6.8, 3.4 * len(groups)), 8.6 + 2.9 * len(own)), layout="constrained")
        columns = figure.subplots(len(families) + 1, len(groups), squeeze=False).T
    for column, members in zip(columns, groups.values(), strict=True):
        _draw_group(column, members, families, colors, highest)
        if keys:
            label = textwrap.fill(runs.label(members[0].row, keys), TITLE_LETTERS)
            column[0].set_title(f"{label}\n\n{column[0].get_title()}")
    handles = depth_handles(colors)
    handles += [Line2D([], [], color="0.4", label=f"{SPLITS[split]} error", **LINES[split]) for split in SPLITS]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return save(figure, workdir, "degradation")


def _draw_group(axes, networks, families, colors, highest):
    """Draws the networks of one group of overrides, on an axis for each family and one for final errors."""
    for (family, depth), members in sorted(grouped(networks, _kind).items()):
        _draw_curves(axes[families.index(family)], members, colors[depth])
    for family, axis in zip(families, axes, strict=False):
        axis.set(title=f"{family} networks", xlabel="step", ylabel="error (%)")
        axis.set(ylim=(0, highest), xlim=(0, None))
        axis.locator_params("x", nbins=5)
    complete = [network for network in networks if network.row["state"] in runs.COMPLETE]
    _draw_final(axes[-1], grouped(complete, _kind), families, list(colors), highest)


def _kind(network):
    return runs.family(network.row), network.row["depth"]


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


def _draw_final(axis, complete, families, depths, highest):
    for family, (marker, color) in zip(families, itertools.cycle(MARKERS)):
        present = [depth for depth in depths if (family, depth) in complete]
        for split in SPLITS:
            finals = [[list(network.errors[split].values())[-1] for network in complete[family, depth]] for depth in present]
            means, spread = mean_and_range(finals)
            style = {"color": color, "marker": marker, "markersize": 4, "capsize": 2, **LINES[split]}
            label = family if split == "test" else None  # the figure's legend tells the errors apart
            axis.errorbar([depths.index(depth) for depth in present], means, spread, label=label, **style)
    axis.set(title="final error", xlabel="layers", ylabel="error (%)", ylim=(0, highest))
    axis.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axis.margins(x=0.15)
    axis.legend(frameon=False, loc="best")
