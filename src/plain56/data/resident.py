"""Batches of a data set that lies on the devices whole: which examples, in what order, as a pure function of seed and step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plain56.data.augment import augment, normalise

# Each use of a run's seed draws from a stream of its own.
ORDER_STREAM, AUGMENTATION_STREAM = 1, 2


class Batch(NamedTuple):
    """Normalised images float32 [B, H, W, C], labels int32 [B], and which slots hold an example, bool [B]."""

    images: jax.Array
    labels: jax.Array
    mask: jax.Array


def stream_key(seed, stream, index):
    """The random key of one step or epoch, derived anew from the seed so that any step can be replayed alone."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), index)


def example_order(seed, epochs, num_examples):
    """The permutation of all examples for each of `epochs` int32 [E]: int32 [E, N]."""
    return jax.vmap(lambda epoch: jax.random.permutation(stream_key(seed, ORDER_STREAM, epoch), num_examples))(epochs)


def example_indices(seed, first_epoch, first_position, steps, batch_size, num_examples):
    """Which examples `steps` consecutive batches hold: int32 [steps, B].

    Slot i of step k takes `permutation(seed, p // N)[p % N]` with `p = k·B + i`: every epoch visits every example once, no
    remainder is dropped, and the batch does not depend on the number of devices. The first step's `p` arrives split in
    `first_epoch, first_position = divmod(k·B, N)`, because it outgrows 32 bits in long runs.
    """
    position = first_position + jnp.arange(steps * batch_size, dtype=jnp.int32)
    most_epochs = -(-steps * batch_size // num_examples) + 1
    order = example_order(seed, first_epoch + jnp.arange(most_epochs, dtype=jnp.int32), num_examples)
    return order[position // num_examples, position % num_examples].reshape(steps, batch_size)


def train_batch(split, indices, seed, step, data):
    """The augmented batch of one training step.

    Args:
        split: `Split` on the devices.
        indices: int32 [B], a row of `example_indices`.
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
