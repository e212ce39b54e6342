"""Which layers of a network are trained, and how fast: what fine-tuning chooses.

Layers are grouped in stages, from the images to the classes: stem, stage1 … stage4 (plain and residual networks), block1 …
block5, fc6, fc7 (VGG), or inception3 … inception5 (GoogLeNet), and head, to which auxiliary heads belong.
"""

import fnmatch
import re
from typing import NamedTuple

import optax
from flax import traverse_util

from plain56.errors import UserError

ORDER = ("stem", "stage", "block", "inception", "fc", "head_norm", "head")
STAGES = (
    (r"stem_.*|conv\d.*", "stem"),
    (r"(stage\d|block\d|inception\d|fc\d|head_norm).*", r"\1"),
    (r"head|auxiliary.*", "head"),
)


class Stage(NamedTuple):
    """A stage of a network: its trained and all its parameters, and its learning rate as a multiple of the last layer's."""

    name: str
    trained: int
    parameters: int
    rate: float


def stage_of(layer):
    """The stage of a layer, by the name that it has in the parameters."""
    for pattern, name in STAGES:
        match = re.fullmatch(pattern, layer)
        if match:
            return match.expand(name)
    raise ValueError(f"no stage has a layer {layer!r}")


def _place(stage):
    kind, number = re.fullmatch(r"([a-z_]+?)(\d?)", stage).groups()
    return ORDER.index(kind), number


def is_trained(options):
    """A function of a parameter's path, or None where all are trained.

    Args:
        options: the config's `transfer` section. The last layer is trained in any case.
    """
    if options.probe:
        return lambda path: path[0] == "head"
    if not (options.freeze or options.freeze_scales):
        return None

    def decide(path):
        layer, stage = path[0], stage_of(path[0])
        if stage == "head":
            return True
        frozen = any(fnmatch.fnmatchcase(name, pattern) for pattern in options.freeze for name in (layer, stage))
        return not (frozen or (options.freeze_scales and "norm" in path[-2]))

    return decide


def split(params, decide):
    """Parameters as the trained ones and the others, two dicts by path; `decide` is of `is_trained`."""
    flat = traverse_util.flatten_dict(params)
    trained = {path: leaf for path, leaf in flat.items() if decide(path)}
    return trained, {path: leaf for path, leaf in flat.items() if path not in trained}


def rates(layers, factor):
    """The learning rates of a network's stages, from the images to the classes, as multiples of the last layer's, by name.

    Each stage's is `factor` times that of the stage after it, whether that is trained or not.
    """
    stages = sorted({stage_of(layer) for layer in layers}, key=_place)
    return {stage: factor ** (len(stages) - 1 - i) for i, stage in enumerate(stages)}


def describe(params, options):
    """The network's `Stage`s, from the images to the classes.

    Args:
        params: parameters or their shapes.
        options: the config's `transfer` section.

    Raises:
        UserError: a pattern of `freeze` that no layer fits.
    """
    names = {name for layer in params for name in (layer, stage_of(layer))}
    unused = [pattern for pattern in options.freeze if not fnmatch.filter(names, pattern)]
    multiples = rates(params, options.rate_factor)
    if unused:
        raise UserError(
            f"transfer.freeze has {unused[0]!r}, which is no part of the network; its stages are {', '.join(multiples)}, and "
            "patterns may name layers, too."
        )
    decide = is_trained(options) or (lambda path: True)
    counts = {stage: [0, 0] for stage in multiples}
    for path, leaf in traverse_util.flatten_dict(params).items():
        count = counts[stage_of(path[0])]
        count[0] += leaf.size * decide(path)
        count[1] += leaf.size
    return [Stage(stage, *counts[stage], rate) for stage, rate in multiples.items()]


def scale_by_stage(factor):
    """An optax transformation that multiplies updates by `rates`; its update takes the names of all `layers`."""

    def update(updates, state, params=None, *, layers, **unused):
        multiples = rates(layers, factor)
        return traverse_util.path_aware_map(lambda path, leaf: leaf * multiples[stage_of(path[0])], updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
