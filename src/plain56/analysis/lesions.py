"""Lesions: blocks of a trained network left out, or in another order, without training it again.

Veit, Wilber, Belongie 2016, "Residual networks behave like ensembles of relatively shallow networks": residual networks hardly
notice that a block is gone, VGG does not survive it. Blocks are named by stage and number, both as they are counted in the
paper's tables: (1, 0) is the first block of stage 1.
"""

import itertools

import jax
import numpy as np

from plain56.errors import UserError
from plain56.models import stack


def blocks(model):
    """All blocks of a plain or residual network, from the images to the classes, as `(stage, number)`."""
    return [(stage, number) for stage, count in enumerate(model.blocks, start=1) for number in range(count)]


def _shape_keeping(model, layers):
    return [(stage, number) for stage, number in blocks(model) if number or not stack.first_is_alone(layers, f"stage{stage}")]


def removable(model, variables):
    """The blocks that `without` can leave out: all of a residual network, and of a plain one those that keep the shape."""
    return blocks(model) if model.block_options.residual else _shape_keeping(model, variables["params"])


def without(model, variables, block):
    """A network and its variables, {"params": …, "batch_stats": …}, without a block; a residual block's shortcut stays.

    Raises UserError for a block of a plain network that changes the shape.
    """
    if model.block_options.residual:
        return model, silence(model, variables, [block])
    stage, number = block
    if block not in removable(model, variables):
        raise UserError(f"Block {number} of stage {stage} changes the shape; a plain network cannot be without it.")
    order = [other for other in range(model.blocks[stage - 1]) if other != number]
    fewer = tuple(n - (i == stage) for i, n in enumerate(model.blocks, start=1))
    # With the numbers that follow from the depth that it was trained with.
    return model.clone(blocks=fewer, block_options=model.options), _with_order(variables, stage, order)


def silence(model, variables, silenced):
    """Variables of a residual network in which the branches of some blocks give nothing, so that only the shortcuts are left."""
    last, options = len(model.block(1).convolutions()), model.block_options
    normalized = options.normalization != "none" and not options.pre_activation
    zeroed = (f"norm{last}",) if normalized else (f"conv{last}", f"bias{last}b")
    names = {f"stage{stage}.{number}" for stage, number in silenced}

    def change(leaves):
        return {path: np.zeros_like(v) if path[0] in names and path[-2] in zeroed else v for path, v in leaves.items()}

    return variables | {"params": _changed(variables["params"], change)}


def neighbors(model, variables):
    """All pairs of blocks that follow each other, keep the shape, and may so change places."""
    return [(a, b) for a, b in itertools.pairwise(_shape_keeping(model, variables["params"])) if a[0] == b[0]]


def swapped(model, variables, first, second):
    """Variables in which two blocks of a stage, which both keep the shape, have changed places."""
    (stage, one), (_, other) = first, second
    order = list(range(model.blocks[stage - 1]))
    order[one], order[other] = other, one
    return _with_order(variables, stage, order)


def _with_order(variables, stage, order):
    """Variables whose blocks of a stage are those of these numbers, in this order."""
    names = {f"stage{stage}.{number}": f"stage{stage}.{new}" for new, number in enumerate(order)}

    def change(leaves):
        kept = {path: leaf for path, leaf in leaves.items() if path[0] in names or not path[0].startswith(f"stage{stage}.")}
        return {(names.get(path[0], path[0]), *path[1:]): leaf for path, leaf in kept.items()}

    return {name: _changed(collection, change) for name, collection in variables.items()}


def _changed(collection, change):
    """A collection of variables whose unstacked leaves a function has changed."""
    return stack.stack(change(stack.unstack(jax.device_get(collection))), collection)
