"""What happens to images on the devices: shift, flip, normalise."""

import jax
import jax.numpy as jnp


def augment(images, key, options):
    """Random pad-and-crop and horizontal flip (He et al. 2015, section 4.2).

    Args:
        images: uint8 [N, H, W, C].
        options: `pad`, the zeros put on every side before a random H×W crop (0: none), and `flip`, a mirror image for every
            second image on average.
    """
    crop_key, flip_key = jax.random.split(key)
    if options.pad:
        images = _shift(images, crop_key, options.pad)
    if options.flip:
        flip = jax.random.bernoulli(flip_key, shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(flip, images[:, :, ::-1], images)
    return images


def _shift(images, key, pad):
    count, height, width = images.shape[:3]
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2, count, 1), 0, 2 * pad + 1)
    rows, columns = top + jnp.arange(height)[None], left + jnp.arange(width)[None]
    return padded[jnp.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalise(images, mean, std):
    """uint8 [N, H, W, C] to JAX's default float: values in [0, 1], less the channel's `mean`, divided by its `std`."""
    mean, std = (jnp.asarray(values, float).reshape(1, 1, 1, -1) for values in (mean, std))
    return (images.astype(float) / 255 - mean) / std
