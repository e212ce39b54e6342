"""Weights in files: read without trusting them, written with what one needs to use them."""

import contextlib
import copy
import json
import logging
import pickle
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from plain56 import machine, runs
from plain56.config import check
from plain56.data import image_shape, load_dataset, normalise, read_picture
from plain56.errors import UserError, first_line
from plain56.models import create_model, is_cifar_form, parse_name
from plain56.ops.native import portable
from plain56.training import evaluate_variables
from plain56.training.loop import load_run
from plain56.training.transfer import stage_of
from plain56.weights import keras
from plain56.weights.pytorch import from_pytorch, to_pytorch

TORCH_SUFFIXES = (".pth", ".pt", ".th")
KERAS_SUFFIX = ".h5"
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, KERAS_SUFFIX)
logger = logging.getLogger(__name__)

METADATA = "plain56"  # the key of our description in a file's metadata
# Of ImageNet's RGB values: what foreign weights were trained with, unless they say otherwise.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CLASSES = Path(__file__).with_name("imagenet_classes.txt")  # a line each, in the usual order
# Pictures are resized to 256 pixels for networks of 224 in the ImageNet form (He et al. 2015, section 3.4), and so on.
RESIZED = 256 / 224


class About(NamedTuple):
    """What one has to know to use weights: the network, and the images that it takes."""

    model: str
    options: dict  # of `create_model`, as JSON has them
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()  # () where they are not known


def load_pretrained(source, model=None, num_classes=None, **options):
    """A trained network, ready to be used or trained further.

    Args:
        source: a file of a kind in `SUFFIXES`, a run directory, or a repository of the Hugging Face hub such as
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
    tensors, about = read(source)
    options = dict(options)
    if about is None:
        if model is None:
            raise UserError(f"{source} does not say which network it holds; give its name as model, such as 'resnet50'.")
        about = foreign(model, options, is_of_keras(tensors))
    elif model not in (None, about.model) or options:
        raise UserError(f"{source} holds {about.model} with the options {about.options}; neither can be another one.")
    variables = to_variables(about.model, tensors, about.image_shape, about.options)
    classes = variables["params"]["head"]["kernel"].shape[-1]
    module = create_model(about.model, num_classes or classes, **about.options)
    if num_classes not in (None, classes):
        fresh = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *about.image_shape)))["params"]
        heads = {name: layer for name, layer in fresh.items() if name == "head" or name.startswith("auxiliary")}
        variables["params"] |= jax.device_get(heads)
        about = about._replace(class_names=())
    return module, variables, about


def is_of_keras(tensors):
    """Whether tensors have Keras' names."""
    return any("/" in name for name in tensors)


