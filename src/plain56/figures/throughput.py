"""How many times as fast as the other programs plain56 is, by network: medians and quartiles over rounds."""

import json
from pathlib import Path

from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from plain56.figures.style import canvas, palette, save, styled

TITLES = {"step": "training step", "forward": "forward pass"}
RATIOS = (0.5, 1, 2, 5, 10, 20)
APART = 0.24  # bars of one network; the networks are 1 apart


@styled
def draw(folder):
    """Draws throughput.png and .svg from the folder's throughput.json, and returns the path of the PNG."""
    result = json.loads((Path(folder) / "throughput.json").read_text())
    networks = list(dict.fromkeys(row["network"] for row in result["rows"]))
    others = list(dict.fromkeys(program for row in result["rows"] for program in row["times_as_fast_as"]))
    figure = canvas(
        10,
        1.6 + 0.5 * len(networks),
        "How many times as fast as other programs plain56 is",
        "Bars: medians over rounds in which the programs take turns. Lines: quartiles.",
    )
    panels = figure.subplots(1, len(TITLES), sharey=True)
    for axes, (work, title) in zip(panels, TITLES.items(), strict=True):
        for row in result["rows"]:
            if row["work"] == work:
                _draw_row(axes, networks.index(row["network"]), [row["times_as_fast_as"].get(other) for other in others])
        axes.axvline(1, color=palette().muted, linewidth=1)
        axes.set(title=title.capitalize(), xscale="log", ylim=(len(networks) - 0.5, -0.6))
        axes.set_yticks(range(len(networks)), networks)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(FixedLocator(RATIOS))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}×"))
        axes.xaxis.set_minor_locator(NullLocator())
    handles = [axes.barh([0], [0], color=color, label=name) for name, color in zip(others, palette().categories, strict=False)]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))
    return save(figure, folder, "throughput")


def _draw_row(axes, place, ratios):
    """A bar for each program that ran, from 1 to its median, with a line from quartile to quartile."""
    known = [(ratio, color) for ratio, color in zip(ratios, palette().categories, strict=False) if ratio]
    for number, (ratio, color) in enumerate(known):
        height = place + (number - (len(known) - 1) / 2) * APART
        median = ratio["median"]
        axes.barh(height, median - 1, left=1, height=APART * 0.8, color=color, alpha=0.85)
        axes.plot((ratio["lower_quartile"], ratio["upper_quartile"]), (height, height), color=palette().ink, linewidth=1)
