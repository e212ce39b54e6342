"""What tells the runs of a sweep apart: the config keys in which they differ, and the groups that no mean or curve may mix.

In the rows of a summary, those keys are columns by their full names, which have a dot, as no other column has.
"""

import re
from collections import Counter

from plain56.runs.keys import NOT_IDENTITY

DEPTH = "model.options.depth"


def grouped(rows, key):
    """Lists of the rows by `key(row)`, in the order in which they come."""
    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def differing_keys(configs):
    """The keys in which flat configs differ, but for the network's name, the seed, and what is no part of a run's identity.

    A key that a config lacks, as it may in a section of options, counts as None.
    """
    keys = dict.fromkeys(key for config in configs for key, value in config.items() if value != {})
    own = (key for key in keys if "." in key and key not in ("model.name", *NOT_IDENTITY))
    return [key for key in own if any(config.get(key) != configs[0].get(key) for config in configs)]


def cell(value):
    """A config's value for a table: a list or tuple as the text of a tuple, and None for an empty section."""
    return None if value == {} else str(_tuples(value)) if isinstance(value, list | tuple) else value


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def family(row):
    """The family of a row's network whose members differ by depth: "plain", "residual", or the name of a user's own network.

    None for another network, and where the depth is not known.
    """
    match = re.fullmatch(r"(plain|resnet)\d+(_cifar)?|.+:.+", row["model"] or "")
    if match is None or row["depth"] is None:
        return None
    return {"plain": "plain", "resnet": "residual"}.get(match[1], row["model"])


def config_columns(row):
    """The columns of a row of the summary that are config keys."""
    return [key for key in row if "." in key]


def group_keys(rows):
    """The columns of config keys in which runs of one network differ: they make groups of runs of the same overrides.

    A key that only follows the network belongs to its recipe, as the warm-up of the deepest ones does (He et al. 2015, 4.2). The
    depth of a user's own network has its own column, `depth`.
    """
    values = {}
    for row in rows:
        for key in config_columns(row):
            if key == DEPTH:
                continue
            values.setdefault((key, row["model"]), set()).add(row[key])
    differing = {key for (key, _), found in values.items() if len(found) > 1}
    return [key for key in config_columns(rows[0] if rows else {}) if key in differing]


def short_names(row):
    """Names for the config columns of a row: the part after the last dot where that stands for nothing else."""
    last = {key: key.rpartition(".")[-1] for key in config_columns(row)}
    taken = Counter([*last.values(), *(key for key in row if key not in last)])
    return {key: key if taken[name] > 1 else name for key, name in last.items()}


def label(row, keys):
    """What a row has in some config columns, as "momentum 0.5, widths (16, 16, 32)", or "default widths" where it has nothing."""
    names = short_names(row)
    told = [f"{names[key]} {row[key]}" for key in keys if row[key] is not None]
    return ", ".join(told or [f"default {names[key]}" for key in keys])
