"""Keras Applications' names and conventions for our variables: VGG16 and VGG19, ResNet50, 101 and 152.

These networks were trained on blue, green and red values from 0 to 255 with the mean subtracted, as Caffe's were. Ours take red,
green and blue: the first kernel's input channels are reversed, and `MEAN` and `STD` say the rest.

In the ResNets each convolution before a batch norm has a bias, which ours do not have. Batch norm subtracts it again with the
mean, so it is moved into the running mean: mean − bias.
"""

import re

import numpy as np

from plain56.errors import UserError
from plain56.models import stack

NAMES = ("resnet50", "resnet101", "resnet152", "vgg16", "vgg19")
MEAN, STD = (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3
# As they were published: the stride in the first 1×1 convolution, and batch norm's epsilon.
RESNET_OPTIONS = {"bottleneck_stride": "1x1", "epsilon": 1.001e-5}
STEM_AND_HEAD = {"stem_conv": "conv1_conv", "stem_norm": "conv1_bn", "head": "predictions", "fc6": "fc1", "fc7": "fc2"}
VARIABLES = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def from_keras(name, tensors, shapes):
    """Our variables from the tensors of a Keras Applications network.

    Args:
        name: of `NAMES`.
        tensors: arrays by `LAYER/VARIABLE`, as "conv2_block1_0_bn/gamma".
        shapes: of our variables, `{"params": …, "batch_stats": …}`.

    Returns:
        Variables of these shapes, NumPy arrays in float32.

    Raises UserError if a tensor is missing, left over, or of another shape.
    """
    left, variables = dict(tensors), {}

    def take(key, shape):
        if key not in tensors:
            raise UserError(f"{key!r} is missing in the tensors for {name} by Keras' names.")
        tensor = np.asarray(left.pop(key), np.float32)
        if tensor.shape != shape:
            raise UserError(f"{key!r} for {name} must have shape {shape}, not {tensor.shape}.")
        return tensor

    for collection, tree in ({"batch_stats": {}} | shapes).items():
        leaves = {}
        for path, leaf in stack.unstack(tree).items():
            *modules, variable = path
            layer = _layer(modules)
            piece = take(f"{layer}/{VARIABLES[variable] if layer.endswith('_bn') else variable}", leaf.shape)
            if variable == "mean":
                with np.errstate(over="ignore"):
                    piece = piece - take(f"{layer.removesuffix('_bn')}_conv/bias", leaf.shape)
                if not np.isfinite(piece).all():
                    raise UserError(f"The mean and bias of {layer!r} for {name} are too large for float32.")
            if variable == "kernel" and modules[0] in ("stem_conv", "block1_conv1"):
                piece = piece[:, :, ::-1]
            leaves[path] = piece
        variables[collection] = stack.stack(leaves, tree)
    if left:
        more = f" and {len(left) - 1} more are" if len(left) > 1 else " is"
        raise UserError(f"{min(left)!r}{more} left over in the tensors for {name} by Keras' names.")
    return variables


def _layer(modules):
    """Keras' name for one of our modules, unstacked."""
    first, *rest = modules
    if not rest:
        return STEM_AND_HEAD.get(first, first)  # VGG's convolutions are named as ours
    (layer,) = rest
    kind, number = re.fullmatch(r"(?:shortcut_)?(conv|norm)(\d?)", layer).groups()
    stage, block = map(int, first.removeprefix("stage").split("."))
    return f"conv{stage + 1}_block{block + 1}_{number or 0}_{'bn' if kind == 'norm' else 'conv'}"
