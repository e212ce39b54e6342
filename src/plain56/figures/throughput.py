"""How many times as fast as the other programs plain56 is, by network: medians and quartiles over rounds."""

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from plain56.figures.style import COLORS, save, styled

TITLES = {"step": "training step", "forward": "forward pass"}


@styled
def draw(folder):
    """Draws throughput.png and .svg from the folder's throughput.json, and returns the path of the PNG."""
    result = json.loads((Path(folder) / "throughput.json").read_text())
    others = list(dict.fromkeys(program for row in result["rows"] for program in row["times_as_fast_as"]))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (work, title) in zip(figure.subplots(1, 2, sharey=True), TITLES.items(), strict=True):
        rows = [row for row in result["rows"] if row["work"] == work]
        for i, program in enumerate(others):
            known = [(place, row["times_as_fast_as"].get(program)) for place, row in enumerate(rows)]
            known = [(place + (i - (len(others) - 1) / 2) * 0.2, ratio) for place, ratio in known if ratio]
            places, ratios = zip(*known, strict=True) if known else ((), ())
            medians = [ratio["median"] for ratio in ratios]
            below = [ratio["median"] - ratio["lower_quartile"] for ratio in ratios]
            above = [ratio["upper_quartile"] - ratio["median"] for ratio in ratios]
            axes.errorbar(places, medians, (below, above), fmt="os^"[i], color=COLORS[i], markersize=4, capsize=2, label=program)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(rows)), [row["network"] for row in rows], rotation=45, ha="right")
        axes.set(title=title, yscale="log")
        axes.yaxis.set_major_locator(FixedLocator((0.5, 1, 2, 5, 10)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    figure.axes[0].set_ylabel("plain56 is so many times as fast as")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return save(figure, folder, "throughput")
