"""Networks by name: the only look-up by name in the project."""

import difflib
import fnmatch
import re

import jax
import jax.numpy as jnp

from plain56.errors import UserError
from plain56.models.layers import Numerics
from plain56.models.resnet import SHORTCUTS, ResNet

# Table 6's depths, and 152, the depth of the deepest ImageNet network. 50 and 152 fit both forms (6·8 + 2 and 6·25 + 2): bare,
# they mean the ImageNet form; "_cifar" always asks for the CIFAR form.
LISTED_DEPTHS = (20, 32, 44, 56, 110, 152, 1202)
IMAGENET_DEPTHS = (50, 152)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def _cifar_name(family, depth):
    return f"{family}{depth}_cifar" if depth in IMAGENET_DEPTHS else f"{family}{depth}"


def list_models(pattern="*"):
    """Names of the published depths that match a shell-style pattern; every other depth of 6n + 2 can be created too."""
    names = [_cifar_name(family, depth) for family in ("plain", "resnet") for depth in LISTED_DEPTHS]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def parse_name(name):
    """Splits "resnet56" into `("resnet", 56)`.

    Raises:
        UserError: no such network; names the nearest valid one.
    """
    match = re.fullmatch(r"(plain|resnet)([1-9][0-9]{0,5})(_cifar)?", name)
    if not match:
        nearest = difflib.get_close_matches(name, list_models(), n=1, cutoff=0)[0]
        raise UserError(
            f"There is no network {name!r}; allowed are plainN and resnetN with N = 6n + 2 layers; the nearest is {nearest!r}."
        )
    family, depth, suffix = match[1], int(match[2]), match[3]
    nearest = _cifar_name(family, 6 * max(1, round((depth - 2) / 6)) + 2)
    if depth < 8 or depth % 6 != 2 or (depth in IMAGENET_DEPTHS and not suffix):
        raise UserError(
            f"There is no network {name!r}: the CIFAR form has 6n + 2 layers (8, 14, 20, …; 50 and 152 as resnet50_cifar and "
            f"resnet152_cifar); the nearest is {nearest!r}."
        )
    return family, depth


def create_model(name, num_classes, *, shortcut="A", widths=(16, 32, 64), dtype="float32", momentum=0.9, epsilon=1e-5):
    """Builds the Flax module of a network.

    Args:
        name: "plain20", "resnet56", "resnet152_cifar", …
        num_classes: at least two.
        shortcut: "A", "B" or "C" (He et al. 2015, section 4.1); plain networks have none.
        widths: filters of the three stages; with shortcut A they may not decrease.
        dtype: of activations: "float32", "bfloat16" or "float64"; logits and parameters are float32, or float64 with the last.
        momentum, epsilon: of batch norm, in Flax's convention.

    Raises:
        UserError: an unknown name or an option out of range.
    """
    family, depth = parse_name(name)
    if num_classes < 2:
        raise UserError(f"A classifier needs at least two classes; given were {num_classes}.")
    if shortcut not in SHORTCUTS:
        raise UserError(f"model.shortcut is {shortcut!r}; allowed are {', '.join(SHORTCUTS)}.")
    if dtype not in DTYPES:
        raise UserError(f"model.dtype is {dtype!r}; allowed are {', '.join(DTYPES)}.")
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise UserError("model.dtype is 'float64', which JAX allows only with JAX_ENABLE_X64=1 in the environment.")
    widths = tuple(widths)
    if len(widths) != 3 or not all(isinstance(width, int) and width > 0 for width in widths):
        raise UserError(f"model.widths is {widths}; allowed are three positive numbers of filters.")
    if family == "resnet" and shortcut == "A" and sorted(widths) != list(widths):
        raise UserError(f"model.widths is {widths}; with shortcut A, which pads channels, the widths may not decrease.")
    return ResNet(
        blocks_per_stage=(depth - 2) // 6,
        num_classes=num_classes,
        residual=family == "resnet",
        shortcut=shortcut,
        widths=widths,
        numerics=Numerics(DTYPES[dtype], momentum, epsilon),
    )
