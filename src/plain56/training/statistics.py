"""Exact statistics for batch norm: moments over a whole split, in place of running averages."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from plain56.data import evaluation_batch, normalize


def measure_moments(params, batch_stats, split, *, model, batch_size, data, split_batch):
    """Mean and variance of the input of every batch norm over the resident `split`, without augmentation.

    The network runs in evaluation mode, normalizing by the given `batch_stats`, and the result has their shapes. Norms that
    evaluation leaves out, those of auxiliary heads, keep what was given.
    """
    examples, given = split.labels.shape[0], traverse_util.flatten_dict(batch_stats)
    # Deviations from the given means do not cancel. Where those overflowed, because layers before were far off, zero will do.
    centers = jax.tree.map(lambda mean: jnp.where(jnp.isfinite(mean), mean, 0), given)

    def weighted(images):
        """A batch's deviations from the centers, and its mean squares around these, times its share of the examples."""
        variables = {"params": params, "batch_stats": batch_stats}
        _, changes = model.apply(variables, images, train=False, mutable=["moments"])
        moments, sums = traverse_util.flatten_dict(changes["moments"]), {}
        for path, value in moments.items():
            if path[-1] == "mean":
                variance_path = (*path[:-1], "var")
                sums[path] = value - centers[path]
                sums[variance_path] = moments[variance_path] + sums[path] ** 2
        return jax.tree.map(lambda value: value * (images.shape[0] / examples), sums)

    def batch(number):
        return split_batch(evaluation_batch(split, number, batch_size, data)).images

    batches, rest = divmod(examples, batch_size)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: weighted(batch(0))))
    numbers = jnp.arange(batches, dtype=jnp.int32)
    sums, _ = jax.lax.scan(lambda sums, i: (jax.tree.map(jnp.add, sums, weighted(batch(i))), None), zeros, numbers)
    if rest:
        last = weighted(normalize(split.images[-rest:], data.mean, data.std))
        sums = jax.tree.map(jnp.add, sums, last)
    found = {
        path: jnp.maximum(0, value - sums[(*path[:-1], "mean")] ** 2) if path[-1] == "var" else centers[path] + value
        for path, value in sums.items()
    }
    return traverse_util.unflatten_dict(given | found)


def exact_batch_stats(batch_stats, measure):
    """Batch statistics that are the moments over a whole split of what each layer really gets, and the number of passes.

    A layer's input depends on the statistics of those before it, so each pass makes at least one more layer exact; it ends when
    nothing changes by more than float32 resolves. What changes by less stays as it is: rounding that differs from pass to pass
    would double with every layer. The released ResNets were evaluated with statistics over the training set.

    Args:
        batch_stats: to begin with.
        measure: `batch_stats -> moments`, as `measure_moments`.
    """
    layers = sum(leaf.size // leaf.shape[-1] for leaf in jax.tree.leaves(batch_stats)) // 2
    batch_stats, passes, settled = jax.device_get(batch_stats), 0, False
    while not settled and passes <= layers:
        before, batch_stats = batch_stats, jax.tree.map(_unless_settled, batch_stats, jax.device_get(measure(batch_stats)))
        settled = all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(batch_stats)))
        passes += 1
    return batch_stats, passes


def _unless_settled(old, new):
    """The new statistics [..., C] of the layers where they differ from the old ones by more than float32 resolves."""
    with np.errstate(invalid="ignore"):  # what lies behind layers that are far off may be infinite at first
        largest_change, largest = (np.abs(array).max(axis=-1, keepdims=True) for array in (new - old, new))
    return np.where(largest_change < 1e-6 * largest, old, new)
