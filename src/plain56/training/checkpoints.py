"""Checkpoints by Orbax: written whole or not at all, with a checksum; the newest two are kept."""

import logging
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from plain56.errors import UserError

logger = logging.getLogger(__name__)


def open_checkpoints(folder, read_only=False):
    """The Orbax manager of a run's checkpoint folder. Saving is synchronous, so a failed save fails the run at once."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else 2,
        enable_async_checkpointing=False,
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,  # what a kill left of a save
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(manager, step, tree):
    """Saves a tree of arrays as the checkpoint of `step`; one that is there already stays."""
    if manager.latest_step() != step:
        checksum = ocp.args.JsonSave({"crc32": _crc32(tree)})
        manager.save(step, args=ocp.args.Composite(arrays=ocp.args.StandardSave(tree), checksum=checksum))


def restore(manager, tree):
    """The newest checkpoint that is intact, with the shapes, dtypes and placement of `tree`'s arrays.

    Newer ones that are damaged are named in a warning and, unless the manager only reads, removed: the run writes them anew.

    Returns:
        The restored tree; `tree` itself where there is no checkpoint.

    Raises:
        UserError: there are checkpoints, and none is intact.
    """
    damaged = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            restored = _restore(manager, step, tree)
        except (MemoryError, jax.errors.JaxRuntimeError):  # the machine's fault, not the checkpoint's
            raise
        except Exception as error:  # Orbax and TensorStore raise many types for damaged files
            damaged[step] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            continue
        for newer, reason in damaged.items():
            logger.warning("The checkpoint of step %d is damaged (%s); going on from step %d.", newer, reason, step)
            manager.delete(newer)  # by a manager that only reads, this is passed over
        return restored
    if damaged:
        listed = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise UserError(f"No checkpoint in {manager.directory} can be read ({listed}); remove that folder to start anew.")
    return tree


def _restore(manager, step, tree):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    arguments = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract), checksum=ocp.args.JsonRestore())
    restored = manager.restore(step, args=arguments)
    if _crc32(restored.arrays) != restored.checksum["crc32"]:
        raise ValueError("its content does not have its checksum")
    return restored.arrays


def _crc32(tree):
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    return checksum
