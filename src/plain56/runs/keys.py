"""The keys of configs that earlier versions wrote: the only code for the sake of older files."""

import copy

from plain56.errors import UserError

RENAMED = {"data.augment.colour": "data.augment.color"}
# Removed keys, each with the one value that means the same as its absence, and why no other is accepted.
REMOVED = {"train.seeds": (1, "several seeds are a sweep")}


def upgraded(config, source):
    """A stored config, as nested dicts, with today's keys. A section that is not a dict stays as it is.

    Raises UserError if a removed key has a value that means more than its absence; `source` names the file.
    """
    config = copy.deepcopy(config)
    for key, (accepted, reason) in REMOVED.items():
        part, name = _part(config, key)
        if part.pop(name, accepted) != accepted:
            raise UserError(f"{source} has {key}, which was removed: {reason}; only {accepted} is accepted.")
    for old, new in RENAMED.items():
        part, name = _part(config, old)
        if name in part:
            section, renamed = _part(config, new)
            section.setdefault(renamed, part.pop(name))
    return config


def _part(config, key):
    """The section that holds a key, or {} if there is none, and the key's own name."""
    *sections, name = key.split(".")
    for section in sections:
        config = config.get(section)
        if not isinstance(config, dict):
            return {}, name
    return config, name
