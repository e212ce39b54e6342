"""What training carries from step to step, and the optimiser that changes it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util

from plain56.training.transfer import scale_by_stage, split


class TrainState(struct.PyTreeNode):
    """Parameters, batch statistics ({} without batch norm) and optimiser state after `step` updates (int32)."""

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer_state: Any


def make_optimizer(options, schedule, rate_factor=1.0):
    """SGD with momentum, v ← momentum · v + (gradient + weight_decay · w), w ← w − learning rate · v.

    Each stage's learning rate is `rate_factor` times that of the stage after it, see `transfer`.

    Weight decay is L2 inside the gradient, before momentum. It acts on kernels; with `decay_all` on every parameter, as in
    Caffe. Kernels are told by name: stacked blocks give biases and batch-norm scales a second axis.
    """
    mask = None if options.decay_all else _is_kernel
    return optax.chain(
        optax.add_decayed_weights(options.weight_decay, mask),
        optax.sgd(schedule, momentum=options.momentum),
        *([] if rate_factor == 1 else [scale_by_stage(rate_factor)]),
    )


def _is_kernel(params):
    return traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", params)


def copy_layers(tree, source):
    """`tree` with the layers of `source` that have the same name and the same shapes, and the names of those layers."""
    new, old = traverse_util.flatten_dict(tree), traverse_util.flatten_dict(source)
    shared = {layer for layer, shapes in _layers(new).items() if _layers(old).get(layer) == shapes}
    copied = {path: old[path].astype(leaf.dtype) if path[:-1] in shared else leaf for path, leaf in new.items()}
    return traverse_util.unflatten_dict(copied), ["/".join(layer) for layer in _layers(new) if layer in shared]


def _layers(flat):
    layers = {}
    for (*layer, name), leaf in flat.items():
        layers.setdefault(tuple(layer), {})[name] = leaf.shape
    return layers


def create_train_state(model, optimizer, seed, image_shape, is_trained=None):
    """Initial state, a pure function of the seed.

    Args:
        image_shape: `(H, W, C)`.
        is_trained: of `transfer.is_trained`; the optimiser has no state for the other parameters.
    """
    variables = model.init(jax.random.key(seed), jnp.zeros((1, *image_shape)))
    params = variables["params"]
    trained = params if is_trained is None else traverse_util.unflatten_dict(split(params, is_trained)[0])
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(trained))
