"""Trained networks in Python: to load, save, show pictures to, and test."""

import copy
import logging
import math
import stat
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from plain56 import machine, runs
from plain56.config import build_model, check
from plain56.configs.base import get_config
from plain56.data import image_shape, load_dataset, normalize, read_picture
from plain56.errors import UserError
from plain56.models import create_model
from plain56.ops.native import portable
from plain56.training import evaluate_variables
from plain56.training.initial_weights import model_options, read, take_options
from plain56.training.state import TrainState
from plain56.training.stored import Trained
from plain56.weights import formats
from plain56.weights.variables import count_classes, foreign, is_of_keras, is_small, to_variables

IMAGENET_CLASSES = Path(__file__).with_name("imagenet_classes.txt")  # one per line, in the usual order
# A network of the ImageNet form for 224 pixels gets pictures resized to 256 (He et al. 2015, section 3.4), others in proportion.
RESIZED = 256 / 224
KERNEL_DTYPES = ("float32", "float16")  # of an exported file
MOST_RESIZED = 1 << 28  # pixels, before the center is cropped
logger = logging.getLogger(__name__)


def load_pretrained(source, model=None, num_classes=None, **options):
    """A trained network, ready to be used or trained further.

    Args:
        source: a file of a kind in `weights.formats.SUFFIXES`, a run directory, or a repository of the Hugging Face hub such as
            "timm/resnet50.tv_in1k".
        model: the network's name, which must be given if the source does not say it, and if a file holds a network of a user's
            own: no file causes an import by itself.
        num_classes: a new last layer for this many classes, drawn with seed 0; None keeps the trained one.
        options: of `create_model`, for foreign weights. By default bottlenecks have their stride in the 3×3 convolution, as
            torchvision's do; those of Keras are the paper's.

    Returns:
        `(module, variables, preprocess)`: `module.apply(variables, preprocess(picture)).logits` are float32 [1, classes], and
        `preprocess.class_names` has the name of each class, in their order. A picture is a path, an image of PIL, or an array,
        uint8 [H, W], [H, W, 1] or [H, W, 3] (RGB); a list of pictures makes a batch.

    Raises UserError if there is no such file, it is damaged or would run code, or it does not hold this network.
    """
    module, variables, about = _load(source, model, num_classes, options)
    names = _class_names(about.class_names, count_classes(about.model, variables))
    return module, variables, Preprocess(about, tuple(names))


class Preprocess(NamedTuple):
    """Makes pictures what a network takes; `class_names` has a name for each of its classes, in the order of the logits."""

    about: formats.About
    class_names: tuple[str, ...]

    def __call__(self, pictures):
        return preprocess(pictures, self.about)


def _load(source, model=None, num_classes=None, options=()):
    """As `load_pretrained`, with the `About` instead of `preprocess`."""
    tensors, about = read(source, model)
    options = dict(options)
    if about is None:
        if model is None:
            raise UserError(f"{source} does not say which network it holds; give its name as model, such as 'resnet50'.")
        about = foreign(model, options, is_of_keras(tensors))
    elif model not in (None, about.model) or options:
        raise UserError(f"{source} holds {about.model} with the options {about.options}; neither can be changed.")
    variables = to_variables(source, tensors, about)
    classes = count_classes(about.model, variables)
    module = create_model(about.model, classes if num_classes is None else num_classes, **about.options)
    if num_classes not in (None, classes):
        fresh = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *about.image_shape)))["params"]
        heads = {name: layer for name, layer in fresh.items() if name == "head" or name.startswith("auxiliary")}
        variables["params"] |= jax.device_get(heads)
        about = about._replace(class_names=())
    return module, variables, about


def preprocess(pictures, about):
    """The center of a picture, as `read_picture` takes it, or of each in a list of them, normalized: [N, h, w, C]."""
    pictures = pictures if isinstance(pictures, list | tuple) else [pictures]
    if not pictures:
        raise UserError("A list of pictures must not be empty.")
    return normalize(jnp.asarray(np.stack([_center(picture, about) for picture in pictures])), about.mean, about.std)


