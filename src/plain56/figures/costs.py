"""Test error against multiply-adds, parameters and time, and the cost of blocks without the ideas of their papers."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from plain56 import runs
from plain56.figures.style import COLORS, grouped, save, styled

AXES = {"multiply_adds": "multiply-adds of one image", "parameters": "parameters", "seconds": "seconds of training"}


def _read(folder):
    """The rows of costs.csv by network."""
    return grouped(runs.read_table(folder, "costs"), lambda row: row["model"])


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
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axis, (key, label) in zip(figure.subplots(1, len(AXES), sharey=True), AXES.items(), strict=True):
        for i, (model, rows) in enumerate(_read(folder).items()):
            errors = [100 * float(row["test_error"]) for row in rows]
            marker, color = "os^"[i // len(COLORS) % 3], COLORS[i % len(COLORS)]
            axis.plot([float(row[key]) for row in rows], errors, marker, color=color, label=model)
        axis.set(xscale="log", xlabel=label, ylim=(0, None))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.15)
    figure.axes[0].set_ylabel("test error (%)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return save(figure, folder, "costs")


def _draw_savings(folder):
    networks = grouped(runs.read_table(folder, "savings"), lambda row: row["network"])
    titles = {"googlenet": "GoogLeNet, without 1×1 reductions", "vgg16": "VGG-16, one large kernel for each stack"}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axis, (network, rows) in zip(figure.subplots(1, len(networks)), networks.items(), strict=True):
        places = np.arange(len(rows))
        for offset, key, label, color in (
            (-0.2, "multiply_adds_without", "without the idea", COLORS[1]),
            (0.2, "multiply_adds", "as published", COLORS[0]),
        ):
            axis.barh(places + offset, [float(row[key]) / 1e6 for row in rows], 0.38, color=color, label=label)
        axis.set_yticks(places, [row["name"] for row in rows])
        axis.invert_yaxis()
        axis.set(title=titles[network], xlabel="multiply-adds of one image (10⁶)")
    figure.axes[0].legend(frameon=False)
    return save(figure, folder, "savings")
