"""Our variables from the tensors of a source, by whatever names it has them."""

import jax
import jax.numpy as jnp
import numpy as np

from plain56.errors import UserError, first_line
from plain56.models import create_model, is_cifar_form, is_own, parse_name
from plain56.weights import keras
from plain56.weights.formats import About
from plain56.weights.pytorch import from_pytorch

# Of ImageNet's RGB values: what foreign weights were trained with, unless they say otherwise.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def is_of_keras(tensors):
    """Whether tensors have Keras' names."""
    return any("/" in name for name in tensors)


def to_variables(source, tensors, about):
    """Our variables of the network that the tensors of a source are said to be of; raises UserError."""
    name = about.model
    try:
        if not is_of_keras(tensors):
            variables = from_pytorch(name, tensors, about.image_shape, **about.options)
        elif name in keras.NAMES:
            module = create_model(name, tensors.get("predictions/bias", np.zeros(2)).size, **about.options)
            shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *about.image_shape)))
            variables = keras.from_keras(name, tensors, shapes)
        else:
            raise UserError(f"weights by Keras' names are read for {', '.join(keras.NAMES)}; the network is {name}.")
    except UserError as error:
        raise UserError(f"{source} cannot be loaded as {name}: {first_line(error)}.") from error
    classes = count_classes(name, variables)
    if len(about.class_names) not in (0, classes):
        raise UserError(f"{source} has names for {len(about.class_names)} classes, and its last layer has {classes}.")
    return variables


def count_classes(name, variables):
    """The number of classes of a network's variables, by its last layer; raises UserError where that is not called "head"."""
    try:
        return variables["params"]["head"]["kernel"].shape[-1]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{name} must call its last layer head for its weights to be read from a file or written to one."
        ) from error


def foreign(model, options, of_keras=False):
    """The `About` of weights that say nothing of themselves."""
    if of_keras:
        options = keras.RESNET_OPTIONS | options if parse_name(model)[0] == "resnet" else options
        return About(model, options, (224, 224, 3), keras.MEAN, keras.STD)
    if parse_name(model)[0] == "resnet" and not is_small(model, options):
        options = {"bottleneck_stride": "3x3"} | options
    side = 32 if is_small(model, options) else 224
    # torchvision's GoogLeNet was trained so.
    mean, std = ((0.5,) * 3, (0.5,) * 3) if model == "googlenet_bn" else (IMAGENET_MEAN, IMAGENET_STD)
    return About(model, options, (side, side, 3), mean, std)


def is_small(model, options):
    """Whether a network is in the form for small images, CIFAR's."""
    return is_own(model) or is_cifar_form(model) or options.get("form") == "small"
