"""The keys of configs that were written by earlier versions: the only code for the sake of older files."""

from plain56.errors import UserError

RENAMED = {"data.augment.colour": "data.augment.color"}
# Keys that are gone, each with the one value that means what its absence means, and why no other is accepted.
REMOVED = {"train.seeds": (1, "several seeds are a sweep")}


def upgraded(config, source):
    """A stored config, as nested dicts, with today's keys; what is not as it should be stays as it is.

    Raises:
        UserError: a key that was removed has a value that means more than its absence; `source` names the file.
    """
    config = _copied(config)
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


def _copied(value):
    return {key: _copied(part) for key, part in value.items()} if isinstance(value, dict) else value


def _part(config, key):
    """The section that holds a key, empty where there is none, and the key's own name."""
    *sections, name = key.split(".")
    for section in sections:
        config = config.get(section)
        if not isinstance(config, dict):
            return {}, name
    return config, name
