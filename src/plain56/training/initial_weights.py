"""How a new run begins with trained weights: one way in for runs, files and published weights.

A *warm start* (`train.warm_start`) takes every layer of another run that has the same name and shape. A *transfer*
(`transfer.weights`) takes all layers but the last ones, which keep their random values.
"""

import copy
import logging
from pathlib import Path

import jax
from flax import traverse_util

from plain56 import machine, parallel, runs
from plain56.config import check, from_json
from plain56.data import are_in_color
from plain56.errors import UserError
from plain56.models import is_own, stack
from plain56.training import cadence
from plain56.training.stored import load_run
from plain56.weights import formats
from plain56.weights.formats import About
from plain56.weights.pytorch import to_pytorch
from plain56.weights.variables import count_classes, foreign, is_of_keras, to_variables

logger = logging.getLogger(__name__)


def initial_weights(program):
    """State and totals with which a run begins that is given weights; raises UserError where these do not fit."""
    config, (state, totals) = program.config, program.initial
    if config.train.warm_start and config.transfer.weights:
        raise UserError("train.warm_start and transfer.weights both begin a run; only one of them may be given.")
    begin = _warm_start if config.train.warm_start else _transfer
    drawn = {"params": state.params, "batch_stats": state.batch_stats}
    begun = parallel.on_all(begin, program, drawn)
    begun = jax.device_put(begun, jax.tree.map(lambda leaf: leaf.sharding, drawn))
    return state.replace(**begun), totals


def _warm_start(program, drawn):
    """Variables with all layers that the network shares with that of the run `train.warm_start`.

    Simonyan & Zisserman 2014, section 3.1, took the first four convolutions and the fully-connected layers of VGG-11.
    """
    config = program.config
    source = load_run(config.train.warm_start)
    params, layers = copy_layers(drawn["params"], source.state.params)
    if not layers:
        raise UserError(
            f"train.warm_start is {config.train.warm_start!r}, whose network {source.config.model.name} has no layer of the name "
            f"and shape of one in {config.model.name}."
        )
    if parallel.is_first():
        logger.info("From step %d of %s: %s.", source.state.step, config.train.warm_start, ", ".join(layers))
    return {"params": params, "batch_stats": copy_layers(drawn["batch_stats"], source.state.batch_stats)[0]}


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


def _transfer(program, drawn):
    """Variables with all layers of the weights but the last ones and the auxiliary heads."""
    config, source = program.config, program.config.transfer.weights
    tensors, about = read(source, config.model.name)
    needed = about or foreign(config.model.name, model_options(config), is_of_keras(tensors))
    given, fitting = (runs.flatten(c.to_dict()) for c in (config, _with(config, needed, source, source)))
    for key, value in fitting.items():
        if given.get(key) != value:
            raise UserError(f"The weights in {source} need {key} {value!r}, and the config has {given.get(key)!r}.")
    trained = to_variables(source, tensors, needed)
    stages = stack.stages(program.model, program.image_shape)
    begun = {}
    for collection, layers in drawn.items():
        body = {name: trained[collection].get(name, {}) for name in layers if stages[name] != "head"}
        for name, layer in body.items():
            if jax.tree.map(lambda leaf: leaf.shape, layers[name]) != jax.tree.map(lambda leaf: leaf.shape, layer):
                raise UserError(f"The layer {name} in {source} does not have the shapes of the config's network.")
        begun[collection] = layers | body
    return begun


@machine.explaining_memory_errors()
def read(source, model=None):
    """As `formats.read`, also of a run directory; raises UserError if the run has no checkpoint.

    `model` is the network's name, if it is known. A file that holds a network of a user's own is refused without it: it would
    decide what is imported.
    """
    path = runs.user_path(source)
    if not path.is_dir():
        tensors, about = formats.read(source)
        if about and is_own(about.model) and model != about.model:
            raise UserError(
                f"{source} holds a user's own network, whose code is imported only if you name it: model={about.model}."
            )
        return tensors, about
    trained, data = load_run(path), runs.read_run(path).environment()["data"]
    config = trained.config
    about = {"model": config.model.name, "options": model_options(config) | {"dtype": config.model.dtype}}
    about |= {"mean": config.data.mean, "std": config.data.std}
    about |= {key: data[key] for key in ("image_shape", "class_names")}
    about = formats.describe(path / "environment.json", about)
    variables = jax.device_get({"params": trained.state.params, "batch_stats": trained.state.batch_stats})
    count_classes(about.model, variables)  # raises where it could not be read back
    tensors = to_pytorch(about.model, variables)
    return {name: formats.numbers(source, name, tensor) for name, tensor in tensors.items()}, about


