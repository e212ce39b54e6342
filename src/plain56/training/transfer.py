"""Which layers of a network are trained, and how fast: what fine-tuning chooses, stage by stage (see `models.stack.stages`)."""

import fnmatch
from collections.abc import Callable
from typing import NamedTuple

import optax
from flax import traverse_util

from plain56.errors import UserError
from plain56.models import stack


class Stage(NamedTuple):
    """A stage of a network: its trained and all its parameters, and its learning rate as a multiple of the last layer's."""

    name: str
    trained: int
    parameters: int
    rate: float


class Plan(NamedTuple):
    """What a config's `transfer` section does to training.

    Both are functions of a parameter's path: `is_trained` is None where all are trained, and `rate_multiple`, of the learning
    rate, is None where all have one rate.
    """

    is_trained: Callable | None
    rate_multiple: Callable | None


def plan(options, model, image_shape):
    """The `Plan` of a network for images of `image_shape` `(H, W, C)`; the last layer is always trained.

    A network that has a `rate_multiple` of its own multiplies the rates by it.

    `options` is the config's `transfer` section. Raises UserError if no layer fits a pattern of `freeze`.
    """
    if options.probe:
        return Plan(lambda path: path[0] == "head", None)
    of_network = getattr(model, "rate_multiple", None)
    if not (options.freeze or options.freeze_scales or options.rate_factor != 1):
        return Plan(None, of_network)
    stages = stack.stages(model, image_shape)
    if options.rate_factor == 1:
        return Plan(_is_trained(options, stages), of_network)
    rates = _rates(options, stages)
    return Plan(_is_trained(options, stages), lambda path: rates[path[0]] * (of_network(path) if of_network else 1))


def _is_trained(options, stages):
    unused = [pattern for pattern in options.freeze if not fnmatch.filter({*stages, *stages.values()}, pattern)]
    if unused:
        raise UserError(
            f"transfer.freeze has {unused[0]!r}, which fits no stage or layer of the network; its stages are "
            f"{', '.join(dict.fromkeys(stages.values()))}."
        )
    if not (options.freeze or options.freeze_scales):
        return None

    def decide(path):
        layer, stage = path[0], stages[path[0]]
        if stage == "head":
            return True
        frozen = any(fnmatch.fnmatchcase(name, pattern) for pattern in options.freeze for name in (layer, stage))
        return not (frozen or (options.freeze_scales and "norm" in path[-2]))

    return decide


def _rates(options, stages):
    """The learning rate of every layer as a multiple of the last layer's: each stage's is `rate_factor` times the next one's."""
    order = list(dict.fromkeys(stages.values()))
    return {layer: options.rate_factor ** (len(order) - 1 - order.index(stage)) for layer, stage in stages.items()}


def split(params, decide):
    """Parameters as the trained ones and the others, two dicts by path; `decide` is a plan's `is_trained`."""
    flat = traverse_util.flatten_dict(params)
    trained = {path: leaf for path, leaf in flat.items() if decide(path)}
    return trained, {path: leaf for path, leaf in flat.items() if path not in trained}


def describe(params, options, model, image_shape):
    """The network's `Stage`s, from the images to the classes, by its parameters or their shapes; otherwise as `plan`."""
    stages = stack.stages(model, image_shape)
    multiples, decide = _rates(options, stages), plan(options, model, image_shape).is_trained or (lambda path: True)
    described = {stage: Stage(stage, 0, 0, multiples[layer]) for layer, stage in stages.items()}
    for path, leaf in traverse_util.flatten_dict(params).items():
        stage = described[stages[path[0]]]
        trained, parameters = stage.trained + leaf.size * decide(path), stage.parameters + leaf.size
        described[stage.name] = stage._replace(trained=trained, parameters=parameters)
    return list(described.values())


def scale_rates(rate_multiple):
    """An optax transformation that multiplies the update of every parameter by a plan's `rate_multiple`."""

    def scale(updates, params=None):
        return traverse_util.path_aware_map(lambda path, leaf: leaf * rate_multiple(path), updates)

    return optax.stateless(scale)
