"""The degradation figure, as He et al. 2015, Fig. 1 and 6, drawn from a sweep directory or from what is kept of one."""

import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plain56 import claim, runs
from plain56.errors import UserError
from plain56.figures.palette import depth_colors, kind_color
from plain56.figures.style import (
    FAMILIES,
    LINES,
    SPLITS,
    canvas,
    mean_and_range,
    name_lines,
    palette,
    save,
    styled,
    with_thousands,
)

MOST_POINTS = 130  # of a curve that is kept
MOST_GROUPS = 16  # of overrides, each of which takes a column of the figure
TITLE_LETTERS = 36  # of a line above a column
MARKERS = "so^D"  # of families


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
        kept = runs.grouped(_typed(folder, "curves"), lambda record: record["run"])
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
    """A run's records that have an error, unlike those of gradients."""
    return [record for record in run.records() if record.get("top1_error") is not None]


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

    Training error (in training mode, with augmentation) is thin, test error bold; plain networks are on the left, residual ones
    next, and then those of a user's own. On the right are the last errors against depth. What has not finished ends in a hollow
    marker; test errors of published.csv, if there is one, are open diamonds. Several seeds are shown by their mean and, as a band
    or bar, their range. Several groups of overrides have a column each, with these panels one below the other.

    Raises UserError if this is not a sweep directory, has nothing to draw yet, has other networks or too many groups, or if runs
    of one group, network and seed differ.
    """
    networks, published = _drawable(workdir), _published(workdir)
    keys = runs.group_keys([row for row, _ in networks])
    groups = runs.grouped(networks, lambda network: tuple(network.row[key] for key in keys))
    if len(groups) > MOST_GROUPS:
        raise UserError(f"The runs in {workdir} have {len(groups)} groups of overrides; the figure shows at most {MOST_GROUPS}.")
    shown = [(group, _kind(member), member.row["seed"]) for group, members in groups.items() for member in members]
    if len(set(shown)) < len(shown):
        raise UserError(f"Some runs in {workdir} have the same network, seed and overrides; this figure cannot tell them apart.")
    last = [_last(network, split) for network in networks for split in SPLITS if network.errors[split]]
    highest = 20 if max(last) < 20 else 100  # Fig. 6 ends at 20
    there = {runs.family(row) for row, _ in networks}
    every = [*FAMILIES.values(), *sorted(there - set(FAMILIES.values()))]
    families = {name: number for number, name in enumerate(every) if name in there}  # whose colors do not depend on others
    title = claim.title(runs.read_summary(workdir) if runs.is_sweep(workdir) else _typed(workdir, "summary"))
    if len(groups) == 1:
        figure = canvas(3.2 + 3.6 * len(families), 4.4, title, _explanation(networks, published))
        columns = [figure.subplots(1, len(families) + 1, gridspec_kw={"width_ratios": (*[1] * len(families), 0.7)})]
    else:
        figure = canvas(max(7.2, 3.6 * len(groups)), 3.6 + 2.9 * len(families), title, _explanation(networks, published))
        columns = figure.subplots(len(families) + 1, len(groups), squeeze=False).T
    depths = sorted({row["depth"] for row, _ in networks})
    for column, members in zip(columns, groups.values(), strict=True):
        for axis in column:
            axis.set_ylim(0, highest)
        _draw_group(column, members, families, depths, published)
        if keys:
            label = textwrap.fill(runs.label(members[0].row, keys), TITLE_LETTERS)
            column[0].set_title(f"{label}\n\n{column[0].get_title('left')}")
    return save(figure, workdir, "degradation")


def _drawable(workdir):
    """As `read`, where every network can be drawn; raises UserError otherwise."""
    networks = read(workdir)
    others = sorted({row["model"] for row, _ in networks if runs.family(row) is None})
    if others:
        raise UserError(f"{workdir} has {others[0]}; this figure shows plain and residual networks, and others of known depth.")
    if not networks:
        raise UserError(f"There is nothing to draw in {workdir} yet: no run has been logged.")
    return networks


def _published(folder):
    """Test errors (%) of other people, `{(family, depth): error}`."""
    if not (Path(folder) / "published.csv").exists():
        return {}
    return {(FAMILIES[row["residual"]], row["depth"]): 100 * row["test_error"] for row in _typed(folder, "published")}


def _explanation(networks, published):
    """What the lines and marks mean, without those that do not occur."""
    told = ["Thin: training error. Bold: test error."]
    if len({network.row["seed"] for network in networks}) > 1:
        told.append("Bands: range over seeds.")
    if not all(_is_complete(network) for network in networks):
        told.append("Hollow: not finished.")
    if published:
        told.append("Open diamonds: the paper's test errors.")
    return " ".join(told)


def _draw_group(axes, networks, families, depths, published):
    """Draws the networks of one group of overrides, on an axis for each family and one for final errors."""
    for (family, number), axis in zip(families.items(), axes, strict=False):
        axis.set(title=f"{family[0].upper()}{family[1:]} networks", xlabel="step")
        colors, ends = depth_colors(depths, number, palette()), {}
        of_family = [network for network in networks if runs.family(network.row) == family]
        for depth, members in sorted(runs.grouped(of_family, lambda network: network.row["depth"]).items()):
            ends[f"{depth} layers"] = *_draw_curves(axis, members, colors[depth]), colors[depth]
        name_lines(axis, {name: end[:2] for name, end in ends.items()}, [color for *_, color in ends.values()])
        axis.set_xlim(0, None)
        with_thousands(axis.xaxis)
        with_thousands(axis.yaxis)
    axes[0].set_ylabel("error (%)")
    axes[-1].set(title="Final error", xlabel="layers")
    with_thousands(axes[-1].yaxis)
    _draw_final(axes[-1], networks, families, depths)
    for (family, depth), error in published.items():
        if depth in depths and family in families:
            _mark(axes[-1], depths.index(depth), error, "D", kind_color(families[family], palette()), hollow=True)


def _kind(network):
    return runs.family(network.row), network.row["depth"]


def _is_complete(network):
    return network.row["state"] in runs.COMPLETE


def _last(network, split):
    return list(network.errors[split].values())[-1]


def _draw_curves(axis, members, color):
    """Draws the curves of networks that differ in their seeds, and returns the end of the last one, (step, error)."""
    end = None
    for split in SPLITS:
        steps, errors = _curves(members, split)
        if not steps:
            continue
        means = np.nanmean(errors, axis=0)
        axis.plot(steps, means, color=color, **LINES[split])
        if len(members) > 1:
            low, high = np.nanmin(errors, axis=0), np.nanmax(errors, axis=0)
            axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        for member in members:
            if member.errors[split] and not _is_complete(member):
                _mark(axis, max(member.errors[split]), _last(member, split), "o", color, hollow=True)
        end = steps[-1], means[-1]
    return end


def _mark(axis, x, y, marker, color, hollow):
    face = palette().page if hollow else color
    axis.plot(x, y, marker, color=color, markerfacecolor=face, markersize=5.5, markeredgewidth=1.4, clip_on=False, zorder=3)


def _curves(members, split):
    """All logged steps, and the networks' errors in percent [networks, steps], NaN where a network has none."""
    curves = [network.errors[split] for network in members]
    steps = sorted(set().union(*curves))
    return steps, np.array([[curve.get(step, np.nan) for step in steps] for curve in curves])


def _draw_final(axis, networks, families, depths):
    """Draws the last errors against depth; those of networks of which a seed has not finished are hollow."""
    ends, colors = {}, []
    for family, number in families.items():
        color = kind_color(number, palette())
        of_family = runs.grouped([network for network in networks if runs.family(network.row) == family], _kind)
        for split in SPLITS:
            known = {depth: [n for n in of_family.get((family, depth), []) if n.errors[split]] for depth in depths}
            places = [place for place, depth in enumerate(depths) if known[depth]]
            if not places:
                continue
            present = [known[depths[place]] for place in places]
            means, spread = mean_and_range([[_last(network, split) for network in members] for members in present])
            axis.plot(places, means, color=color, **LINES[split])
            axis.errorbar(places, means, spread, fmt="none", ecolor=color, elinewidth=1.2, capsize=0)
            for place, mean, members in zip(places, means, present, strict=True):
                _mark(axis, place, mean, MARKERS[number % len(MARKERS)], color, not all(map(_is_complete, members)))
            ends[family] = places[-1], means[-1]
        if family in ends:
            colors.append(color)
    axis.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axis.set_xlim(-0.3, len(depths) - 0.7)
    name_lines(axis, ends, colors)