def _center(picture, about):
    """The center of a picture, uint8 [h, w, C] of the size that a network takes."""
    height, width, channels = about.image_shape
    image = read_picture(picture, channels)
    scale = max(height / image.shape[0], width / image.shape[1]) * (1 if is_small(about.model, about.options) else RESIZED)
    if scale != 1:
        to = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
        if math.prod(to) > MOST_RESIZED:
            raise UserError(f"A picture of {image.shape[1]}×{image.shape[0]} pixels is too long for images of {width}×{height}.")
        resized = cv2.resize(image, to, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        image = resized.reshape(*resized.shape[:2], channels)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def save_pretrained(path, source, model=None, dtype="float32"):
    """Writes a trained network to a file, as weights or as a program, according to its name.

        .safetensors    tensors by PyTorch's names, or by ours for a user's own network, and a description
        .stablehlo      `jax.export.deserialize(bytes).call(images)` runs it on a CPU, GPU or TPU with nothing but JAX and
                        flatbuffers: raw pixels, uint8 [N, H, W, C] (RGB or gray) of the network's size, to logits float32
                        [N, classes]

    Args:
        source, model: as for `load_pretrained`; the source must say which network it holds.
        dtype: of kernels in a .safetensors file; "float16" makes it half as long. All else is float32.

    Raises UserError as `load_pretrained` does, or if the file cannot be written.
    """
    path = runs.user_path(path)
    if dtype not in KERNEL_DTYPES:
        raise UserError(f"The dtype of kernels must be {' or '.join(KERNEL_DTYPES)}, not {dtype!r}.")
    if dtype != "float32" and path.suffix != ".safetensors":
        raise UserError(f"Only a .safetensors file can have kernels in {dtype}, not {path.name}.")
    if not stat.S_ISREG(formats.mode_of(path) or stat.S_IFREG):
        raise UserError(f"{path} exists and is not a file; it must be the name of a file to write.")
    if path.suffix == ".safetensors":
        tensors, about = read(source, model)
        if about is None:
            raise UserError(f"{source} does not say which network it holds, and cannot be described.")
        content = formats.serialize(_with_kernels(tensors, dtype, source), about)
    elif path.suffix == ".stablehlo":
        content = _program(source, model)
    else:
        raise UserError(f"The name of an export must end in .safetensors or .stablehlo, not {path.name!r}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    runs.write_bytes(path, content)


def _with_kernels(tensors, dtype, source):
    """Tensors whose kernels have a dtype; raises UserError where it cannot hold their values."""
    kernels = {name: tensor for name, tensor in tensors.items() if tensor.ndim > 1 and name.endswith(("weight", "kernel"))}
    large = [name for name, kernel in kernels.items() if abs(kernel).max() > np.finfo(dtype).max]
    if large:
        raise UserError(f"{source} has values in {large[0]} that {dtype} cannot hold; export it as float32.")
    return tensors | {name: kernel.astype(dtype) for name, kernel in kernels.items()}


def _program(source, model):
    module, variables, about = _load(source, model)

    def logits(images):
        return module.apply(variables, normalize(images, about.mean, about.std)).logits

    batch = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((*batch, *about.image_shape), jnp.uint8)
    with portable():
        return jax.export.export(jax.jit(logits), platforms=("cpu", "cuda", "rocm", "tpu"))(images).serialize()


@machine.explaining_memory_errors()
def predict(source, pictures, model=None):
    """The five most likely classes of each picture.

    Args:
        source, model: as for `load_pretrained`.
        pictures: paths.

    Returns:
        A dict for each: `picture`, and `top5`, a list of dicts with `class`, its name or number, and `probability`.
    """
    module, variables, about = _load(source, model)
    apply = jax.jit(lambda variables, image: jax.nn.softmax(module.apply(variables, image).logits[0]))
    results = []
    for picture in pictures:
        probabilities = np.asarray(apply(variables, preprocess(picture, about)))
        if not np.isfinite(probabilities).all():
            raise UserError(f"{source} gives probabilities that are not finite for {picture}; its weights are of no use.")
        names = _class_names(about.class_names, len(probabilities))
        best = np.argsort(-probabilities, kind="stable")[:5]
        top5 = [{"class": names[i], "probability": round(float(probabilities[i]), 6)} for i in best]
        results.append({"picture": str(picture), "top5": top5})
    return results


def _class_names(known, count):
    """The classes' names: those of the weights, ImageNet's for a thousand classes, or numbers."""
    if known or count != 1000:
        return known or [str(i) for i in range(count)]
    return IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()


@machine.explaining_memory_errors()
def evaluate_weights(config, source, *, protocol=None, sides=(), exact_statistics=False, on_progress=lambda share: None):
    """Loss and errors (fractions) of weights on the test split of a config's data set; arguments as for `training.evaluate_run`.

    Raises UserError as `load_pretrained` and `training.evaluate_run` do, or if the weights do not fit the config or its data.
    """
    check(config)
    tensors, about = read(source, config.model.name)
    if about and about.model != config.model.name:
        raise UserError(f"{source} holds {about.model}, and the config asks for {config.model.name}.")
    config, variables, shape = _for_data(config, source, tensors, about)
    choices = {"protocol": protocol, "sides": sides, "exact_statistics": exact_statistics, "on_progress": on_progress}
    result = evaluate_variables(config, variables, shape, lambda data: None, **choices)
    if not math.isfinite(result["loss"]):
        raise UserError(f"{source} gives a loss that is not finite on the test split; its weights are of no use.")
    return result


def load_for(config, source):
    """The network in a file of weights, as `training.load_run` returns it. Only the config's data and batch size are used.

    Raises UserError as `load_pretrained` does, if the file does not say which network it holds, or if it does not fit the data.
    """
    tensors, about = read(source)
    if about is None:
        raise UserError(f"{source} does not say which network it holds; export it from a run.")
    config = copy.deepcopy(config)
    defaults = get_config()
    config.model, config.batch_norm = defaults.model, defaults.batch_norm
    config.model.name = about.model
    check(config)
    config, variables, shape = _for_data(config, source, tensors, about)
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], variables["batch_stats"], None)
    return Trained(config, build_model(config, count_classes(about.model, variables)), state, shape)


