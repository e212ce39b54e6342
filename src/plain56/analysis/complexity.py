"""What a network costs: parameters and multiply-adds, stage by stage, read off the traced program."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Stage(NamedTuple):
    """A top-level part of a network: its output `(H, W, C)` (or `(C,)`), trained values, and multiply-adds for one image."""

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def stages(model, image_shape):
    """The network's stages in the order of computation, from abstract values: nothing is computed.

    Args:
        image_shape: `(H, W, C)`.

    Raises:
        UserError: the image is too small for the network.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    traced = jax.make_jaxpr(lambda variables, images: model.apply(variables, images).logits)(variables, images)
    costs, shapes = {}, {}
    _walk(traced.jaxpr, 1, "", costs, shapes)
    parameters = {}
    for part, values in variables["params"].items():
        parameters[_stage(part)] = parameters.get(_stage(part), 0) + sum(leaf.size for leaf in jax.tree.leaves(values))
    rows = {}
    for part, cost in costs.items():
        name = _stage(part)
        earlier = rows[name].multiply_adds if name in rows else 0
        rows[name] = Stage(name, shapes[part][1:], parameters[name], earlier + cost)
    return list(rows.values())


def _stage(part):
    """The stage that a top-level module belongs to: "stage2_first" is a block of stage2, "stem_conv" a layer of the stem."""
    return part.partition("_")[0]


def count_multiply_adds(model, image_shape):
    """Multiply-adds of convolutions and matrix products in one forward pass of one image."""
    return sum(stage.multiply_adds for stage in stages(model, image_shape))


def _walk(jaxpr, repeats, outer, costs, shapes):
    """Adds up multiply-adds by the top-level module they were traced in; a scan's body counts as often as it runs."""
    for equation in jaxpr.eqns:
        path = "/".join(filter(None, (outer, str(equation.source_info.name_stack))))
        inner_repeats = repeats * equation.params.get("length", 1) if equation.primitive.name == "scan" else repeats
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                _walk(inner, inner_repeats, path, costs, shapes)
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            cost = equation.outvars[0].aval.size * math.prod(kernel[:-1])
        elif equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            cost = equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        else:
            continue
        part = path.split("/")[1]
        costs[part] = costs.get(part, 0) + cost * repeats
        shapes[part] = equation.outvars[0].aval.shape