def warn_of_mismatch(config):
    """Warns where weights for gray images meet pictures in color, or the reverse, and where the rate never reaches its value."""
    gray, in_color = len(config.data.mean) == 1, are_in_color(config.data)
    if gray == in_color:
        kinds = ("gray images", "in color, so they are made gray") if gray else ("images in color", "gray")
        logger.warning(
            "The weights in %s are for %s, and the pictures of %s are %s; weights for %s would fit better.",
            *(config.transfer.weights, kinds[0], config.data.name, kinds[1], "images in color" if gray else "gray images"),
        )
    last, warmup = cadence.last_step(config), config.optimizer.schedule.warmup_steps
    if warmup >= last and not config.transfer.probe:
        logger.warning(
            "The warm-up takes %d steps and the run ends after %d, so it never reaches its learning rate; choose fewer "
            "optimizer.schedule.warmup_steps, or more steps.",
            *(warmup, last),
        )


def choose(config, model=None, workdir=None):
    """A config with what its `transfer.weights` choose: network, normalization, and the size of images unless the config has one.

    Args:
        model: the network's name, where the weights do not say it.
        workdir: a run directory; a run that has begun with these weights goes on without them.

    Raises UserError if the weights cannot be read, or the config asks for another network.
    """
    source = config.transfer.weights
    if workdir and runs.Run(Path(workdir)).has_checkpoint():
        begun = from_json(runs.read_run(workdir).config())
        check(begun)
        if _began_with(source, begun):
            about = About(begun.model.name, model_options(begun), (begun.data.image_size,) * 3, begun.data.mean, begun.data.std)
            _check_name(source, about, model)
            return _with(config, about, "the run", begun.transfer.weights)
    tensors, about = read(source, model or config.model.name)
    if about:
        _check_name(source, about, model)
    about = about or foreign(model or config.model.name, model_options(config), is_of_keras(tensors))
    to_variables(source, tensors, about)  # raises where they are not of this network
    path = runs.user_path(source)
    return _with(config, about, source, str(path.absolute()) if path.exists() else str(source))


def _check_name(source, about, model):
    if model not in (None, about.model):
        raise UserError(f"{source} holds {about.model}; it cannot be {model}.")


def _began_with(source, begun):
    """Whether a run with this config began with these weights, or with some that are gone; it has kept what it took from them."""
    path, there = runs.user_path(source), begun.transfer.weights
    if path.exists() and Path(there).is_absolute() and not Path(there).exists():
        logger.warning("The run began with %s, which is gone; it goes on without %s.", there, source)
        return True
    return there in (str(path.absolute()), str(source))


def _with(config, about, source, weights):
    config = copy.deepcopy(config)
    config.model.name, config.transfer.weights = about.model, weights
    take_options(config, about, source)
    config.data.mean, config.data.std = about.mean, about.std
    config.data.image_size = config.data.image_size or about.image_shape[0]
    return config


def model_options(config):
    """The options of `create_model` that a config chooses, without `dtype`."""
    options = config.model.to_dict()
    options = {key: value for key, value in options.items() if key not in ("name", "dtype") and value not in (None, {})}
    return options | ({"epsilon": config.batch_norm.epsilon} if config.batch_norm.epsilon else {})


def take_options(config, about, source):
    """Gives a config the options that weights need; raises UserError where the config has others that change their results."""
    own, chosen = about.options.get("options", {}), config.model.options.to_dict()
    if chosen not in ({}, own):
        raise UserError(f"The config asks for the options {chosen}, and the weights in {source} are for {own}.")
    runs.override(config, {f"model.options.{key}": value for key, value in own.items()})
    for key, value in about.options.items():
        if key == "options":
            continue
        section = config.batch_norm if key in config.batch_norm else config.model
        if section[key] is None:
            section[key] = value
        elif section[key] != value and key not in ("dropout", "dtype", "remat"):
            raise UserError(f"The config asks for {key} {section[key]!r}, and the weights in {source} are for {value!r}.")
