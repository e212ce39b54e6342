"""Loss and errors over a whole split, and exact statistics for batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from plain56.data import evaluation_batch, normalise
from plain56.training.step import Totals, count, example_losses


def evaluate(params, batch_stats, split, *, model, batch_size, data, place_batch):
    """Totals over every example of the resident `split`, once each: the last batch is filled up with masked slots."""

    def body(totals, number):
        batch = place_batch(evaluation_batch(split, number, batch_size, data))
        logits = model.apply({"params": params, "batch_stats": batch_stats}, batch.images, train=False).logits
        new = count(example_losses(logits, batch.labels), logits, batch.labels, batch.mask)
        return jax.tree.map(jnp.add, totals, new), None

    batches = -(-split.labels.shape[0] // batch_size)
    return jax.lax.scan(body, Totals.zero(), jnp.arange(batches, dtype=jnp.int32))[0]


def measure_moments(params, batch_stats, split, *, model, batch_size, data, place_batch):
    """Mean and variance of the input of every batch norm over the resident `split`, without augmentation.

    The network runs in evaluation mode, normalising by the given `batch_stats`, and the result has their shapes.
    """
    examples = split.labels.shape[0]

    def weighted(images):
        """The means and the mean squares of a batch, times its share of the examples."""
        variables = {"params": params, "batch_stats": batch_stats}
        moments = model.apply(variables, images, train=False, mutable=["moments"])[1]["moments"]
        flat = traverse_util.flatten_dict(moments)
        squares = {path: value + flat[(*path[:-1], "mean")] ** 2 for path, value in flat.items() if path[-1] == "var"}
        return jax.tree.map(lambda value: value * (images.shape[0] / examples), flat | squares)

    def body(sums, number):
        batch = place_batch(evaluation_batch(split, number, batch_size, data))
        return jax.tree.map(jnp.add, sums, weighted(batch.images)), None

    batches, rest = divmod(examples, batch_size)
    sums = jax.tree.map(jnp.zeros_like, traverse_util.flatten_dict(batch_stats))
    sums, _ = jax.lax.scan(body, sums, jnp.arange(batches, dtype=jnp.int32))
    if rest:
        last = weighted(normalise(split.images[-rest:], data.mean, data.std))
        sums = jax.tree.map(jnp.add, sums, last)
    return traverse_util.unflatten_dict(
        {path: value - sums[(*path[:-1], "mean")] ** 2 if path[-1] == "var" else value for path, value in sums.items()}
    )


def exact_batch_stats(batch_stats, measure):
    """Batch statistics that are the moments over a whole split of what each layer really gets, and the number of passes.

    A layer's input depends on the statistics of those before it, so each pass makes at least one more layer exact; it ends when
    nothing changes by more than float32 resolves. The released ResNets were evaluated with statistics over the training set.

    Args:
        batch_stats: to begin with.
        measure: `batch_stats -> moments`, as `measure_moments`.
    """
    passes, settled = 0, False
    while not settled:
        before, batch_stats, passes = batch_stats, measure(batch_stats), passes + 1
        pairs = zip(*(jax.tree.leaves(jax.device_get(tree)) for tree in (before, batch_stats)), strict=True)
        settled = all(np.abs(new - old).max() <= 1e-6 * np.abs(new).max() for old, new in pairs)
    return batch_stats, passes
