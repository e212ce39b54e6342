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


def visiting_order(seed, first_epoch, num_examples, length):
    """Which examples a run visits from the start of an epoch on: int32, at least `length` from any place in that epoch.

    A permutation for each epoch, one after another. Step k takes the B examples from place k·B on, counted from epoch 0: every
    epoch visits every example once, no remainder is dropped, and the batch does not depend on the number of devices. It is made
    for many steps at once, since sorting costs more than a small step, and asking in each step whether an epoch begins would
    have a GPU wait for the host.
    """
    epochs = first_epoch + jnp.arange(-(-length // num_examples) + 1, dtype=jnp.int32)
    keys = jax.vmap(lambda epoch: stream_key(seed, ORDER_STREAM, epoch))(epochs)
    return jax.vmap(lambda key: jax.random.permutation(key, num_examples))(keys).ravel()


def train_batch(split, indices, seed, step, data):
    """The augmented batch of one training step.

    Args:
        split: `Split` on the devices.
        indices: int32 [B], from `visiting_order`.
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
