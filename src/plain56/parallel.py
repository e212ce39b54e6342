"""Data parallelism over all local devices: where arrays lie. The step itself knows nothing of it."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plain56.errors import UserError

DATA_AXIS = "data"


def data_mesh():
    """A mesh of all devices with the one axis "data"."""
    return Mesh(np.array(jax.devices()), (DATA_AXIS,))


def check_batch_size(batch_size, mesh):
    """Raises UserError unless every device gets equally many examples of a batch."""
    if batch_size % mesh.size:
        raise UserError(
            f"train.batch_size is {batch_size}, which does not divide among the {mesh.size} devices; allowed are multiples of "
            f"{mesh.size}."
        )


def replicated(mesh):
    """The placement of what every device holds whole: parameters, statistics, the resident data set."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh):
    """The placement of what the devices share out among them along its first axis."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def split_batch(batch, mesh):
    """Inside a jitted function: shares a batch out among the devices along its first axis."""
    return jax.lax.with_sharding_constraint(batch, spread(mesh))


def share_out(function, mesh):
    """`function(own, shared)`, computed by each device for its share of `own`'s and the result's first axis."""
    one_each, everywhere = PartitionSpec(DATA_AXIS), PartitionSpec()
    return jax.shard_map(function, mesh=mesh, in_specs=(one_each, everywhere), out_specs=one_each, check_vma=False)
