"""The keys of stored configs: which of them make a run's identity, and what earlier versions called them.

No other code is there for the sake of older files.
"""

import copy
import functools
import json
import re

from plain56.configs import base
from plain56.errors import UserError
from plain56.runs.files import flatten

# The keys that may differ when a run is continued: they change neither the parameters nor the order of examples.
NOT_IDENTITY = (
    "train.stop_after",
    "train.log_every",
    "train.evaluate_every",
    "train.evaluate_train_every",
    "train.gradients_every",
    "train.checkpoint_every",
    "train.loggers",
    "train.steps_per_call",
    "data.dir",
    "data.mode",
    "data.workers",
    "parallelism",
)
# Renamed keys, each with its new name and the new names of its values, if they have some.
RENAMED = {
    "data.augment.colour": ("data.augment.color", {}),
    "model.normalise": ("model.normalization", {True: "batch", False: "none"}),
}
# The keys of open sections, which a user's own function chooses: flags, sweeps and stored configs may add some.
OPEN_KEY = re.compile(r"(model|optimizer)\.options\.(\w+)")
# Removed keys, each with the one value that means the same as its absence, and why no other is accepted.
REMOVED = {"train.seeds": (1, "several seeds are a sweep")}


def override(config, overrides):
    """Sets keys of a config, in place, by a flat dict; raises as `ConfigDict.update_from_flattened_dict` does.

    A key of an open section need not be there, and may get a value of another type.
    """
    rest = {}
    for key, value in overrides.items():
        if match := OPEN_KEY.fullmatch(key):
            section = config[match[1]].options
            with section.unlocked(), section.ignore_type():
                section[match[2]] = value
        else:
            rest[key] = value
    config.update_from_flattened_dict(rest)


def upgraded(config, source):
    """A stored config, as nested dicts, with today's keys. A key that it is older than has its default of `configs/base.py`.

    An empty config stays empty, and a section that is not a dict stays as it is.
    Raises UserError if a removed key has a value that means more than its absence; `source` names the file.
    """
    return _completed(renamed(config, source), _defaults()) if config else config


def renamed(config, source):
    """A stored config, or some of its sections, with the names of today; arguments and errors as of `upgraded`."""
    config = _copied(config)
    for key, (accepted, reason) in REMOVED.items():
        section, name = _section(config, key)
        if section.pop(name, accepted) != accepted:
            raise UserError(f"{source} has {key}, which was removed: {reason}; it must be {accepted}.")
    for old, (new, values) in RENAMED.items():
        section, name = _section(config, old)
        if name in section:
            target, new_name = _section(config, new)
            value = section.pop(name)
            target.setdefault(new_name, values[value] if type(value) is bool and values else value)
    return config


def _copied(value):
    """Nested dicts of their own; nothing else in a config is ever changed."""
    return {key: _copied(part) for key, part in value.items()} if isinstance(value, dict) else value


@functools.cache
def _defaults():
    return json.loads(json.dumps(base.get_config().to_dict()))


def _completed(config, defaults):
    for key, default in defaults.items():
        if key not in config:
            config[key] = copy.deepcopy(default)
        elif isinstance(default, dict) and isinstance(config[key], dict):
            _completed(config[key], default)
    return config


def _section(config, key):
    """The section that a key belongs to, empty where there is none, and the key's name in it."""
    *sections, name = key.split(".")
    for section in sections:
        config = config.get(section)
        if not isinstance(config, dict):
            return {}, name
    return config, name


def differences(there, new):
    """The keys, with both values, that make two configs, as nested dicts, different runs; "" if one is empty."""
    if there == new:  # as nearly always
        return ""
    there, new = _values(there), _values(upgraded(json.loads(json.dumps(new)), "the config"))
    keys = sorted(key for key in there.keys() | new.keys() if key not in NOT_IDENTITY and there.get(key) != new.get(key))
    if not (there and new and keys):
        return ""
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(f"{key} ({there.get(key)} there, {new.get(key)} now)" for key in keys[:5]) + more


def _values(config):
    """The values by key; an open section without keys has none."""
    return {key: value for key, value in flatten(config).items() if value != {}}
