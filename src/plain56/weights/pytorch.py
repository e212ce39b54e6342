"""PyTorch's names and layouts for our variables.

One table says where each tensor of a PyTorch network stands among our variables. It is made by walking our own tree, so import
and export share it and no layer is listed twice. Networks in the ImageNet form, VGG and GoogLeNet have torchvision's names
(timm's `resnet*.tv_in1k` have the same):

    torchvision      ours
    resnetN          resnetN with model.bottleneck_stride "3x3", which changes no parameter
    vggN, vggN_bn    the same
    googlenet        googlenet_bn

The CIFAR form has those of the PyTorch CIFAR ResNets that are widely used (`layer1.0.conv1`, `linear`, `layer2.0.shortcut.0` for
projections). What has no counterpart there is named alike. Networks that PyTorch does not have, such as a user's own, keep our
names and layouts: `stage1.0.conv1.kernel`.

Running variances are taken as they are: PyTorch keeps the unbiased ones, and the published networks were measured with them.
The published GoogLeNet takes images of mean and deviation 0.5 in every channel, the other networks those of ImageNet
(torchvision's `transform_input` turns the one into the other).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plain56.errors import UserError
from plain56.models import create_model, is_cifar_form, own, parse_name, stack, vgg

FAMILIES = ("plain", "resnet", "vgg", "googlenet")  # those that have names here
PARAMETERS = {"kernel": "weight", "bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}
IGNORED = "num_batches_tracked"
# Channels of the maps that fully-connected layers flatten: in VGG, and in GoogLeNet's auxiliary heads.
FLATTENED_CHANNELS = {"fc6": 512, "fc": 128}
RESNET = {"stem_conv": "conv1", "stem_norm": "bn1", "head_norm": "bn", "head": "fc"}
SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_norm": "downsample.1"}
CIFAR_HEAD = "linear"
CIFAR_SHORTCUT = {"shortcut_conv": "shortcut.0", "shortcut_norm": "shortcut.1"}
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
    """Where one of PyTorch's tensors stands among our variables.

    `path` is that of our leaf in its collection, unstacked. `shape` is PyTorch's. `side` is that of the square map that a
    fully-connected layer flattens, 0 for other layers, and None where the layout is ours.
    """

    collection: str
    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    side: int | None


def _to_ours(tensor, side):
    """PyTorch's layouts are (out, in, H, W) and (out, in), ours (H, W, in, out) and (in, out); it flattens maps as C, H, W."""
    if side is None:
        return tensor
    if side:
        features = tensor.shape[0]
        return tensor.reshape(features, -1, side, side).transpose(2, 3, 1, 0).reshape(-1, features)
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _to_theirs(kernel, side):
    if side is None:
        return kernel
    if side:
        features = kernel.shape[-1]
        return kernel.reshape(side, side, -1, features).transpose(3, 2, 0, 1).reshape(features, -1)
    return kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T