def _for_data(config, source, tensors, about):
    """Weights for the network and data set of a config: `(config with the options that they need, variables, image shape)`."""
    config = copy.deepcopy(config)
    needed = about or foreign(config.model.name, model_options(config), is_of_keras(tensors))
    take_options(config, needed, source)
    # Only the user knows how images were normalized for foreign weights of small images.
    if about or not is_small(config.model.name, needed.options):
        config.data.mean, config.data.std = needed.mean, needed.std
        logger.info("Images are normalized as for the weights: mean %s, deviation %s.", needed.mean, needed.std)
    dataset = load_dataset(config.data)
    shape = image_shape(dataset.train, config.data)
    if about and tuple(shape) != about.image_shape:
        sizes = ("×".join(map(str, size)) for size in (about.image_shape, shape))
        raise UserError("{} is for images of {}, and those of the data set are {}.".format(source, *sizes))
    if about and about.class_names and about.class_names != dataset.class_names:
        names = (", ".join(names[:5]) for names in (about.class_names, dataset.class_names))
        raise UserError("{} is for the classes {} …, and the data set has {} ….".format(source, *names))
    variables = to_variables(source, tensors, needed._replace(image_shape=shape, options=model_options(config)))
    classes = count_classes(config.model.name, variables)
    if classes != len(dataset.class_names):
        expected = f"the data set {config.data.name!r} has {len(dataset.class_names)}"
        raise UserError(f"{source} is for {classes} classes, and {expected}.")
    return config, variables, shape