def to_variables(model, tensors, image_shape, options):
    """Our variables of a network from tensors by PyTorch's or Keras' names; raises as `load_pretrained`."""
    if not is_of_keras(tensors):
        return from_pytorch(model, tensors, image_shape, **options)
    if model not in keras.NAMES:
        raise UserError(f"Weights by Keras' names are read for {', '.join(keras.NAMES)}; the network is {model}.")
    bias = tensors.get("predictions/bias", np.zeros(2))
    module = create_model(model, bias.size, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return keras.from_keras(model, tensors, shapes)


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
        resized = cv2.resize(image, to, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        image = resized.reshape(*resized.shape[:2], channels)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return normalise(jnp.asarray(image[top : top + height, left : left + width])[None], about.mean, about.std)


def read(source):
    """Tensors by PyTorch's names, NumPy arrays, and an `About`, or None where the source does not say.

    Raises:
        UserError: as `load_pretrained`.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        tensors, about = _read_run(path)
    elif not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and path.suffix not in SUFFIXES:
        tensors, about = _read_safetensors(_download(str(source)))
    elif not path.is_file():
        raise UserError(f"There are no weights {path}: needed is a file, a run directory, or a Hugging Face repository.")
    elif path.suffix == ".safetensors":
        tensors, about = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        tensors, about = _read_torch(path), None
    elif path.suffix == KERAS_SUFFIX:
        tensors, about = _read_keras(path), None
    else:
        raise UserError(f"{path} is no file of weights by its name; allowed are names that end in {', '.join(SUFFIXES)}.")
    numbers = {}
    for name, tensor in tensors.items():
        try:
            numbers[name] = np.asarray(tensor, np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f"{source} holds {name!r}, which is no tensor of numbers.") from error
        if not np.isfinite(numbers[name]).all():
            raise UserError(f"{source} is damaged: {name!r} has values that are not finite.")
    return numbers, about


def _read_run(path):
    config, _, state, shape = load_run(path)
    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    return to_pytorch(config.model.name, variables), _about_config(config, shape, path)


def _about_config(config, shape, path):
    options = {key: value for key, value in config.model.items() if key != "name" and value is not None}
    options |= {"epsilon": config.batch_norm.epsilon} if config.batch_norm.epsilon else {}
    class_names = tuple(runs.read_run(path).environment()["data"]["class_names"])
    return About(config.model.name, options, tuple(shape), config.data.mean, config.data.std, class_names)


def _read_safetensors(path):
    try:
        tensors = safetensors.numpy.load_file(path)
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except (AttributeError, KeyError, OSError, ValueError, safetensors.SafetensorError) as error:  # the first two: exotic types
        raise UserError(f"{path} cannot be read as safetensors: {error}.") from error
    if METADATA not in metadata:
        return tensors, None
    try:
        about = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(metadata[METADATA]).items()}
        about["options"] = {key: tuple(v) if isinstance(v, list) else v for key, v in about["options"].items()}
        about = About(**about)
        parse_name(about.model)
        return tensors, about
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: its description cannot be read.") from error


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} is a PyTorch file, which needs PyTorch to be read: install the extra 'torch'.") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of what kind of pickle it is
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # a function or class that is none of PyTorch's own
            raise UserError(f"{path} is refused: it holds more than tensors, and reading that would run its code.") from error
        raise UserError(f"{path} cannot be read as a PyTorch file: it is damaged, or something else.") from error
    except Exception as error:  # of many kinds, where a file is damaged
        raise UserError(f"{path} cannot be read as a PyTorch file: it is damaged, or something else.") from error
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} holds no tensors by name; needed is a state_dict, or a dict with one under 'state_dict'.")
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def _read_keras(path):
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} is a Keras file, which needs h5py to be read: install the extra 'keras'.") from error
    tensors = {}

    def add(name, item):
        # Layers are groups, also in files of whole models; what lies between a layer and its variables is a name once more.
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer_weights/"):
            layer, *_, variable = name.removeprefix("model_weights/").removesuffix(":0").split("/")
            # As the older ones of the published files have it.
            variable = re.sub(r".*_W_\d+$", "kernel", re.sub(r".*_b_\d+$", "bias", variable))
            tensors[f"{'predictions' if layer == 'probs' else layer}/{variable}"] = item[()]

    try:
        with h5py.File(path) as file:
            file.visititems(add)
    except Exception as error:  # of many kinds, where a file is damaged
        raise UserError(f"{path} cannot be read as a Keras file: it is damaged, or something else.") from error
    return tensors


def _download(repository):
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{repository} lies on the Hugging Face hub, if anywhere: install the extra 'hub'.") from error
    try:
        return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # of the network, the hub, and the disk
        raise UserError(f"{repository} cannot be taken from the Hugging Face hub: {first_line(error)}.") from error


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
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors, about = read(source)
        if about is None:
            raise UserError(f"{source} does not say which network it holds, and cannot be described.")
        write(path, tensors, about)
    elif path.suffix == ".stablehlo":
        _write(path, lambda part: part.write_bytes(_program(source)))
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


def write(path, tensors, about):
    """Writes tensors by PyTorch's names and an `About` as safetensors; raises UserError where that cannot be."""
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    metadata = {"format": "pt", METADATA: json.dumps(about._asdict())}
    _write(path, lambda part: safetensors.numpy.save_file(tensors, part, metadata))


def _write(path, write_to):
    """Has a file written whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(part)
        part.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def begin_transfer(config, source, model=None):
    """A config for training weights further on its data set, and what begins the run.

    The network and the normalisation of images become those of the weights, and images have their size unless the config says
    another.

    Args:
        source, model: as of `load_pretrained`.

    Returns:
        The config, and `begin` of `training.train`: it replaces all layers but the last ones, which stay as they are drawn.

    Raises:
        UserError: as `load_pretrained`.
    """
    tensors, about = read(source)
    config = copy.deepcopy(config)
    about = about or foreign(model or config.model.name, _options(config), is_of_keras(tensors))
    if model not in (None, about.model):
        raise UserError(f"{source} holds {about.model}; it cannot be {model}.")
    config.model.name = about.model
    _take_options(config, about, source)
    config.data.mean, config.data.std = about.mean, about.std
    config.data.image_size = config.data.image_size or about.image_shape[0]
    path = Path(source).expanduser()
    config.transfer.weights = str(path.absolute()) if path.exists() else str(source)
    trained = to_variables(about.model, tensors, about.image_shape, about.options)

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
        return IMAGENET_CLASSES.read_text().splitlines()
    return [str(i) for i in range(count)]


@machine.telling_what_is_too_large()
def evaluate_weights(config, source, *, protocol=None, sides=(), exact_statistics=False, on_progress=lambda share: None):
    """Loss and errors (fractions) of weights on the test split of a config's data set; arguments as of `training.evaluate_run`.

    Raises:
        UserError: as `load_pretrained` and `training.evaluate_run`, or the weights are of another network than the config's,
            or for another number of classes.
    """
    check(config)
    tensors, about = read(source)
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
    variables = to_variables(config.model.name, tensors, shape, _options(config))
    classes = variables["params"]["head"]["kernel"].shape[-1]
    if classes != len(dataset.class_names):
        raise UserError(
            f"{source} is for {classes} classes, and the data set {config.data.name!r} has {len(dataset.class_names)}."
        )
    choices = {"protocol": protocol, "sides": sides, "exact_statistics": exact_statistics, "on_progress": on_progress}
    return evaluate_variables(config, variables, shape, lambda data: None, **choices)
