"""Weights in files: read without trusting them, written with what one needs to use them."""

import contextlib
import json
import math
import pickle
import re
import stat
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import psutil
import safetensors
import safetensors.numpy

from plain56 import machine, runs
from plain56.config import check_value, with_tuples
from plain56.errors import UserError, first_line
from plain56.models import create_model, is_own, option_names
from plain56.runs.files import parse_json

TORCH_SUFFIXES = (".pth", ".pt", ".th")
KERAS_SUFFIX = ".h5"
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, KERAS_SUFFIX)
# Before, a file could run code although only tensors were asked for (CVE-2025-32434).
TORCH_VERSION = (2, 6)
SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", *(f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)))
VARIANCES = ("running_var", "moving_variance", ".var")  # PyTorch's, Keras' and ours

METADATA = "plain56"  # the key of our description in a file's metadata
MOST_PIXELS = 8192  # on a side, as of data.image_size


class About(NamedTuple):
    """What one must know to use weights: the network, and the images that it takes."""

    model: str
    options: dict  # of `create_model`, as JSON has them
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()  # () where they are not known


@machine.explaining_memory_errors()
def read(source):
    """Tensors by PyTorch's or Keras' names, finite float32 in NumPy arrays, and an `About`, or None where the file has none.

    Raises UserError if the file or Hugging Face repository `source` is not there, is damaged, or would run code.
    """
    path = runs.user_path(source)
    mode = mode_of(path)
    if not mode and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and path.suffix not in SUFFIXES:
        path = _download(str(source))
        mode = mode_of(path)
    if not stat.S_ISREG(mode):
        raise UserError(f"There are no weights {path}; weights are a file, a run directory, or a Hugging Face repository.")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} must end in {', '.join(SUFFIXES)} to be read as weights.")
    _check_memory(path, path.stat().st_size)
    kind = _read_safetensors if path.suffix == SUFFIXES[0] else _read_keras if path.suffix == KERAS_SUFFIX else _read_torch
    tensors, about = kind(path)
    return {name: numbers(source, name, tensor) for name, tensor in tensors.items()}, about


def mode_of(path):
    """The `stat` mode of a path; 0 where there is nothing. Raises UserError where that cannot be told."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _check_memory(path, needed):
    """Raises UserError where tensors would need much of this machine's memory: a small file can declare very large ones."""
    most = psutil.virtual_memory().available / 4
    if needed > most:
        raise UserError(
            f"{path} declares {needed / 2**30:.1f} GiB; at most {most / 2**30:.1f} GiB, a quarter of what is free, is read."
        )


def numbers(source, name, tensor):
    """A tensor as float32; raises UserError where that cannot be, or no network could have such values."""
    tensor = np.asarray(tensor)
    if tensor.dtype.kind not in "iu" and not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(f"{source} holds {name!r}, which is not a tensor of real numbers.")
    with np.errstate(over="ignore"):
        numbers = tensor.astype(np.float32, copy=False)
    if not np.isfinite(numbers).all():
        raise UserError(f"{source} is damaged: {name!r} has values that are not finite in float32.")
    if name.endswith(VARIANCES) and (numbers < 0).any():
        raise UserError(f"{source} is damaged: {name!r} has negative values, which no variance can have.")
    return numbers


def describe(source, described):
    """The `About` of what a source says of its weights, as JSON has it; raises UserError where that cannot be."""
    try:
        needed = set(About._fields) - set(About._field_defaults)
        if not isinstance(described, dict) or not needed <= described.keys() <= set(About._fields):
            raise UserError(f"it must have the keys {', '.join(About._fields)}")
        # Options have the names of the config's section `model`.
        options = runs.renamed({"model": described["options"]}, "it")["model"]
        about = About(**with_tuples({**described, "options": options}))
        _check(about)
    except UserError as error:
        raise UserError(f"{source} has a description that cannot be used: {first_line(error)}.") from error
    return about


def _check(about):
    check_value("model.name", about.model)
    known = (*option_names(about.model), "dtype", "epsilon")
    if not isinstance(about.options, dict) or not set(about.options) <= set(known):
        raise UserError(f"options must be of {', '.join(known)}, which {about.model} has, not {about.options!r}")
    for key, value in about.options.items():
        check_value("batch_norm.epsilon" if key == "epsilon" else f"model.{key}", value)
    if not is_own(about.model):  # a file causes no import
        create_model(about.model, 2, **about.options)  # what a network refuses beyond that
    for key in ("mean", "std"):
        check_value(f"data.{key}", getattr(about, key))
    channels = len(about.mean)
    if len(about.std) != channels:
        raise UserError(f"data.std must have as many numbers as data.mean, {channels}, not {len(about.std)}")
    shape = about.image_shape
    is_shape = isinstance(shape, tuple) and len(shape) == 3 and all(type(side) is int for side in shape)
    if not is_shape or not all(1 <= side <= MOST_PIXELS for side in shape) or shape[2] != channels:
        raise UserError(f"image_shape must be height and width up to {MOST_PIXELS}, and {channels} for channels, not {shape!r}")
    names = about.class_names
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"class_names must be a list of texts, not {names!r}")


