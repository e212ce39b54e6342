"""Loss and errors over a whole split."""

import jax
import jax.numpy as jnp

from plain56.data import evaluation_batch
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
