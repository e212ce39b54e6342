"""Lesions: blocks of a trained network left out, or in another order, without training it again.

Veit, Wilber, Belongie 2016, "Residual networks behave like ensembles of relatively shallow networks": residual networks hardly
notice that a block is gone, VGG does not survive it. Blocks are named by stage and number, both as they are counted in the
paper's tables: (1, 0) is the first block of stage 1.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import traverse_util

from plain56.errors import UserError


def blocks(model):
    """All blocks of a plain or residual network, from the images to the classes, as `(stage, number)`."""
    return [(stage, number) for stage, count in enumerate(model.blocks, start=1) for number in range(count)]


def removable(model, variables):
    """The blocks that `without` can leave out: all of a residual network, and of a plain one those that keep the shape."""
    if model.residual:
        return blocks(model)
    return [(stage, number) for stage, number in blocks(model) if number >= _alone(variables, stage)]


def without(model, variables, block):
    """A network and its variables with one block left out: of a residual one the branch, so that its shortcut stays.

    Args:
        variables: {"params": …, "batch_stats": …}.

    Raises:
        UserError: a plain network's block that changes the shape.
    """
    if model.residual:
        return model, silence(model, variables, [block])
    stage, number = block
    place = number - _alone(variables, stage)
    if place < 0:
        raise UserError(f"Block {number} of stage {stage} changes the shape; a plain network cannot be without it.")
    count = model.blocks[stage - 1] - _alone(variables, stage)
    kept = jnp.array([i for i in range(count) if i != place], jnp.int32)
    fewer = tuple(n - (i == stage) for i, n in enumerate(model.blocks, start=1))
    return model.clone(blocks=fewer), _with_order(variables, stage, kept)


def silence(model, variables, silenced):
    """Variables of a residual network in which the branches of some blocks give nothing, so that the shortcuts alone are left."""
    flat = traverse_util.flatten_dict(variables["params"])
    last = len(model.block(1).layers())
    zeroed = {f"norm{last}"} if model.normalise and not model.pre_activation else {f"conv{last}"}
    for stage, number in silenced:
        alone = _alone(variables, stage)
        name, place = (f"stage{stage}_first", ...) if number < alone else (f"stage{stage}", number - alone)
        for path, leaf in flat.items():
            if path[0] == name and path[-2] in zeroed:
                flat[path] = jnp.asarray(leaf).at[place].set(0)
    return variables | {"params": traverse_util.unflatten_dict(flat)}


def neighbours(model, variables):
    """All pairs of blocks that follow each other, keep the shape, and may so change places."""
    whole = [(stage, number) for stage, number in blocks(model) if number >= _alone(variables, stage)]
    return [(a, b) for a, b in itertools.pairwise(whole) if a[0] == b[0]]


def swapped(variables, first, second):
    """Variables in which two blocks of a stage, which both keep the shape, have changed places."""
    (stage, one), (_, other) = first, second
    order = list(range(jax.tree.leaves(variables["params"][f"stage{stage}"])[0].shape[0]))
    alone = _alone(variables, stage)
    order[one - alone], order[other - alone] = order[other - alone], order[one - alone]
    return _with_order(variables, stage, jnp.array(order, jnp.int32))


def _alone(variables, stage):
    """How many blocks of a stage stand by themselves, before those that are stacked: 1 where the first changes the shape."""
    return int(f"stage{stage}_first" in variables["params"])


def _with_order(variables, stage, order):
    """Variables whose stacked blocks of a stage are the ones at these places, in this order."""
    name = f"stage{stage}"

    def arranged(collection):
        if name not in collection:
            return collection
        if not len(order):
            return {layer: leaves for layer, leaves in collection.items() if layer != name}
        return collection | {name: jax.tree.map(lambda leaf: jnp.asarray(leaf)[order], collection[name])}

    return {key: arranged(collection) for key, collection in variables.items()}
