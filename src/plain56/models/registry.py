"""Networks by name: the only look-up by name in the project."""

import difflib
import fnmatch
import re

import jax
import jax.numpy as jnp

from plain56.errors import UserError
from plain56.models import googlenet, resnet, vgg
from plain56.models.layers import Numerics

# Table 6's depths, and 152, the depth of the deepest ImageNet network. 50 and 152 fit both forms (6·8 + 2 and 6·25 + 2): bare,
# they mean the ImageNet form; "_cifar" always asks for the CIFAR form.
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 152, 1202)
PLAIN_IMAGENET_DEPTHS = (18, 34)
VGG_NAMES = ("vgg11", "vgg11_bn", "vgg11_lrn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg16_1x1", "vgg19", "vgg19_bn")
GOOGLENET_NAMES = ("googlenet", "googlenet_bn")
MOST_FILTERS = 1 << 16
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
# As published; None stands for these everywhere.
RESNET_OPTIONS = ("shortcut", "widths", "bottleneck_stride", "pre_activation", "normalise", "zero_init", "remat")
OPTIONS = {
    "plain": RESNET_OPTIONS,
    "resnet": RESNET_OPTIONS,
    "vgg": ("form", "dropout"),
    "googlenet": ("form", "dropout", "auxiliary"),
}


def _cifar_name(family, depth):
    return f"{family}{depth}_cifar" if depth in resnet.IMAGENET_BLOCKS else f"{family}{depth}"


def list_models(pattern="*"):
    """Names of the published networks that match a shell-style pattern.

    Beside them, every depth of 6n + 2 can be created in the CIFAR form, and plain bottleneck networks of 50, 101 and 152 layers.
    """
    names = [_cifar_name(family, depth) for family in ("plain", "resnet") for depth in CIFAR_DEPTHS]
    names += [f"plain{depth}" for depth in PLAIN_IMAGENET_DEPTHS] + [f"resnet{depth}" for depth in resnet.IMAGENET_BLOCKS]
    return [name for name in (*names, *VGG_NAMES, *GOOGLENET_NAMES) if fnmatch.fnmatchcase(name, pattern)]


def parse_name(name):
    """Splits "resnet56" into `("resnet", 56)`, "vgg16_bn" into `("vgg", 16)`; GoogLeNet has 22 layers.

    Raises:
        UserError: no such network; names the nearest valid one.
    """
    if name in VGG_NAMES:
        return "vgg", int(re.search(r"\d+", name)[0])
    if name in GOOGLENET_NAMES:
        return "googlenet", 22
    match = re.fullmatch(r"(plain|resnet)([1-9][0-9]{0,3})(_cifar)?", name)
    if not match:
        nearest = difflib.get_close_matches(name, list_models(), n=1, cutoff=0)[0]
        raise UserError(
            f"There is no network {name!r}; allowed are {', '.join((*VGG_NAMES, *GOOGLENET_NAMES))}, plainN and resnetN with N = "
            f"18, 34, 50, 101, 152 (ImageNet form) or 6n + 2 (CIFAR form); the nearest is {nearest!r}."
        )
    family, depth, suffix = match[1], int(match[2]), match[3]
    if (depth in resnet.IMAGENET_BLOCKS and not suffix) or (depth >= 8 and depth % 6 == 2):
        return family, depth
    nearest = _cifar_name(family, 6 * max(1, round((depth - 2) / 6)) + 2)
    raise UserError(
        f"There is no network {name!r}: the ImageNet form has 18, 34, 50, 101 or 152 layers, and the CIFAR form 6n + 2 (8, 14, "
        f"20, …; 50 and 152 as {family}50_cifar and {family}152_cifar); the nearest is {nearest!r}."
    )


def is_cifar_form(name):
    """Whether a plain or residual network is in the CIFAR form; of another network, False."""
    family, depth = parse_name(name)
    return family in ("plain", "resnet") and (depth not in resnet.IMAGENET_BLOCKS or name.endswith("_cifar"))


