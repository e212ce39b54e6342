"""Batches of a data set that is whole on the devices: which examples, in what order, as a pure function of seed and step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plain56.data.augment import augment, normalize

# Each use of a run's seed draws from its own stream.
ORDER_STREAM, AUGMENTATION_STREAM, DROPOUT_STREAM, SURVIVAL_STREAM = 1, 2, 3, 4


class Batch(NamedTuple):
    """Images [B, H, W, C], normalized unless said otherwise, labels int32 [B], and which slots hold an example, bool [B]."""

    images: jax.Array
    labels: jax.Array
    mask: jax.Array


def stream_key(seed, stream, index):
    """The random key of one step or epoch, derived only from the seed, so that any step can be replayed."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), index)


def visiting_order(seed, first_epoch, num_examples, length):
    """Which examples a run visits from the start of an epoch on: int32, at least `length` from any place in that epoch.

    Each epoch is a permutation. Step k takes the B examples from place k·B on, counted from epoch 0: every epoch visits every
    example once, no remainder is dropped, and the batch does not depend on the number of devices. The order is made for many
    steps at once: sorting costs more than a small step, and a GPU would wait for the host if each step asked whether an epoch
    begins.
    """
    epochs = first_epoch + jnp.arange(-(-length // num_examples) + 1, dtype=jnp.int32)
    return jax.vmap(lambda epoch: epoch_order(seed, epoch, num_examples))(epochs).ravel()


def epoch_order(seed, epoch, num_examples):
    """The order of all examples in one epoch: int32 [N]."""
    return jax.random.permutation(stream_key(seed, ORDER_STREAM, epoch), num_examples)


def train_batch(split, indices, seed, step, data, part=0, parts=1):
    """The augmented batch of one training step, or one of `parts` equal parts of it.

    Args:
        split: `Split` on the devices.
        indices: int32 [B], from `visiting_order`: those of this part.
        step: number of updates completed before this one, int32.
        data: the config's `data` section.
    """
    batch = Batch(split.images[indices], split.labels[indices], jnp.ones(indices.shape, bool))
    return augmented(batch, seed, step, data, part, parts)


def augmented(batch, seed, step, data, part=0, parts=1):
    """A training batch of uint8 images, augmented and normalized; arguments as in `train_batch`."""
    images = augment(batch.images, stream_key(seed, AUGMENTATION_STREAM, step), data.augment, part, parts)
    return batch._replace(images=normalize(images, data.mean, data.std))


def evaluation_batch(split, number, batch_size, data):
    """Batch `number` of the split in its own order, without augmentation; slots past the end are masked."""
    indices = number * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    mask = indices < split.labels.shape[0]
    indices = jnp.where(mask, indices, 0)
    return Batch(normalize(split.images[indices], data.mean, data.std), split.labels[indices], mask)
