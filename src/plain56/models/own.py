"""A network of a user's own: a function `(num_classes, numerics, **model.options) -> module`, named as `package.module:function`.

The module's call is `(images [N, H, W, C], train=False)` and returns `Output(logits)`, as in the networks here.
Stacked blocks, as of `layers.scan_blocks`, are top-level layers called "stage1", "stage2", …, and no other layer is called so.
What takes off the last layer (fine-tuning, probes, exported weights) looks for it under the name "head".
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from plain56 import references
from plain56.errors import UserError
from plain56.models import stack
from plain56.models.layers import Output

KEPT = ("params", "batch_stats")  # the collections that training carries from step to step


def is_own(name):
    """Whether a network's name is that of a user's own; nothing is imported."""
    return ":" in name


def build(name, num_classes, numerics, options):
    """The module of a user's function; raises UserError as `references.call`, or if it is no module."""
    model = references.call(name, "model.name", (num_classes, numerics), options, "model.options")
    if not isinstance(model, nn.Module):
        raise UserError(f"{name} must return a Flax module, not {type(model).__name__}.")
    return model


def check(name, model, num_classes, image_shape):
    """Raises UserError where a module of a user's own breaks the rules above for images of `image_shape` `(H, W, C)`.

    Networks that ship keep them, and are not checked.
    """
    if not is_own(name):
        return
    images, single = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32), {}

    def watch(call, arguments, named, context):
        result = call(*arguments, **named)
        # A module under `nn.scan` sees the parameters of one block.
        seen = context.module.variables.get("params", {})
        single.update({(*context.module.path, key): leaf.ndim for key, leaf in seen.items() if hasattr(leaf, "ndim")})
        return result

    with references.explaining(name):
        with nn.intercept_methods(watch):
            variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images), images)
        _check_variables(name, variables, single)
        for train in (False, True):
            _check_output(name, jax.eval_shape(_call(model, train), variables, images), num_classes)


def _call(model, train):
    def call(variables, images):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=train, mutable=["batch_stats"] if train else [], rngs=rngs)[0]

    return call


def _check_variables(name, variables, single):
    others = variables.keys() - set(KEPT)
    if others or "params" not in variables:
        raise UserError(f"{name} must have variables in {' and '.join(KEPT)}, not in {', '.join(sorted(others)) or 'none'}.")
    for path, leaf in traverse_util.flatten_dict(variables["params"]).items():
        if leaf.ndim - single.get(path, leaf.ndim) != stack.is_stacked(path):
            layer, names = f"The layer {path[0]} of {name}", "stage1, stage2, …"
            if stack.is_stacked(path):
                raise UserError(f"{layer} must hold stacked blocks, or have another name than {names}.")
            raise UserError(f"{layer} must be called one of {names}, since it holds stacked blocks ({'/'.join(path[:-1])}).")


def _check_output(name, output, num_classes):
    if not isinstance(output, Output):
        raise UserError(f"{name} must return plain56.models.Output(logits), not {type(output).__name__}.")
    shape, dtype = getattr(output.logits, "shape", None), getattr(output.logits, "dtype", None)
    if shape != (2, num_classes) or dtype not in (jnp.float32, jnp.float64):
        raise UserError(
            f"{name} must return logits of shape (images, {num_classes}) in float32, not {shape} in {dtype} for 2 images; "
            "layers.head makes such."
        )
