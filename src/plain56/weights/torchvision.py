"""torchvision's names and layouts for our variables.

One table says where each tensor of torchvision's stands among our variables. It is made by walking our own tree, so import and
export share it and no layer is listed twice.

    torchvision      ours
    resnetN          resnetN with model.bottleneck_stride "3x3", which changes no parameter
    vggN, vggN_bn    the same
    googlenet        googlenet_bn

Running variances are taken as they are: PyTorch keeps the unbiased ones, and the published networks were measured with them.
The published GoogLeNet takes images of mean and deviation 0.5 in every channel, the other networks those of ImageNet
(torchvision's `transform_input` turns the one into the other).
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from plain56.errors import UserError
from plain56.models import create_model, parse_name, resnet, vgg

NAMES = (
    *(f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")),
    "googlenet_bn",
    *(f"resnet{depth}" for depth in resnet.IMAGENET_BLOCKS),
)
PARAMETERS = {"kernel": "weight", "bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}
IGNORED = "num_batches_tracked"
# Fully-connected layers that flatten a map: of 7×7 in VGG, of 4×4 in GoogLeNet's auxiliary heads.
FLATTENING = {"fc6": "7×7 map", "fc": "4×4 map"}
RESNET_STEM_AND_HEAD = {"stem_conv": "conv1", "stem_norm": "bn1", "head": "fc"}
SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_norm": "downsample.1"}
VGG_CLASSIFIER = {"fc6": "classifier.0", "fc7": "classifier.3", "head": "classifier.6"}
GOOGLENET = {
    "conv2_reduce": "conv2",
    "conv2": "conv3",
    "auxiliary4a": "aux1",
    "auxiliary4d": "aux2",
    "head": "fc",
}
INSIDE_GOOGLENET = {
    "conv1x1": "branch1",
    "reduce3x3": "branch2.0",
    "conv3x3": "branch2.1",
    "reduce5x5": "branch3.0",
    "conv5x5": "branch3.1",
    "project_pool": "branch4.1",
    "norm": "bn",
    "fc": "fc1",
    "head": "fc2",
}


class Place(NamedTuple):
    """Where one tensor of torchvision's stands among our variables.

    `block` is its index along the leading axis of our leaf where blocks of equal shape are stacked, else None. `layout` is a key
    of `LAYOUTS`, and `shape` is torchvision's.
    """

    path: tuple[str, ...]
    block: int | None
    name: str
    layout: str
    shape: tuple[int, ...]


def _map_to_ours(side, tensor):
    """torchvision flattens a map as C, H, W; ours flatten it as H, W, C."""
    features = tensor.shape[0]
    return tensor.reshape(features, -1, side, side).transpose(2, 3, 1, 0).reshape(-1, features)


def _map_to_theirs(side, kernel):
    features = kernel.shape[-1]
    return kernel.reshape(side, side, -1, features).transpose(3, 2, 0, 1).reshape(features, -1)


# By layout: from torchvision's tensor to ours, and back.
LAYOUTS = {
    "convolution": (lambda tensor: tensor.transpose(2, 3, 1, 0), lambda kernel: kernel.transpose(3, 2, 0, 1)),
    "dense": (np.transpose, np.transpose),
    "vector": (np.asarray, np.asarray),
    "7×7 map": (functools.partial(_map_to_ours, 7), functools.partial(_map_to_theirs, 7)),
    "4×4 map": (functools.partial(_map_to_ours, 4), functools.partial(_map_to_theirs, 4)),
}


def places(name, variables):
    """The table: a `Place` for every tensor of torchvision's network.

    Args:
        name: of `NAMES`.
        variables: ours, {"params": …, "batch_stats": …} or one of the two, or their shapes (`jax.ShapeDtypeStruct`).
    """
    for path, leaf in traverse_util.flatten_dict(variables).items():
        collection, *modules, parameter = path
        stacked = re.fullmatch(r"stage\d", modules[0])
        shape = leaf.shape[1:] if stacked else leaf.shape
        layout = {1: "vector", 2: FLATTENING.get(modules[-1], "dense"), 4: "convolution"}[len(shape)]
        # (H, W, in, out) → (out, in, H, W), and (in, out) → (out, in).
        theirs = shape[:-3:-1] + shape[:-2]
        for block in range(leaf.shape[0]) if stacked else (None,):
            # The block that changes the shape stands by itself, before the stacked ones.
            position = block + (f"{modules[0]}_first" in variables[collection]) if stacked else 0
            module = _module(name, modules, position)
            yield Place(path, block, f"{module}.{PARAMETERS[parameter]}", layout, theirs)


def _module(name, modules, position=0):
    """torchvision's name for one of our modules; `position` is the block's in its stage."""
    family = parse_name(name)[0]
    first, *rest = modules
    if family == "vgg":
        return VGG_CLASSIFIER.get(first) or f"features.{_feature_indices(name)[first]}"
    if family == "googlenet":
        return ".".join([GOOGLENET.get(first, first), *(INSIDE_GOOGLENET.get(module, module) for module in rest)])
    if first in RESNET_STEM_AND_HEAD:
        return RESNET_STEM_AND_HEAD[first]
    (layer,) = rest
    return f"layer{first[len('stage')]}.{position}.{SHORTCUT.get(layer) or layer.replace('norm', 'bn')}"


@functools.cache
def _feature_indices(name):
    """Where VGG's convolutions and norms stand in torchvision's `features`, which counts ReLUs and pools, too."""
    normalise = name.endswith("_bn")
    indices, index = {}, 0
    for block, sizes in enumerate(vgg.CONFIGURATIONS[name.removesuffix("_bn")], start=1):
        for i in range(1, len(sizes) + 1):
            indices[f"block{block}_conv{i}"] = index
            indices[f"block{block}_norm{i}"] = index + 1
            index += 3 if normalise else 2
        index += 1
    return indices


def from_torchvision(name, tensors):
    """Our variables from torchvision's tensors.

    Args:
        name: ours, of `NAMES`.
        tensors: arrays by torchvision's names, as in a `state_dict`. The last layer's bias tells the number of classes.
            GoogLeNet may come without auxiliary heads, and then has none here.

    Returns:
        `{"params": …, "batch_stats": …}` of `create_model(name, num_classes)`, NumPy arrays in float32 that may share memory
        with `tensors`; without batch norm `batch_stats` is empty.

    Raises:
        UserError: torchvision has no such network, or a tensor is missing, left over, or of another shape.
    """
    if name not in NAMES:
        raise UserError(f"torchvision has no weights for {name!r}; it has them for {', '.join(NAMES)}.")
    tensors = {key: np.asarray(tensor) for key, tensor in tensors.items() if not key.endswith(IGNORED)}
    table = list(places(name, _variable_shapes(name, tensors)))
    _check(name, table, tensors)
    leaves = {}
    for place in table:
        to_ours, _ = LAYOUTS[place.layout]
        leaves.setdefault(place.path, []).append(to_ours(tensors[place.name]))
    stacked = {place.path for place in table if place.block is not None}
    leaves = {
        path: np.stack(values, dtype=np.float32) if path in stacked else np.asarray(values[0], np.float32)
        for path, values in leaves.items()
    }
    return {"batch_stats": {}, **traverse_util.unflatten_dict(leaves)}


def _variable_shapes(name, tensors):
    """Shapes of the variables of our network with as many classes as the tensors have."""
    bias = tensors.get(f"{_module(name, ['head'])}.bias")
    # Where the bias is missing, the check says so, whatever the number of classes is.
    num_classes = 2 if bias is None else bias.size
    options = {"auxiliary": any(key.startswith("aux") for key in tensors)} if name == "googlenet_bn" else {}
    model = create_model(name, num_classes, **options)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))


def to_torchvision(name, variables):
    """torchvision's tensors from our variables, NumPy arrays by its names, without `num_batches_tracked`.

    Args:
        name: ours, of `NAMES`.
        variables: {"params": …, "batch_stats": …} or one of the two.
    """
    leaves = traverse_util.flatten_dict(variables)
    tensors = {}
    for place in places(name, variables):
        _, to_theirs = LAYOUTS[place.layout]
        leaf = np.asarray(leaves[place.path])
        tensors[place.name] = to_theirs(leaf if place.block is None else leaf[place.block])
    return tensors


def _check(name, table, tensors):
    """Every tensor is there once, has the right shape, and no other one is."""
    needed = {place.name for place in table}
    for problem, keys in (("missing", needed - tensors.keys()), ("left over", tensors.keys() - needed)):
        if keys:
            more = f" and {len(keys) - 1} more are" if len(keys) > 1 else " is"
            raise UserError(f"{min(keys)!r}{more} {problem} in the tensors of torchvision's {name}.")
    for place in table:
        shape = tensors[place.name].shape
        if shape != place.shape:
            raise UserError(f"{place.name!r} of torchvision's {name} has shape {shape}; needed is {place.shape}.")