def create_model(name, num_classes, *, dtype="float32", momentum=0.9, epsilon=None, **options):
    """Builds the Flax module of a network.

    Args:
        name: of `list_models()`, or another depth: "plain20", "resnet56", "resnet152_cifar", "resnet50", "vgg16_bn", "googlenet".
        num_classes: at least two.
        dtype: of activations: "float32", "bfloat16" or "float64"; logits and parameters are float32, or float64 with the last.
        momentum, epsilon: of batch norm, in Flax's convention; epsilon is 1e-5 where it is None, and 1e-3 in googlenet_bn.
        options: by kind of network; None, or left out, means as published.
            Plain and residual networks: `shortcut` "A" (CIFAR form), "B" (ImageNet form) or "C" (He et al. 2015, section 4.1);
            `widths`, the filters of each stage; `bottleneck_stride` "1x1" (the paper's and the default) or "3x3"
            (torchvision's, "v1.5"); `pre_activation`, `zero_init` and `remat`, False; `normalise`, True.
            VGG and GoogLeNet: `form`, see there; `dropout`; GoogLeNet's `auxiliary`, True.

    Raises:
        UserError: an unknown name, an option that the network does not have, or a value out of range.
    """
    family = parse_name(name)[0]
    if num_classes < 2:
        raise UserError(f"A classifier needs at least two classes; given were {num_classes}.")
    if dtype not in DTYPES:
        raise UserError(f"model.dtype is {dtype!r}; allowed are {', '.join(DTYPES)}.")
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise UserError("model.dtype is 'float64', which JAX allows only with JAX_ENABLE_X64=1 in the environment.")
    options = {key: value for key, value in options.items() if value is not None}
    for key in options:
        if key not in OPTIONS[family]:
            raise UserError(
                f"model.{key} is {options[key]!r}, which {name} does not have; its options are {', '.join(OPTIONS[family])}."
            )
    numerics = Numerics(DTYPES[dtype], momentum, (1e-3 if name == "googlenet_bn" else 1e-5) if epsilon is None else epsilon)
    build = {"vgg": _vgg, "googlenet": _googlenet}.get(family, _resnet)
    return build(name, num_classes, numerics, **options)


def _resnet(
    name,
    num_classes,
    numerics,
    shortcut=None,
    widths=None,
    bottleneck_stride="1x1",
    pre_activation=False,
    normalise=True,
    zero_init=False,
    remat=False,
):
    family, depth = parse_name(name)
    form = "cifar" if is_cifar_form(name) else "imagenet"
    shortcut = {"cifar": "A", "imagenet": "B"}[form] if shortcut is None else shortcut
    widths = tuple(resnet.WIDTHS[form] if widths is None else widths)
    _check("shortcut", shortcut, resnet.SHORTCUTS)
    _check("bottleneck_stride", bottleneck_stride, resnet.BOTTLENECK_STRIDES)
    stages = len(resnet.WIDTHS[form])
    if len(widths) != stages or not all(isinstance(width, int) and 0 < width <= MOST_FILTERS for width in widths):
        raise UserError(f"model.widths is {widths}; allowed are {stages} numbers of filters from 1 to {MOST_FILTERS}.")
    if family == "resnet" and shortcut == "A" and sorted(widths) != list(widths):
        raise UserError(f"model.widths is {widths}; with shortcut A, which pads channels, the widths may not decrease.")
    if family == "plain" and zero_init:
        raise UserError(
            "model.zero_init is True; a plain network whose last scales are zero has no gradient, so allowed is False."
        )
    if zero_init and not normalise:
        raise UserError("model.zero_init is True and model.normalise False; without batch norm no scale can begin at zero.")
    if pre_activation and zero_init:
        raise UserError(
            "model.pre_activation and model.zero_init are True; the norm at zero would stand before the last convolution, which "
            "then has no gradient, so allowed is one of them."
        )
    return resnet.ResNet(
        blocks=resnet.IMAGENET_BLOCKS[depth] if form == "imagenet" else ((depth - 2) // 6,) * 3,
        num_classes=num_classes,
        block=resnet.BottleneckBlock if form == "imagenet" and depth in resnet.BOTTLENECK_DEPTHS else resnet.BasicBlock,
        form=form,
        residual=family == "resnet",
        shortcut=shortcut,
        widths=widths,
        bottleneck_stride=bottleneck_stride,
        pre_activation=pre_activation,
        normalise=normalise,
        zero_init=zero_init,
        remat=remat,
        numerics=numerics,
    )


def _vgg(name, num_classes, numerics, form="imagenet", dropout=0.5):
    _check("form", form, vgg.FORMS)
    _check_dropout(dropout)
    configuration = vgg.CONFIGURATIONS[name.removesuffix("_bn").removesuffix("_lrn")]
    return vgg.VGG(configuration, num_classes, name.endswith("_bn"), name.endswith("_lrn"), form, dropout, numerics)


def _googlenet(name, num_classes, numerics, form="imagenet", dropout=None, auxiliary=True):
    _check("form", form, googlenet.FORMS)
    normalise = name == "googlenet_bn"
    dropout = (0.2 if normalise else 0.4) if dropout is None else dropout
    _check_dropout(dropout)
    return googlenet.GoogLeNet(num_classes, normalise, form, auxiliary, dropout, numerics)


def _check(key, value, allowed):
    if value not in allowed:
        raise UserError(f"model.{key} is {value!r}; allowed are {', '.join(allowed)}.")


def _check_dropout(rate):
    if not 0 <= rate < 1:
        raise UserError(f"model.dropout is {rate!r}; allowed are numbers from 0 up to, but not including, 1.")
