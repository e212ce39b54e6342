"""Is a config sound? Every rule on single values, each with its sentence."""

import re
from itertools import pairwise

from ml_collections import ConfigDict

from plain56.errors import UserError, first_line
from plain56.models import create_model, is_own, parse_name
from plain56.references import FORM, is_reference
from plain56.runs import flatten


def _number(holds, allowed):
    """A rule on numbers; True and False are numbers in Python, but not here."""
    return (lambda value: isinstance(value, int | float) and type(value) is not bool and holds(value), allowed)


def _count(least, most=2**31 - 1):
    """The rule of integers in a range; steps are int32 on the devices."""
    return (lambda value: type(value) is int and least <= value <= most, f"an integer from {least} to {most}")


# What float32 holds is a little more.
POSITIVE = _number(lambda value: 0 < value < 1e38, "a positive number below 1e38")
NOT_NEGATIVE = _number(lambda value: 0 <= value < 1e38, "a number from 0 to below 1e38")
FRACTION = _number(lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
SEED = _count(0, 2**32 - 1)
BOOLEAN = (lambda value: type(value) is bool, "True or False")
TEXT = (lambda value: type(value) is str, "a text")


def _choice(*allowed):
    return (lambda value: value in allowed, " or ".join(map(repr, allowed)))


def _not_empty(allowed):
    return (lambda value: type(value) is str and value != "", allowed)


def _optional(rule):
    holds, allowed = rule
    return (lambda value: value is None or holds(value), allowed)


def _all_are(rule, values):
    return type(values) is tuple and all(map(rule[0], values))


def _range(least, most):
    """The rule of pairs that random numbers lie between."""
    within = _number(lambda value: least <= value <= most, "")
    return (
        lambda values: values == () or (_all_are(within, values) and len(values) == 2 and values[0] <= values[1]),
        f"() or (least, most) with {least} ≤ least ≤ most ≤ {most}",
    )


OPTIMIZERS = ("sgd", "adam", "adamw", "lars", "muon")

# Where None is a value of its own: the default of the network, or of batch norm, or a step that is left out.
OPTIONAL = re.compile(r"model\.(?!name$|dtype$|options$)\w+|batch_norm\.epsilon|optimizer\.clip_norm")


def _is_literal(value):
    return isinstance(value, bool | int | float | str | None) or (type(value) is tuple and all(map(_is_literal, value)))


def _are_options(values):
    return isinstance(values, dict) and all(key.isidentifier() and _is_literal(value) for key, value in values.items())


OPTIONS = (_are_options, "options: names with numbers, texts, True, False, None, or tuples of these")

RULES = {
    **dict.fromkeys(("model.options", "optimizer.options"), OPTIONS),
    "model.name": _not_empty("the name of a network"),
    "model.dtype": TEXT,
    "model.dropout": _optional(FRACTION),
    "model.widths": _optional((lambda values: _all_are(_count(1), values), "a tuple of numbers of filters")),
    **dict.fromkeys(
        (
            f"model.{key}"
            for key in ("shortcut", "bottleneck_stride", "form", "activation", "normalization", "initializer", "kernel")
        ),
        _optional(TEXT),
    ),
    **dict.fromkeys(
        (f"model.{key}" for key in ("pre_activation", "zero_init", "remat", "auxiliary", "fixup")), _optional(BOOLEAN)
    ),
    "model.negative_slope": _optional(_number(lambda value: 0 <= value <= 1, "a number from 0 to 1")),
    "model.branch_scale": _optional(
        (
            lambda value: value in ("inverse_sqrt_blocks", "learned_zero") or POSITIVE[0](value),
            "'inverse_sqrt_blocks', 'learned_zero' or a positive number below 1e38",
        )
    ),
    "model.shortcut_scale": _optional(POSITIVE),
    "model.survival": _optional(_number(lambda value: 0 < value <= 1, "a number above 0 and at most 1")),
    "data.name": (
        lambda value: type(value) is str and value not in ("", "folder:"),
        "'digits', the name of a TFDS set, or 'folder:PATH'",
    ),
    "data.dir": TEXT,
    "data.train_split": _not_empty("the name of a split"),
    "data.test_split": _not_empty("the name of a split"),
    "data.test_share": _number(lambda value: 0 < value < 1, "a number between 0 and 1"),
    "data.classes": (
        lambda values: values == () or (_all_are(TEXT, values) and len(set(values)) == len(values) >= 2),
        "() or at least two different names of classes",
    ),
    "data.validation_examples": _count(0),
    "data.examples_per_class": _count(0),
    "data.split_seed": SEED,
    "data.mode": _choice("auto", "resident", "stream"),
    "data.workers": _count(0, 1024),
    "data.image_size": _count(0, 8192),
    "seed": SEED,
    "parallelism": _choice("jit", "pmap"),
    "batch_norm.momentum": FRACTION,
    "batch_norm.epsilon": _optional(POSITIVE),
    "batch_norm.sync": BOOLEAN,
    "data.mean": (
        lambda values: _all_are(_number(lambda value: 0 <= value <= 1, ""), values) and len(values) in (1, 3),
        "one number (gray) or three (RGB) in [0, 1]",
    ),
    "data.std": (lambda values: _all_are(POSITIVE, values), "a tuple of positive numbers below 1e38"),
    "data.augment.pad": _count(0, 1024),
    "data.augment.enlarge": _range(1, 100),
    "data.augment.area": _range(0.001, 1),
    "data.augment.flip": BOOLEAN,
    "data.augment.color": NOT_NEGATIVE,
    "train.steps": _count(1),
    "train.batch_size": _count(1, 2**20),
    "train.label_smoothing": FRACTION,
    "train.warm_start": TEXT,
    "train.accumulate": _count(1),
    "train.stop_after": _count(0),
    "train.steps_per_call": _count(1),
    "train.log_every": _count(1),
    "train.evaluate_every": _count(1),
    "train.evaluate_train_every": _count(0),
    "train.gradients_every": _count(0),
    "train.checkpoint_every": _count(1),
    "train.loggers": (
        lambda values: (
            type(values) is tuple
            and len(set(values)) == len(values)
            and all(value in ("tensorboard", "wandb") or is_reference(value) for value in values)
        ),
        "a tuple of different loggers: 'tensorboard', 'wandb' or 'package.module:function'",
    ),
    "transfer.weights": TEXT,
    "transfer.freeze": (lambda values: _all_are(TEXT, values), "a tuple of names of stages and layers, or of patterns"),
    **dict.fromkeys((f"transfer.{key}" for key in ("probe", "freeze_scales", "freeze_statistics")), BOOLEAN),
    "transfer.rate_factor": _number(lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "optimizer.name": (
        lambda value: value in OPTIMIZERS or is_reference(value),
        f"{', '.join(OPTIMIZERS)} or a function of your own as {FORM}",
    ),
    "optimizer.clip_norm": _optional(POSITIVE),
    "optimizer.learning_rate": POSITIVE,
    "optimizer.momentum": FRACTION,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.decay_all": BOOLEAN,
    "optimizer.schedule.name": _choice("step", "cosine"),
    "optimizer.schedule.boundaries": (
        lambda values: _all_are(_count(1), values) and all(a < b for a, b in pairwise(values)),
        "a tuple of rising positive integers",
    ),
    "optimizer.schedule.factor": _number(lambda value: 0 < value < 1, "a number between 0 and 1"),
    "optimizer.schedule.warmup_steps": _count(0),
    "optimizer.schedule.warmup_learning_rate": NOT_NEGATIVE,
}


def _is_folder(config):
    return config.data.name.startswith("folder:")


def _has_batch_norm(config):
    if is_own(config.model.name):
        return True  # it may have some; nothing is known of it
    family = parse_name(config.model.name)[0]
    if family in ("plain", "resnet"):
        return config.model.normalization in (None, "batch")
    return config.model.name.endswith("_bn")


# Where a key changes nothing, it must have the value here, its default in `configs/base.py`: [(where, when, values)].
# Not here, since one sweep sets them for all of its networks: model.shortcut in plain networks, and model.bottleneck_stride where
# there are no bottlenecks. Nor what the cosine schedule does not read: boundaries and factor, which recipes leave as they are.
# Nor the weight decay with an optimizer of the user's own, since recipes set it.
UNUSED = (
    (
        "a probe, which fits the last layer to features that are computed once",
        lambda config: config.transfer.probe,
        {
            "train.stop_after": 0,
            "train.gradients_every": 0,
            "train.accumulate": 1,
            "transfer.freeze": (),
            "transfer.rate_factor": 1.0,
            "data.augment.pad": 0,
            "data.augment.enlarge": (),
            "data.augment.area": (),
            "data.augment.flip": False,
            "data.augment.color": 0.0,
            "model.dropout": None,
            "optimizer.schedule.warmup_learning_rate": 0.0,
            "batch_norm.sync": True,
            "optimizer.name": "sgd",
            "optimizer.options": {},
            "optimizer.clip_norm": None,
        },
    ),
    (
        "an optimizer of your own",
        lambda config: is_reference(config.optimizer.name),
        {"optimizer.momentum": 0.9, "optimizer.decay_all": False},
    ),
    ("Adam", lambda config: config.optimizer.name in ("adam", "adamw"), {"optimizer.momentum": 0.9}),
    ("the embedded digits", lambda config: config.data.name == "digits", {"data.dir": ""}),
    ("data that is not in a folder", lambda config: not _is_folder(config), {"data.test_share": 0.2}),
    (
        "a split that is not drawn",
        lambda config: not (config.data.validation_examples or config.data.examples_per_class or _is_folder(config)),
        {"data.split_seed": 0},
    ),
    ("resident data", lambda config: config.data.mode == "resident", {"data.workers": 0}),
    (
        "a network without batch norm",
        lambda config: not _has_batch_norm(config),
        {
            "batch_norm.momentum": 0.9,
            "batch_norm.sync": True,
            "batch_norm.epsilon": None,
            "transfer.freeze_scales": False,
            "transfer.freeze_statistics": False,
        },
    ),
    (
        "a schedule without warm-up",
        lambda config: not config.optimizer.schedule.warmup_steps,
        {"optimizer.schedule.warmup_learning_rate": 0.0},
    ),
)


def check_used(config):
    """Raises UserError where a sound config of a run that is to be trained has a key that would change nothing."""
    flat = _values(config)
    for where, holds, values in UNUSED:
        for key, unused in values.items():
            if flat[key] != unused and holds(config):
                raise UserError(f"{key} must be {unused!r} with {where}, where {flat[key]!r} would change nothing.")


def from_json(nested):
    """The locked `ConfigDict` that nested dicts read from JSON were written from; raises UserError where they are not of one."""
    try:
        return ConfigDict(with_tuples(nested)).lock()
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # names that can be no keys
        raise UserError(f"The stored config cannot be read: {first_line(error)}.") from error


def with_tuples(value):
    """A value read from JSON, with lists as the tuples that they were."""
    if isinstance(value, dict):
        return {key: with_tuples(part) for key, part in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list | tuple) else value


def build_model(config, num_classes, **numerics):
    """The network that a config describes; `numerics` are fields of `layers.Numerics` that are no keys of the config."""
    fields = {key: value for key, value in config.model.to_dict().items() if key != "name"}
    batch_norm = {key: config.batch_norm[key] for key in ("momentum", "epsilon")}
    return create_model(config.model.name, num_classes, numerics=numerics, **fields, **batch_norm)


def _values(config):
    """The values of a config by key; an open section is one value."""
    nested = config.to_dict()
    sections = {name: nested[name] for name in ("model", "optimizer") if isinstance(nested.get(name), dict)}
    options = {f"{name}.options": section.pop("options") for name, section in sections.items() if "options" in section}
    return flatten(nested) | options


def check_value(key, value):
    """Raises UserError where a key may not have a value, whatever the other keys have."""
    if value is None and not OPTIONAL.fullmatch(key):
        raise UserError(f"{key} must have a value, not None.")
    holds, allowed = RULES.get(key, (lambda value: True, ""))
    try:
        sound = holds(value)
    except TypeError:
        sound = False
    if not sound:
        raise UserError(f"{key} must be {allowed}, not {value!r}.")


def check(config):
    """Checks a resolved config without its data and devices; raises UserError with a key, its value and what is expected."""
    flat = _values(config)
    for key in RULES:
        if key not in flat:
            raise UserError(f"The config must have the key {key}, as configs/base.py has.")
        check_value(key, flat[key])
    build_model(config, num_classes=2)
    if len(config.data.std) != len(config.data.mean):
        raise UserError(f"data.std must have as many numbers as data.mean, {len(config.data.mean)}, not {len(config.data.std)}.")
    options = config.data.augment
    crops = {f"data.augment.{key}": options[key] for key in ("pad", "enlarge", "area") if options[key]}
    if len(crops) > 1:
        given = " and ".join(f"{key} is {value}" for key, value in crops.items())
        raise UserError(f"{given}; only one of them may be set.")
    if options.color and len(config.data.mean) != 3:
        raise UserError(f"data.augment.color must be 0 for gray images, not {options.color}.")
    schedule = config.optimizer.schedule
    if schedule.name == "step" and schedule.warmup_steps and not schedule.warmup_learning_rate:
        raise UserError(
            "optimizer.schedule.warmup_learning_rate must be positive, not 0: the step schedule holds it for all "
            f"{schedule.warmup_steps} warm-up steps."
        )
    if schedule.name == "cosine" and schedule.warmup_steps >= config.train.steps:
        raise UserError(
            f"optimizer.schedule.warmup_steps must be below train.steps, {config.train.steps}, not {schedule.warmup_steps}."
        )
