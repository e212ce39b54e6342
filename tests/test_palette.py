"""The colors of figures: contrast with the page, order in greyscale, and what readers with a color deficiency can tell apart.

The figures are computed by colorspacious, not by our own code.
"""

import itertools

import numpy as np
import pytest
from colorspacious import cspace_convert, deltaE
from matplotlib.colors import to_rgb

from plain56.figures.palette import PALETTES, depth_colors, kind_color

DEPTHS = (20, 32, 44, 56, 110, 152)
DEFICIENCIES = ("deuteranomaly", "protanomaly", "tritanomaly")
EYES = [None, *({"name": "sRGB1+CVD", "cvd_type": name, "severity": 100} for name in DEFICIENCIES)]
NOTICED = 7.0  # ΔE of CAM02-UCS, and of lightness; 1 can be seen side by side


def seen(color, eyes):
    """The sRGB color that a reader sees."""
    rgb = np.array(to_rgb(color))
    return rgb if eyes is None else np.clip(cspace_convert(rgb, eyes, "sRGB1"), 0, 1)


def difference(one, other, eyes):
    return deltaE(seen(one, eyes), seen(other, eyes), input_space="sRGB1")


def luminance(color):
    """Of WCAG 2."""
    values = np.array(to_rgb(color))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", PALETTES)
def test_lines_and_words_stand_out_from_the_page(page):
    palette = PALETTES[page]
    for kind in range(4):
        for color in (*depth_colors(DEPTHS, kind, palette).values(), kind_color(kind, palette)):
            assert contrast(color, palette.page) >= 3, color  # WCAG 2, 1.4.11: graphics
    for color in (palette.ink, palette.muted, *palette.categories):
        assert contrast(color, palette.page) >= 4.5, color  # 1.4.3: text


@pytest.mark.parametrize("page", PALETTES)
@pytest.mark.parametrize("kind", range(4))
def test_six_depths_are_in_order_in_greyscale(page, kind):
    colors = depth_colors(DEPTHS, kind, PALETTES[page]).values()
    lightness = [cspace_convert(to_rgb(color), "sRGB1", "CIELab")[0] for color in colors]
    steps = np.diff(lightness) * (1 if page == "dark" else -1)
    assert (steps >= NOTICED).all(), lightness


@pytest.mark.parametrize("eyes", EYES, ids=("all", *DEFICIENCIES))
@pytest.mark.parametrize("page", PALETTES)
def test_depths_kinds_and_categories_can_be_told_apart(page, eyes):
    palette = PALETTES[page]
    plain, residual = (list(depth_colors(DEPTHS, kind, palette).values()) for kind in (False, True))
    pairs = [pair for ramp in (plain, residual) for pair in itertools.pairwise(ramp)]
    pairs += zip(plain, residual, strict=True)
    pairs += itertools.combinations(palette.categories, 2)
    for one, other in pairs:
        assert difference(one, other, eyes) >= NOTICED, (one, other)
