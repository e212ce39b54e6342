"""Checkpoints by Orbax: written whole or not at all, the newest two are kept."""

import jax
import orbax.checkpoint as ocp

from plain56.errors import UserError


def open_checkpoints(folder, read_only=False):
    """The Orbax manager of a run's checkpoint folder. Saving is synchronous, so a failed save fails the run at once."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else 2, enable_async_checkpointing=False, create=not read_only, read_only=read_only
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(manager, step, tree):
    """Saves a tree of arrays as the checkpoint of `step`; one that is there already stays."""
    if manager.latest_step() != step:
        manager.save(step, args=ocp.args.StandardSave(tree))


def restore(manager, tree):
    """The newest checkpoint, with the shapes, dtypes and placement of `tree`'s arrays; `tree` itself where there is none.

    Raises:
        UserError: the newest checkpoint is damaged or holds another network.
    """
    step = manager.latest_step()
    if step is None:
        return tree
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    try:
        return manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except Exception as error:  # Orbax and TensorStore raise many types for damaged files
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"The checkpoint of step {step} in {manager.directory} cannot be read ({first_line[:200]}); remove that step's "
            "folder to go on from an earlier one."
        ) from error
