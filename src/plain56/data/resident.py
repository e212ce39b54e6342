"""Batches of a data set that lies on the devices whole: which examples, in what order, as a pure function of seed and step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plain56.data.augment import augment, normalise

# Each use of a run's seed draws from a stream of its own.
ORDER_STREAM, AUGMENTATION_STREAM, DROPOUT_STREAM = 1, 2, 3


class Batch(NamedTuple):
    """Normalised images float32 [B, H, W, C], labels int32 [B], and which slots hold an example, bool [B]."""

    images: jax.Array
    labels: jax.Array
    mask: jax.Array


def stream_key(seed, stream, index):
    """The random key of one step or epoch, derived anew from the seed so that any step can be replayed alone."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), index)


class Order(NamedTuple):
    """The permutations int32 [E, N] of epoch `epoch` and the next ones: of as many as one batch can touch."""

    epoch: jax.Array
    permutations: jax.Array


def epoch_order(seed, epoch, batch_size, num_examples):
    """The order of examples from the start of an epoch on."""
    epochs = epoch + jnp.arange(-(-batch_size // num_examples) + 1, dtype=jnp.int32)
    keys = jax.vmap(lambda epoch: stream_key(seed, ORDER_STREAM, epoch))(epochs)
    return Order(epochs[0], jax.vmap(lambda key: jax.random.permutation(key, num_examples))(keys))


def batch_indices(order, seed, epoch, position, batch_size):
    """Which examples a batch holds: int32 [B], and the order to hand in for the next batch.

    Slot i of step k takes `permutation(seed, p // N)[p % N]` with `p = k·B + i`: every epoch visits every example once, no
    remainder is dropped, and the batch does not depend on the number of devices.

    Args:
        order: of the last batch; made anew only when an epoch begins, since sorting costs more than a small step.
        epoch, position: p of slot 0 as a number of whole epochs and the rest (which may exceed an epoch): p itself outgrows
            32 bits in long runs.
    """
    num_examples = order.permutations.shape[1]
    epoch, position = epoch + position // num_examples, position % num_examples
    order = jax.lax.cond(epoch == order.epoch, lambda: order, lambda: epoch_order(seed, epoch, batch_size, num_examples))
    slots = position + jnp.arange(batch_size, dtype=jnp.int32)
    return order.permutations[slots // num_examples, slots % num_examples], order


def train_batch(split, indices, seed, step, data):
    """The augmented batch of one training step.

    Args:
        split: `Split` on the devices.
        indices: int32 [B], of `batch_indices`.
        step: updates completed before this one, int32.
        data: the config's `data` section (normalisation and augmentation).
    """
    images = augment(split.images[indices], stream_key(seed, AUGMENTATION_STREAM, step), data.augment)
    return Batch(normalise(images, data.mean, data.std), split.labels[indices], jnp.ones(indices.shape, bool))


def evaluation_batch(split, number, batch_size, data):
    """Batch `number` of the split in its own order, without augmentation; slots past the end are masked."""
    indices = number * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    mask = indices < split.labels.shape[0]
    indices = jnp.where(mask, indices, 0)
    return Batch(normalise(split.images[indices], data.mean, data.std), split.labels[indices], mask)
