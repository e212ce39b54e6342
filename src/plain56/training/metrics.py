"""Losses and errors: sums over examples, which are divided once, on the host."""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from plain56.data import evaluation_batch

# Szegedy et al. 2014, section 5: "the losses of the auxiliary classifiers were weighted by 0.3".
AUXILIARY_WEIGHT = 0.3


class Totals(struct.PyTreeNode):
    """Sums over examples: the loss, the wrong first and first five guesses, and the number of examples."""

    loss: jax.Array
    top1_errors: jax.Array
    top5_errors: jax.Array
    examples: jax.Array

    @classmethod
    def zero(cls):
        integer = jnp.zeros((), jnp.int32)
        return cls(jnp.zeros(()), integer, integer, integer)

    def means(self):
        """Mean loss and errors as fractions in [0, 1], as Python numbers."""
        loss, top1_errors, top5_errors, examples = (value.item() for value in jax.device_get(jax.tree.leaves(self)))
        return {"loss": loss / examples, "top1_error": top1_errors / examples, "top5_error": top5_errors / examples}


def example_losses(logits, labels, label_smoothing=0.0):
    """Cross entropy of each example [B], against (1 − smoothing) on the label plus smoothing spread over all classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def minimized_losses(output, labels, label_smoothing=0.0):
    """What training minimizes, of each example [B]: the last layer's loss, plus 0.3 times that of each auxiliary head."""
    auxiliary = [example_losses(logits, labels, label_smoothing) for logits in output.auxiliary_logits]
    return example_losses(output.logits, labels, label_smoothing) + AUXILIARY_WEIGHT * sum(auxiliary)


def batch_totals(losses, logits, labels, mask):
    """The totals of one batch without its masked slots. Ties go to the lower class, as with argmax; a NaN puts the label last."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    later = jnp.arange(logits.shape[-1])[None] > labels[:, None]
    # Counting the classes that are surely behind, so that a NaN puts the label last and equal logits are ranked by class.
    behind = jnp.sum((logits < own) | ((logits == own) & later), axis=-1)
    rank = logits.shape[-1] - 1 - behind
    return Totals(
        jnp.sum(jnp.where(mask, losses, 0)).astype(jnp.float32),
        jnp.sum(mask & (rank >= 1), dtype=jnp.int32),
        jnp.sum(mask & (rank >= 5), dtype=jnp.int32),
        jnp.sum(mask, dtype=jnp.int32),
    )


def add_batch(params, batch_stats, totals, batch, *, model):
    """The totals, with those of one normalized batch in evaluation mode added."""
    logits = model.apply({"params": params, "batch_stats": batch_stats}, batch.images, train=False).logits
    new = batch_totals(example_losses(logits, batch.labels), logits, batch.labels, batch.mask)
    return jax.tree.map(jnp.add, totals, new)


def split_totals(params, batch_stats, split, *, model, batch_size, data, split_batch):
    """Totals over every example of the resident `split`, once each: the last batch is filled up with masked slots.

    Args:
        data: the config's `data` section.
        split_batch: `batch -> batch`, shares a batch out among the devices.
    """

    def body(totals, number):
        batch = split_batch(evaluation_batch(split, number, batch_size, data))
        return add_batch(params, batch_stats, totals, batch, model=model), None

    batches = -(-split.labels.shape[0] // batch_size)
    return jax.lax.scan(body, Totals.zero(), jnp.arange(batches, dtype=jnp.int32))[0]