@contextlib.contextmanager
def _reading(path, kind):
    """Raises UserError where a library cannot read a file; it raises errors of many types where the file is damaged."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):  # a function or class that is not PyTorch's own
            raise UserError(f"{path} is refused: it holds more than tensors, and reading that would run its code.") from error
        raise UserError(f"{path} cannot be read as {kind}; it is damaged, or something else: {first_line(error)}.") from error


def _read_safetensors(path):
    with _reading(path, "a safetensors file"), safetensors.safe_open(path, "numpy") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it is no dict)
        for name, kind in types.items():
            if kind not in SAFETENSORS_TYPES:
                raise UserError(f"{path} holds {name!r} of type {kind}, which is not one of {', '.join(SAFETENSORS_TYPES)}.")
        _check_memory(path, sum(math.prod(file.get_slice(name).get_shape()) * 4 for name in types))
        tensors, metadata = {name: file.get_tensor(name) for name in types}, file.metadata() or {}
    if METADATA not in metadata:
        return tensors, None
    try:
        return tensors, describe(path, parse_json(metadata[METADATA]))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} has a description that cannot be read: {first_line(error)}.") from error


def _read_torch(path):
    try:
        import torch
    except (ImportError, OSError) as error:  # the second: a library that PyTorch needs
        raise UserError(_needs_torch(path, first_line(error))) from error
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < TORCH_VERSION:
        raise UserError(_needs_torch(path, f"{torch.__version__} is installed"))
    with _reading(path, "a PyTorch file"), warnings.catch_warnings(action="ignore"):  # of what kind of pickle it is
        if zipfile.is_zipfile(path):  # it may be compressed
            with zipfile.ZipFile(path) as file:
                _check_memory(path, sum(entry.file_size for entry in file.infolist()))
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not (isinstance(tensors, dict) and all(type(name) is str and torch.is_tensor(leaf) for name, leaf in tensors.items())):
        raise UserError(f"{path} must hold a state_dict, or a dict with one under 'state_dict'; it holds no tensors by name.")
    # A number may stand for many equal ones.
    _check_memory(path, sum(tensor.numel() * max(tensor.element_size(), 4) for tensor in tensors.values()))
    arrays = {}
    for name, tensor in tensors.items():
        try:
            # NumPy has no bfloat16, and the like.
            arrays[name] = (tensor.float() if tensor.is_floating_point() else tensor).numpy(force=True)
        except Exception as error:  # of many kinds: sparse, quantized, nested, or without values
            raise UserError(f"{path} holds {name!r}, which is not a dense tensor of numbers: {first_line(error)}.") from error
    return arrays, None


def _needs_torch(path, there):
    version = ".".join(map(str, TORCH_VERSION))
    return f"{path} needs PyTorch {version} or newer to be read ({there}); install it by: pip install 'plain56[torch]'."


def _read_keras(path):
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} needs h5py to be read; install it by: pip install 'plain56[keras]'.") from error
    datasets, links = {}, (h5py.SoftLink, h5py.ExternalLink)

    def add(name, item):
        # Layers are groups, also in files of whole models; what lies between a layer and its variables is a name once more.
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer_weights/"):
            if item.external or item.is_virtual:
                raise UserError(f"{path} is refused: the values of {name!r} lie in another file.")
            if item.shape is None or item.dtype.kind not in "fiu":
                raise UserError(f"{path} holds {name!r}, which is not a tensor of real numbers.")
            layer, *_, variable = name.removeprefix("model_weights/").removesuffix(":0").split("/")
            # As the older ones of the published files have it.
            variable = re.sub(r".*_W_\d+$", "kernel", re.sub(r".*_b_\d+$", "bias", variable))
            key = f"{'predictions' if layer == 'probs' else layer}/{variable}"
            if key in datasets:
                raise UserError(f"{path} holds {key!r} twice.")
            datasets[key] = item

    with _reading(path, "a Keras file"), h5py.File(path) as file:
        link = file.visititems_links(lambda name, link: name if isinstance(link, links) else None)
        if link is not None:
            raise UserError(f"{path} is refused: {link!r} is a link, which may lead to another file.")
        file.visititems(add)
        # A chunk is read whole, and can be larger than what is in it.
        counts = {key: max(math.prod(item.shape), math.prod(item.chunks or (0,))) for key, item in datasets.items()}
        _check_memory(path, sum(count * max(datasets[key].dtype.itemsize, 4) for key, count in counts.items()))
        return {key: item[()] for key, item in datasets.items()}, None


def _download(repository):
    try:
        import huggingface_hub
    except ImportError as error:
        wanted = "a repository of the Hugging Face hub needs huggingface_hub; install it by: pip install 'plain56[hub]'"
        raise UserError(f"There are no weights {repository} here, and {wanted}.") from error
    try:
        return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # of the network, the hub, and the disk
        raise UserError(f"{repository} cannot be taken from the Hugging Face hub: {first_line(error)}.") from error


def serialize(tensors, about):
    """The bytes of a safetensors file of tensors by PyTorch's names and an `About`."""
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return safetensors.numpy.save(tensors, {"format": "pt", METADATA: json.dumps(about._asdict())})
