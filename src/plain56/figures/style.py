"""What all figures share: typeface, colors and words, names at the marks, reading their tables, and writing them."""

import contextlib
import functools
import io
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from font_source_sans_pro import SourceSansPro, SourceSansProBold
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import StrMethodFormatter

from plain56 import runs
from plain56.figures.palette import PALETTES, depth_colors

FAMILIES = {False: "plain", True: "residual"}
SPLITS = {"train": "training", "test": "test"}
DASHED = (0, (3, 1.5))
LINES = {"train": {"linestyle": DASHED, "linewidth": 1.1}, "test": {"linestyle": "-", "linewidth": 2.2}}  # as in Fig. 6
TITLE_INCHES, SUBTITLE_INCHES, MARGIN_INCHES = 0.29, 0.26, 0.1

# It has figures of equal width, and stays readable when small. matplotlib finds only fonts of the system.
TYPEFACE = "Source Sans Pro"
for _file in (SourceSansPro, SourceSansProBold):
    font_manager.fontManager.addfont(_file)

_page = ContextVar("page", default="light")


def palette():
    """The `Palette` of the page for which a figure is being drawn."""
    return PALETTES[_page.get()]


def _settings(colors):
    return {
        "font.family": TYPEFACE,
        # Letters are outlines in the SVG, since other machines may lack the typeface; ids are the same in each drawing.
        "svg.fonttype": "path",
        "svg.hashsalt": "plain56",
        "font.size": 10,
        "figure.facecolor": colors.page,
        "savefig.facecolor": colors.page,
        "axes.facecolor": colors.page,
        "text.color": colors.ink,
        "axes.labelcolor": colors.muted,
        "axes.titlecolor": colors.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlepad": 8,
        "axes.edgecolor": colors.faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": colors.faint,
        "grid.linewidth": 0.8,
        "xtick.color": colors.faint,
        "xtick.labelcolor": colors.muted,
        "ytick.color": colors.faint,
        "ytick.labelcolor": colors.muted,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
    }


@contextlib.contextmanager
def _on(page):
    token = _page.set(page)
    try:
        with matplotlib.rc_context(_settings(palette())):
            yield
    finally:
        _page.reset(token)


def styled(draw):
    """Decorates a function that draws and saves a figure: it is called for a dark page, and then for a light one."""

    @functools.wraps(draw)
    def on_both_pages(*arguments, **options):
        with _on("dark"):
            draw(*arguments, **options)
        with _on("light"):
            return draw(*arguments, **options)

    return on_both_pages


def canvas(width, height, title="", subtitle=""):
    """A figure of so many inches, with what it says, and under that what was measured, at its top."""
    figure = Figure(figsize=(width, height))
    top = height - MARGIN_INCHES
    for text, inches, style in (
        (title, TITLE_INCHES, {"weight": "bold", "size": 13}),
        (subtitle, SUBTITLE_INCHES, {"color": palette().muted, "size": 10}),
    ):
        if text:
            figure.text(MARGIN_INCHES / width, top / height, text, va="top", **style)
            top -= inches
    figure.set_layout_engine("constrained", rect=(0, 0, 1, (top + MARGIN_INCHES * (not title)) / height))
    return figure


def with_thousands(axis):
    """Separates thousands in the numbers of an x or y axis, and has only a few of these."""
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.get_major_locator().set_params(nbins=5)


def name_lines(axes, ends, colors, share=0.07):
    """Writes names at the right ends of lines, `{name: (x of the end, y of the end)}`, in their colors.

    Two names are at least a share of the axes' height apart, whose limits must have been set.
    """
    if not ends:
        return
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(axes.get_ylim())
    places = apart(scale.transform([y for _, y in ends.values()]), share * (high - low))
    least = low
    for number in np.argsort(places, kind="stable"):  # no name is below the axes
        places[number] = least = max(least, places[number])
        least += share * (high - low)
    places = scale.inverted().transform(places)
    for (name, (x, _)), y, color in zip(ends.items(), places, colors, strict=True):
        name_mark(axes, name, (x, y), color, (7, 0))


def name_mark(axes, name, place, color, offset, **style):
    """Writes the name of a mark so many points from its place, readable also across lines."""
    around = [withStroke(linewidth=3, foreground=palette().page)]
    style = {"va": "center", "weight": "bold", **style}
    axes.annotate(
        name, place, offset, textcoords="offset points", color=color, annotation_clip=False, path_effects=around, **style
    )


def kind_of(row):
    """`(residual, depth)` of a table's row that was read from a file."""
    return row["residual"] == "True", int(row["depth"])


def name_of(kind):
    """The name of a kind `(residual, depth)` of network."""
    residual, depth = kind
    return f"{FAMILIES[residual]}, {depth} layers"


class Measured(NamedTuple):
    """A network that a table has rows of, with its title and its color."""

    title: str
    residual: bool
    depth: int
    color: str
    rows: list


def networks(rows):
    """The `Measured` networks of a table's rows that were read from a file, plain ones first, by depth.

    A network is known by its kind; where runs of different overrides have one kind, by its run, with a color for each.
    """
    found = sorted(runs.grouped(rows, lambda row: (*kind_of(row), row["run"])).items())
    depths = [depth for (_, depth, _), _ in found]
    unique = len({kind[:2] for kind, _ in found}) == len(found)
    categories = palette().categories
    return [
        Measured(name_of((residual, depth)), residual, depth, depth_colors(depths, residual, palette())[depth], members)
        if unique
        else Measured(run, residual, depth, categories[number % len(categories)], members)
        for number, ((residual, depth, run), members) in enumerate(found)
    ]


def mean_and_range(groups):
    """Means of groups of values [N], and how far each group extends below and above its mean [2, N], for error bars."""
    means = np.array([np.mean(values) for values in groups])
    # A mean of equal values may differ from them in the last bit.
    return means, np.maximum(0, [means - [min(values) for values in groups], [max(values) for values in groups] - means])


def apart(values, distance):
    """Values moved as little as it takes, in their order, to be at least a distance apart: where labels of lines can stand."""
    order, placed = np.argsort(values, kind="stable"), np.array(values, float)
    for _ in range(100 * len(values)):
        gaps = np.diff(placed[order])
        if (gaps >= distance * (1 - 1e-6)).all():
            break
        for low, high, gap in zip(order, order[1:], gaps, strict=False):
            if gap < distance:
                middle = (placed[low] + placed[high]) / 2
                placed[low], placed[high] = middle - distance / 2, middle + distance / 2
    return placed


def save(figure, folder, name):
    """Writes a figure, and returns the path of the PNG. Raises UserError if a file cannot be written.

    For a light page these are NAME.svg, .pdf and .png, for a dark one NAME.dark.svg and .dark.png.
    """
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": None}
    if _page.get() == "dark":
        name += ".dark"
        del undated[".pdf"]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it has found places for all, which hold for each file
    for suffix, metadata in undated.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix[1:], dpi=160, metadata=metadata)
        runs.write_bytes(Path(folder) / f"{name}{suffix}", drawn.getvalue())
    return Path(folder) / f"{name}.png"
