"""The colors of figures and reports, on light and on dark pages.

Depth is ordered, so its colors are a ramp of lightness, which grayscale and the common color deficiencies keep, too; kind is hue.
On a light page deeper networks are darker, on a dark page brighter: always the further from the page.
"""

from typing import NamedTuple

import numpy as np


class Palette(NamedTuple):
    """The colors of one page, as "#rrggbb". `ramp` is the lightness (OKLab) of the shallowest and of the deepest network."""

    page: str
    ink: str
    muted: str  # axes, what was measured
    faint: str  # grids
    ramp: tuple
    categories: tuple  # of what is neither depth nor kind; each is readable as text, and stays apart for all eyes


LIGHT = Palette(
    "#ffffff",
    "#1b1e23",
    "#5c6370",
    "#e3e6ea",
    (0.645, 0.27),
    ("#06796a", "#976c08", "#7f57d1", "#7e1302", "#0b1084", "#3a1023"),
)
DARK = Palette(
    "#14171b",
    "#eceff3",
    "#a3abb8",
    "#2c3138",
    (0.55, 0.94),
    ("#8cfecf", "#fad31b", "#ccbcfe", "#e76709", "#628afc", "#b58194"),
)
PALETTES = {"light": LIGHT, "dark": DARK}
# OKLab's hue (degrees) of plain networks, of residual ones, and of a user's own
HUES = (47, 252, 155, 330)
MOST_CHROMA = 0.17

# Ottosson 2020, "A perceptual color space for image processing": linear sRGB to cone responses, whose cube roots make OKLab.
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _from_oklab(lab):
    """Linear sRGB of an OKLab color; outside of [0, 1] where no screen shows it."""
    return np.linalg.solve(_TO_CONES, np.linalg.solve(_TO_LAB, np.array(lab)) ** 3)


def _hexadecimal(linear):
    values = np.clip(linear, 0, 1)
    coded = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * value):02x}" for value in coded)


def color(lightness, kind):
    """The color of a kind of network, an index of `HUES`, at an OKLab lightness, with as much chroma as a screen shows."""
    angle = np.deg2rad(HUES[kind % len(HUES)])
    for chroma in np.linspace(MOST_CHROMA, 0, 86):
        linear = _from_oklab((lightness, chroma * np.cos(angle), chroma * np.sin(angle)))
        if ((linear > -1e-4) & (linear < 1 + 1e-4)).all():
            break
    return _hexadecimal(linear)


def depth_colors(depths, kind, palette):
    """`{depth: color}` of a kind of network, from the shallowest to the deepest; False and True are plain and residual."""
    ordered = sorted(set(depths))
    shallow, deep = palette.ramp
    # At the ramp's end a screen shows little hue: few depths, which are apart without it, do not go there.
    share = min(1.0, 0.5 + 0.175 * (len(ordered) - 2))
    steps = np.linspace(shallow, shallow + share * (deep - shallow), len(ordered)) if len(ordered) > 1 else [(shallow + deep) / 2]
    return {depth: color(lightness, kind) for depth, lightness in zip(ordered, steps, strict=True)}


def kind_color(kind, palette):
    """The color of a kind of network where depth is told otherwise."""
    return color(sum(palette.ramp) / 2, kind)
