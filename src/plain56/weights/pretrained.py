"""Trained networks: loaded, saved, shown pictures, tested, and trained further."""

import copy
import logging
import math
import stat
from pathlib import Path

import cv2
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from plain56 import machine, runs
from plain56.config import check, from_json
from plain56.data import image_shape, load_dataset, normalise, read_picture
from plain56.errors import UserError, first_line
from plain56.models import create_model, is_cifar_form, parse_name
from plain56.ops.native import portable
from plain56.training import evaluate_variables
from plain56.training.transfer import stage_of
from plain56.weights import files, keras
from plain56.weights.files import About
from plain56.weights.pytorch import from_pytorch

# Of ImageNet's RGB values: what foreign weights were trained with, unless they say otherwise.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CLASSES = Path(__file__).with_name("imagenet_classes.txt")  # a line each, in the usual order
# Pictures are resized to 256 pixels for networks of 224 in the ImageNet form (He et al. 2015, section 3.4), and so on.
RESIZED = 256 / 224
MOST_RESIZED = 1 << 28  # pixels, before the middle is cut out
logger = logging.getLogger(__name__)


def load_pretrained(source, model=None, num_classes=None, **options):
    """A trained network, ready to be used or trained further.

    Args:
        source: a file of a kind in `files.SUFFIXES`, a run directory, or a repository of the Hugging Face hub such as
            "timm/resnet50.tv_in1k".
        model: the network's name; needed where the source does not say what it is.
        num_classes: a new last layer for so many classes, drawn with seed 0; None keeps the trained one.
        options: of `create_model`, for foreign weights. Bottlenecks have their stride in the 3×3 convolution unless said
            otherwise, as torchvision's do; Keras' are the paper's.

    Returns:
        `(module, variables, preprocess)`: `module.apply(variables, preprocess(picture)).logits`, where a picture is a path or
        uint8 [H, W, 3].

    Raises:
        UserError: there is no such file, it is damaged or wants to run code, or it does not hold this network.
    """
    module, variables, about = _load(source, model, num_classes, options)
    return module, variables, lambda picture: preprocess(picture, about)


def _load(source, model=None, num_classes=None, options=()):
    """As `load_pretrained`, with the `About` in place of `preprocess`."""
    tensors, about = files.read(source)
    options = dict(options)
    if about is None:
        if model is None:
            raise UserError(f"{source} does not say which network it holds; give its name as model, such as 'resnet50'.")
        about = foreign(model, options, is_of_keras(tensors))
    elif model not in (None, about.model) or options:
        raise UserError(f"{source} holds {about.model} with the options {about.options}; neither can be another one.")
    variables = to_variables(source, tensors, about)
    classes = variables["params"]["head"]["kernel"].shape[-1]
    module = create_model(about.model, classes if num_classes is None else num_classes, **about.options)
    if num_classes not in (None, classes):
        fresh = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *about.image_shape)))["params"]
        heads = {name: layer for name, layer in fresh.items() if name == "head" or name.startswith("auxiliary")}
        variables["params"] |= jax.device_get(heads)
        about = about._replace(class_names=())
    return module, variables, about


def is_of_keras(tensors):
    """Whether tensors have Keras' names."""
    return any("/" in name for name in tensors)


def to_variables(source, tensors, about):
    """Our variables of the network that the tensors of a source are said to be of; raises as `load_pretrained`."""
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
    classes = variables["params"]["head"]["kernel"].shape[-1]
    if len(about.class_names) not in (0, classes):
        raise UserError(f"{source} has names for {len(about.class_names)} classes, and its last layer has {classes}.")
    return variables


def foreign(model, options, of_keras=False):
    """The `About` of weights that say nothing of themselves."""
    if of_keras:
        options = keras.RESNET_OPTIONS | options if parse_name(model)[0] == "resnet" else options
        return About(model, options, (224, 224, 3), keras.MEAN, keras.STD)
    if parse_name(model)[0] == "resnet" and not _is_small(model, options):
        options = {"bottleneck_stride": "3x3"} | options
    side = 32 if _is_small(model, options) else 224
    # torchvision's GoogLeNet was trained so.
    mean, std = ((0.5,) * 3, (0.5,) * 3) if model == "googlenet_bn" else (IMAGENET_MEAN, IMAGENET_STD)
    return About(model, options, (side, side, 3), mean, std)


def _is_small(model, options):
    """Whether a network is in the form for small images, CIFAR's."""
    return is_cifar_form(model) or options.get("form") == "small"


