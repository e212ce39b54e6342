"""Checkpoints by Orbax: written whole or not at all, with a checksum; the newest two are kept."""

import functools
import itertools
import logging
import shutil
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from plain56 import parallel
from plain56.errors import UserError, first_line

# What lies around the arrays of a checkpoint, and a margin.
SPARE_BYTES = 1 << 20

logger = logging.getLogger(__name__)


def open_checkpoints(folder, read_only=False):
    """The Orbax manager of a run's checkpoint folder; raises UserError if it cannot be read or written.

    Saving is synchronous, so a failed save fails the run at once.
    """
    _ignore_abandoned_work()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else 2,
        enable_async_checkpointing=False,
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,  # what a kill left of a save
    )
    try:
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except (OSError, ValueError) as error:
        raise UserError(f"The checkpoint folder {folder} cannot be opened: {first_line(error)}.") from error


@functools.cache
def _ignore_abandoned_work():
    """Hides Orbax's tracebacks from users: at an error, it abandons its other reads and writes, and their event loop."""
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    before = sys.unraisablehook

    def hook(unraisable):
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        abandoned = code and ocp.__name__.split(".")[0] in Path(code.co_filename).parts
        if not abandoned and str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def save(manager, step, tree):
    """Saves a tree of arrays as the checkpoint of `step`; one that is there already stays.

    Raises UserError if it cannot be saved; the checkpoints before it are as they were.
    """
    if manager.latest_step() == step:
        return
    parallel.on_first(_check_space, manager.directory, step, tree)
    checksum = ocp.args.JsonSave({"crc32": _crc32(tree)})
    try:
        manager.save(step, args=ocp.args.Composite(arrays=ocp.args.StandardSave(tree), checksum=checksum))
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax and TensorStore raise many types for a disk that is full or fails
        raise UserError(f"The checkpoint of step {step} cannot be saved in {manager.directory}: {first_line(error)}.") from error


def restore(manager, tree, set_aside=False):
    """The newest checkpoint that is intact, with the shapes, dtypes and placement of `tree`'s arrays.

    Newer ones that are damaged are named in a warning.

    Args:
        set_aside: rename the damaged ones, so that the run can write them anew.

    Returns:
        The restored tree; `tree` itself if there is no checkpoint.

    Raises UserError if there are checkpoints, and none is intact.
    """
    damaged = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            restored = _restore(manager, step, tree)
        except (MemoryError, jax.errors.JaxRuntimeError):  # the machine's fault, not the checkpoint's
            raise
        except Exception as error:  # Orbax and TensorStore raise many types for damaged files
            damaged[step] = first_line(error)
            continue
        for newer, why in damaged.items():
            logger.warning("The checkpoint of step %d is damaged (%s); going on from step %d.", newer, why, step)
        if damaged and set_aside:
            parallel.on_first(_set_aside, manager.directory, list(damaged))
            manager.reload()
        return restored
    if damaged:
        listed = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
        raise UserError(f"No checkpoint in {manager.directory} can be read ({listed}); remove that folder to start anew.")
    return tree


def _set_aside(folder, steps):
    """Renames checkpoints that cannot be read now, since what keeps them from being read may pass."""
    for step in steps:
        for number in itertools.count(1):
            aside = Path(folder) / f"damaged-{step}-{number}"
            if not aside.exists():
                break
        try:
            (Path(folder) / str(step)).rename(aside)
        except OSError as error:
            raise UserError(f"The damaged checkpoint {folder}/{step} cannot be set aside: {error.strerror}.") from error


def _restore(manager, step, tree):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    arguments = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract), checksum=ocp.args.JsonRestore())
    restored = manager.restore(step, args=arguments)
    if _crc32(restored.arrays) != restored.checksum["crc32"]:
        raise ValueError("its content does not have its checksum")
    return restored.arrays


def _check_space(folder, step, tree):
    """Raises UserError where a checkpoint would not fit: what Orbax prints when it runs out of space, nobody can read."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + SPARE_BYTES
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return  # saving will tell
    free = usage.free
    if usage.total and free < needed:  # some file systems do not say how large they are
        raise UserError(
            f"The checkpoint of step {step} cannot be saved in {folder}: it needs {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB "
            "are free."
        )


def _crc32(tree):
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    return checksum
