"""What a run directory says of a run that has begun: the data that it has, and its newest state."""

import copy
import logging
from contextlib import closing
from typing import Any, NamedTuple

import jax

from plain56 import parallel, runs
from plain56.config import build_model, check, from_json
from plain56.data import choose_mode
from plain56.errors import UserError
from plain56.references import checksum, is_reference
from plain56.training import checkpoints, transfer
from plain56.training.program import initial_state

MODES = {True: "stream", False: "resident"}  # by what a run's environment.json says

logger = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A run's config, network, newest state, and the shape `(H, W, C)` of its images."""

    config: Any
    model: Any
    state: Any
    image_shape: tuple[int, int, int]


def load_run(path):
    """What a run has trained, from its newest checkpoint, without its data; raises UserError if there is no run or checkpoint."""
    run = runs.read_run(path)
    if not run.has_checkpoint():
        raise UserError(f"The run {run.path} has no checkpoint yet.")
    config, data = from_json(run.config()), run.environment().get("data", {})
    check(config)
    if not {"image_shape", "class_names"} <= data.keys():
        raise UserError(
            f"{run.path / 'environment.json'} does not say what data the run has; another version may have written it."
        )
    warn_of_changed_sources(run, config)
    image_shape = tuple(data["image_shape"])
    model = build_model(config, len(data["class_names"]))
    whole = parallel.layout().whole
    plan = transfer.plan(config.transfer, model, image_shape)
    shapes = jax.eval_shape(lambda: initial_state(config, model, image_shape, plan))
    shapes = jax.tree.map(lambda shape: shape.update(sharding=whole), shapes)
    with closing(checkpoints.open_checkpoints(run.checkpoints, read_only=True)) as manager:
        state, _ = checkpoints.restore(manager, shapes)
    return Trained(config, model, state, image_shape)


def own_sources(config):
    """Checksums of the files that hold a config's own network and optimizer, by their references."""
    own = {name: checksum(name) for name in (config.model.name, config.optimizer.name) if is_reference(name)}
    return {name: found for name, found in own.items() if found}


def warn_of_changed_sources(run, config):
    """Warns where a file of a user's own has changed since the run's newest start."""
    before, now = run.environment().get("own_sources", {}), own_sources(config)
    for name in now:
        if before.get(name, now[name]) != now[name]:
            logger.warning("The file of %s has changed since %s was trained; its results may differ.", name, run.path)


def decide_mode(config, run):
    """The config with a `data.mode` of "auto" decided: as the run began, or by process 0, which may have to prepare the data."""
    chosen = parallel.on_first(choose_mode, config.data)
    began = parallel.on_first(lambda: run.environment().get("data", {}).get("streamed"))
    if config.data.mode == "auto":
        config = copy.deepcopy(config)
        config.data.mode = chosen if began is None else MODES[began]
    return config


def check_data(run, found):
    """Raises UserError where what was found of the data set differs from what the run began with."""
    before = run.environment().get("data", found)
    if before.get("streamed", False) != found.get("streamed", before.get("streamed", False)):
        raise UserError(f"{run.path} began with data.mode={MODES[before['streamed']]}, which may not change.")
    # A run that is older than a key does not have it.
    differing = {key: new for key, new in found.items() if before.get(key, new) != new}
    times = differing.pop("times_crc32", None)
    if differing:
        changes = ", ".join(f"{key} ({before[key]} then, {new} now)" for key, new in differing.items())
        raise UserError(f"The data set has changed since {run.path} began: {changes}; it must be the same.")
    if times:  # of which a copy has its own
        logger.warning("The data's files were copied or changed since %s began; only names and sizes are the same.", run.path)