def places(name, variables):
    """The table: a `Place` for every tensor of PyTorch's network.

    Args:
        name: the network's.
        variables: ours, {"params": …, "batch_stats": …} or one of the two, or their shapes (`jax.ShapeDtypeStruct`).
    """
    named = parse_name(name)[0] in FAMILIES
    for collection, tree in variables.items():
        for path, leaf in stack.unstack(tree).items():
            if not named:
                yield Place(collection, path, ".".join(path), leaf.shape, None)
                continue
            *modules, parameter = path
            channels = FLATTENED_CHANNELS.get(modules[-1])
            side = math.isqrt(leaf.shape[0] // channels) if channels and parameter == "kernel" else 0
            # PyTorch's networks are for square images; for others ours are written as they are.
            side = side if side and side**2 * channels == leaf.shape[0] else 0
            shape = leaf.shape[:-3:-1] + leaf.shape[:-2]
            yield Place(collection, path, f"{_module(name, modules)}.{PARAMETERS.get(parameter, parameter)}", shape, side)


def _module(name, modules):
    """PyTorch's name for one of our modules, unstacked."""
    family = parse_name(name)[0]
    first, *rest = modules
    if family == "vgg":
        return VGG_CLASSIFIER.get(first) or f"features.{_feature_indices(name)[first]}"
    if family == "googlenet":
        return ".".join([GOOGLENET.get(first, first), *(INSIDE_GOOGLENET.get(module, module) for module in rest)])
    cifar = is_cifar_form(name)
    if first == "head" and cifar:
        return CIFAR_HEAD
    if first in RESNET:
        return RESNET[first]
    if not rest:  # what PyTorch's networks do not have keeps its name
        return first
    (layer,) = rest
    layer = (CIFAR_SHORTCUT if cifar else SHORTCUT).get(layer) or layer.replace("norm", "bn")
    return f"layer{first.removeprefix('stage')}.{layer}"


@functools.cache
def _feature_indices(name):
    """Where VGG's convolutions and norms stand in torchvision's `features`, which counts ReLUs and pools, too."""
    indices, index = {}, 0
    for block, sizes in enumerate(vgg.CONFIGURATIONS[name.removesuffix("_bn").removesuffix("_lrn")], start=1):
        for i in range(1, len(sizes) + 1):
            indices[f"block{block}_conv{i}"] = index
            indices[f"block{block}_norm{i}"] = index + 1
            index += 3 if name.endswith("_bn") else 2
        index += 1
    return indices


def from_pytorch(name, tensors, image_shape=(224, 224, 3), **options):
    """Our variables from the tensors of a PyTorch network.

    Args:
        name: the network's, as `create_model` takes it.
        tensors: arrays by PyTorch's names, as in a `state_dict`, with or without the prefix "module." of DataParallel. The last
            layer's bias tells the number of classes. GoogLeNet may come without auxiliary heads, and then has none here.
        image_shape: `(H, W, C)` that the network is for.
        options: of `create_model`.

    Returns:
        `{"params": …, "batch_stats": …}` of `create_model(name, num_classes, **options)`, NumPy arrays in float32 that may share
        memory with `tensors`; without batch norm `batch_stats` is empty.

    Raises UserError if a tensor is missing, left over, or of another shape.
    """
    given = [key for key in tensors if not key.endswith(IGNORED)]
    tensors = {key.removeprefix("module."): np.asarray(tensors[key]) for key in given}
    if len(tensors) < len(given):
        twice = next(key for key in given if f"module.{key}" in given)
        raise UserError(f"{twice!r} is there twice in the tensors for {name}, with the prefix 'module.' and without.")
    shapes = _variable_shapes(name, tensors, image_shape, options)
    table = list(places(name, shapes))
    _check(name, table, tensors)
    leaves = {"params": {}, "batch_stats": {}}
    for place in table:
        leaves[place.collection][place.path] = np.asarray(_to_ours(tensors[place.name], place.side), np.float32)
    return {collection: stack.stack(found, shapes.get(collection, {})) for collection, found in leaves.items()}


def _variable_shapes(name, tensors, image_shape, options):
    """Shapes of the variables of our network with as many classes as the tensors have."""
    named = parse_name(name)[0] in FAMILIES
    last = tensors.get(f"{_module(name, ['head'])}.bias" if named else "head.kernel")
    # Where it is missing or has no axes, the check says so, whatever the number of classes is.
    num_classes = last.shape[-1] if last is not None and last.ndim else 2
    if parse_name(name)[0] == "googlenet":
        options = {"auxiliary": any(key.startswith("aux") for key in tensors)} | options
    model = create_model(name, num_classes, **options)
    own.check(name, model, num_classes, image_shape)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))


def to_pytorch(name, variables):
    """The tensors of a PyTorch network from our variables, NumPy arrays by its names, without `num_batches_tracked`.

    Args:
        name: the network's.
        variables: {"params": …, "batch_stats": …} or one of the two.
    """
    leaves = {collection: stack.unstack(tree) for collection, tree in variables.items()}
    table = places(name, variables)
    return {place.name: _to_theirs(np.asarray(leaves[place.collection][place.path]), place.side) for place in table}


def _check(name, table, tensors):
    """Every tensor is there once, has the right shape, and no other one is."""
    needed = {place.name for place in table}
    for problem, keys in (("missing", needed - tensors.keys()), ("left over", tensors.keys() - needed)):
        if keys:
            more = f" and {len(keys) - 1} more are" if len(keys) > 1 else " is"
            raise UserError(f"{min(keys)!r}{more} {problem} in the tensors for {name}.")
    for place in table:
        shape = tensors[place.name].shape
        if shape != place.shape:
            raise UserError(f"{place.name!r} for {name} must have shape {place.shape}, not {shape}.")
