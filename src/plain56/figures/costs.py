"""Test error against multiply-adds, parameters and time, and the cost of blocks without the ideas of their papers."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from plain56 import runs
from plain56.figures.style import canvas, name_mark, palette, save, styled, with_thousands


def _read(folder):
    """The rows of costs.csv by network."""
    return runs.grouped(runs.read_table(folder, "costs"), lambda row: row["model"])


def table(folder):
    """Costs and mean errors of each network, as text by column, from the folder's costs.csv."""
    return [
        {
            "network": model,
            "parameters": f"{int(rows[0]['parameters']):,}",
            "multiply-adds (M)": f"{int(rows[0]['multiply_adds']) / 1e6:,.1f}",
            "seconds": f"{np.mean([float(row['seconds']) for row in rows]):.0f}",
            "test error (%)": f"{100 * np.mean([float(row['test_error']) for row in rows]):.2f}",
        }
        for model, rows in _read(folder).items()
    ]


@styled
def draw(folder):
    """Draws savings from the folder's savings.csv and, if it has a costs.csv, costs; returns the paths of the PNGs."""
    drawn = [_draw_savings(folder)]
    return [*drawn, _draw_costs(folder)] if (Path(folder) / "costs.csv").exists() else drawn


def _draw_costs(folder):
    """One panel: test error against seconds of training; a dot's area is the number of parameters."""
    networks = _read(folder)
    steps = sorted({int(row["steps"]) for rows in networks.values() for row in rows})
    after = " or ".join(f"{count:,}" for count in steps)
    figure = canvas(8, 4.4, "What an error costs", f"After {after} steps: the beginning of learning. A dot's area: parameters.")
    axis = figure.subplots()
    most = max(int(row["parameters"]) for rows in networks.values() for row in rows)
    for number, (model, rows) in enumerate(networks.items()):
        color = palette().categories[number % len(palette().categories)]
        errors, seconds = ([float(row[key]) for row in rows] for key in ("test_error", "seconds"))
        size = int(rows[0]["parameters"])
        axis.scatter(seconds, [100 * error for error in errors], 900 * size / most + 12, color=color, alpha=0.85, linewidth=0)
        place = seconds[0], 100 * errors[0]
        away = 5 + 15 * (size / most) ** 0.5
        name_mark(axis, model, place, color, (away, 13))
        told = f"{size / 1e6:.1f} M parameters\n{int(rows[0]['multiply_adds']) / 1e6:,.0f} M multiply-adds"
        name_mark(axis, told, place, palette().muted, (away, -6), size=8, weight="normal")
    axis.set(xscale="log", xlabel="seconds of training", ylabel="test error (%)", ylim=(0, None))
    low, high = axis.get_xlim()
    axis.set_xlim(low, high * 2)  # room for the names
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    return save(figure, folder, "costs")


def _draw_savings(folder):
    networks = runs.grouped(runs.read_table(folder, "savings"), lambda row: row["network"])
    titles = {"googlenet": "GoogLeNet: 1×1 reductions", "vgg16": "VGG-16: stacks of 3×3"}
    title = "What 1×1 reductions and stacks of 3×3 convolutions save"
    figure = canvas(9, 4.4, title, "Multiply-adds of one image of 224×224 pixels, as published and without the idea")
    for axis, (network, rows) in zip(figure.subplots(1, len(networks)), networks.items(), strict=True):
        places = np.arange(len(rows))
        for offset, key, label, color in (
            (-0.2, "multiply_adds_without", "without the idea", palette().categories[1]),
            (0.2, "multiply_adds", "as published", palette().categories[0]),
        ):
            axis.barh(places + offset, [float(row[key]) / 1e6 for row in rows], 0.38, color=color, label=label)
        axis.set_yticks(places, [row["name"] for row in rows])
        axis.invert_yaxis()
        axis.set(title=titles[network], xlabel="multiply-adds (10⁶)")
        axis.grid(axis="x")
        axis.grid(visible=False, axis="y")
        with_thousands(axis.xaxis)
    figure.axes[0].legend(loc="lower right")
    return save(figure, folder, "savings")