def preprocess(picture, about):
    """A picture, a path or uint8 [H, W, 3], as a network takes it: [1, h, w, C], the middle of it, normalised."""
    height, width, channels = about.image_shape
    image = read_picture(picture, channels)
    scale = max(height / image.shape[0], width / image.shape[1]) * (1 if _is_small(about.model, about.options) else RESIZED)
    if scale != 1:
        to = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
        if math.prod(to) > MOST_RESIZED:
            raise UserError(f"A picture of {image.shape[1]}×{image.shape[0]} pixels is too long for images of {width}×{height}.")
        resized = cv2.resize(image, to, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        image = resized.reshape(*resized.shape[:2], channels)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return normalise(jnp.asarray(image[top : top + height, left : left + width])[None], about.mean, about.std)


def save_pretrained(path, source):
    """Writes a trained network, by the name of the file either as weights or as a program.

        .safetensors    tensors by PyTorch's names, and a description
        .stablehlo      what `jax.export.deserialize(bytes).call(images)` runs on a CPU, GPU or TPU, with JAX alone: uint8
                        [N, H, W, C] of the network's size to logits float32 [N, classes]

    Args:
        source: as of `load_pretrained`, of what says which network it holds.

    Raises:
        UserError: as `load_pretrained`, or a file that cannot be written.
    """
    path = runs.user_path(path)
    if not stat.S_ISREG(files.mode_of(path) or stat.S_IFREG):
        raise UserError(f"{path} is there already and is no file; the name of a file to write is expected.")
    if path.suffix == ".safetensors":
        tensors, about = files.read(source)
        if about is None:
            raise UserError(f"{source} does not say which network it holds, and cannot be described.")
        files.write(path, tensors, about)
    elif path.suffix == ".stablehlo":
        files.write_bytes(path, _program(source))
    else:
        raise UserError(f"{path} is no name for an export; allowed are names that end in .safetensors and .stablehlo.")


def _program(source):
    module, variables, about = _load(source)

    def logits(images):
        return module.apply(variables, normalise(images, about.mean, about.std)).logits

    batch = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((*batch, *about.image_shape), jnp.uint8)
    with portable():
        return jax.export.export(jax.jit(logits), platforms=("cpu", "cuda", "rocm", "tpu"))(images).serialize()


def begin_transfer(config, source, model=None, workdir=None):
    """A config for training weights further on its data set, and what begins the run.

    The network and the normalisation of images become those of the weights, and images have their size unless the config says
    another.

    Args:
        source, model: as of `load_pretrained`.
        workdir: a run directory; the run there that has begun with these weights needs them no more.

    Returns:
        The config, and `begin` of `training.train`: it replaces all layers but the last ones, which stay as they are drawn.
        None where the run has begun and the weights are gone.

    Raises:
        UserError: as `load_pretrained`.
    """
    if workdir and runs.Run(Path(workdir)).has_checkpoint():
        begun = from_json(runs.read_run(workdir).config())
        check(begun)
        if _begun_with_what_is_gone(begun, source):
            return _as_begun(config, begun), None
    tensors, about = files.read(source)
    config = copy.deepcopy(config)
    about = about or foreign(model or config.model.name, _options(config), is_of_keras(tensors))
    if model not in (None, about.model):
        raise UserError(f"{source} holds {about.model}; it cannot be {model}.")
    config.model.name = about.model
    _take_options(config, about, source)
    config.data.mean, config.data.std = about.mean, about.std
    config.data.image_size = config.data.image_size or about.image_shape[0]
    path = runs.user_path(source)
    config.transfer.weights = str(path.absolute()) if path.exists() else str(source)
    trained = to_variables(source, tensors, about)

    def begin(params, batch_stats):
        new = {"params": params, "batch_stats": batch_stats}
        for collection, layers in new.items():
            for name, layer in layers.items():
                if stage_of(name) != "head":
                    _check_same_shapes(source, name, layer, trained[collection].get(name, {}))
        kept = {name: layer for name, layer in params.items() if stage_of(name) == "head"}
        statistics = {name: layer for name, layer in batch_stats.items() if stage_of(name) == "head"}
        body = {name: layer for name, layer in trained["params"].items() if stage_of(name) != "head"}
        moments = {name: layer for name, layer in trained["batch_stats"].items() if stage_of(name) != "head"}
        return jax.tree.map(jnp.asarray, (body | kept, moments | statistics))

    return config, begin


def _begun_with_what_is_gone(begun, source):
    """Whether a run, by its config, began with weights that are no longer where they were, the source's or moved ones."""
    path, there = runs.user_path(source), begun.transfer.weights
    if path.exists() and Path(there).is_absolute() and not Path(there).exists():
        logger.warning("The run began with %s, which is gone; it goes on without %s.", there, source)
        return True
    return not path.exists() and there in (str(path.absolute()), str(source))


def _as_begun(config, begun):
    """A config with what the weights of a run that has begun have chosen, as `begin_transfer` has it."""
    config = copy.deepcopy(config)
    config.model.name, config.transfer.weights = begun.model.name, begun.transfer.weights
    options = _options(begun)
    _take_options(config, About(begun.model.name, options, (0, 0, 0), begun.data.mean, begun.data.std), "the run")
    config.data.mean, config.data.std = begun.data.mean, begun.data.std
    config.data.image_size = config.data.image_size or begun.data.image_size
    return config


def _options(config):
    """The options of `create_model` that a config chooses."""
    options = {key: value for key, value in config.model.items() if key not in ("name", "dtype") and value is not None}
    return options | ({"epsilon": config.batch_norm.epsilon} if config.batch_norm.epsilon else {})


def _take_options(config, about, source):
    """Gives a config the options that weights need; raises UserError where it has others that would change what they compute."""
    for key, value in about.options.items():
        section = config.batch_norm if key in config.batch_norm else config.model
        if section[key] is None:
            section[key] = value
        elif section[key] != value and key not in ("dropout", "dtype", "remat"):
            raise UserError(f"The config asks for {key} {section[key]!r}, and the weights in {source} are for {value!r}.")


def _check_same_shapes(source, name, layer, trained):
    if jax.tree.map(jnp.shape, layer) != jax.tree.map(jnp.shape, trained):
        raise UserError(f"The layer {name} in {source} has other shapes than the config's network; needed are the same.")


@machine.telling_what_is_too_large()
def predict(source, pictures, model=None):
    """The five likeliest classes of each picture.

    Args:
        source, model: as of `load_pretrained`.
        pictures: paths.

    Returns:
        A dict for each: `picture`, and `top5`, of dicts with `class`, its name or number, and `probability`.
    """
    module, variables, about = _load(source, model)
    apply = jax.jit(lambda variables, image: jax.nn.softmax(module.apply(variables, image).logits[0]))
    results = []
    for picture in pictures:
        probabilities = np.asarray(apply(variables, preprocess(picture, about)))
        if not np.isfinite(probabilities).all():
            raise UserError(f"{source} gives probabilities that are not finite for {picture}; its weights are not of use.")
        names = _class_names(about.class_names, len(probabilities))
        best = np.argsort(-probabilities, kind="stable")[:5]
        results.append(
            {
                "picture": str(picture),
                "top5": [{"class": names[i], "probability": round(float(probabilities[i]), 6)} for i in best],
            }
        )
    return results


def _class_names(known, count):
    """The classes' names: the weights', ImageNet's where there are a thousand, or numbers."""
    if known:
        return known
    if count == 1000:
        return IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()
    return [str(i) for i in range(count)]


@machine.telling_what_is_too_large()
def evaluate_weights(config, source, *, protocol=None, sides=(), exact_statistics=False, on_progress=lambda share: None):
    """Loss and errors (fractions) of weights on the test split of a config's data set; arguments as of `training.evaluate_run`.

    Raises:
        UserError: as `load_pretrained` and `training.evaluate_run`, or the weights are of another network than the config's,
            or for another number of classes.
    """
    check(config)
    tensors, about = files.read(source)
    if about and about.model != config.model.name:
        raise UserError(f"{source} holds {about.model}, and the config asks for {config.model.name}.")
    config = copy.deepcopy(config)
    needed = about or foreign(config.model.name, _options(config), is_of_keras(tensors))
    _take_options(config, needed, source)
    # Of foreign weights for small images nobody knows what they were trained with, but the user.
    if about or not _is_small(config.model.name, needed.options):
        config.data.mean, config.data.std = needed.mean, needed.std
        logger.info("Images are normalised as for the weights: mean %s, deviation %s.", needed.mean, needed.std)
    dataset = load_dataset(config.data)
    shape = image_shape(dataset.train, config.data)
    if about and tuple(shape) != about.image_shape:
        sizes = ("×".join(map(str, size)) for size in (about.image_shape, shape))
        raise UserError("{} is for images of {}, and those of the data set are {}.".format(source, *sizes))
    if about and about.class_names and about.class_names != dataset.class_names:
        names = (", ".join(names[:5]) for names in (about.class_names, dataset.class_names))
        raise UserError("{} is for the classes {} …, and the data set has {} ….".format(source, *names))
    variables = to_variables(source, tensors, needed._replace(image_shape=shape, options=_options(config)))
    classes = variables["params"]["head"]["kernel"].shape[-1]
    if classes != len(dataset.class_names):
        raise UserError(
            f"{source} is for {classes} classes, and the data set {config.data.name!r} has {len(dataset.class_names)}."
        )
    choices = {"protocol": protocol, "sides": sides, "exact_statistics": exact_statistics, "on_progress": on_progress}
    result = evaluate_variables(config, variables, shape, lambda data: None, **choices)
    if not math.isfinite(result["loss"]):
        raise UserError(f"{source} gives a loss that is not finite on the test split; its weights are not of use.")
    return result
