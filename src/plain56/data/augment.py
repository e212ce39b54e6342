"""What happens to images on the devices: crop, flip, color, normalize."""

import jax
import jax.numpy as jnp

# The principal components of RGB values in [0, 1] over ImageNet: standard deviations along them, and the components as columns,
# as published with fb.resnet.torch. Krizhevsky et al. 2012, section 4.1, explain the method.
COLOR_DEVIATIONS = (0.2175, 0.0188, 0.0045)
COLOR_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def augment(images, key, options, part=0, parts=1):
    """Crops, flips and colors each image at random; sizes stay.

    Args:
        images: uint8 [N, H, W, C], part number `part` of `parts` equal ones of a batch; treated as in the whole batch.
        options: the config's `data.augment` section:
            pad: zeros put on every side before a random H×W crop (He et al. 2015, section 4.2).
            enlarge: `(least, most)`, the range of a uniformly random factor of enlargement before a random H×W crop; the scale
                jitter of VGG (section 3.1) and ResNet (section 3.4).
            area: `(least, most)`, a uniformly random share of the area with a random aspect ratio from 3:4 to 4:3, resized to
                H×W (Szegedy et al. 2014, section 6).
            flip: mirrors half of the images on average.
            color: the deviation of the random multiples of `COLOR_COMPONENTS` that are added (Krizhevsky et al. 2012).

    Returns:
        [N, H, W, C], from 0 to 255 before color is added; uint8 unless an option needs other numbers.
    """
    count = images.shape[0]
    whole = parts * count

    def own(numbers, axis=0):
        """The numbers for these images, out of those for the whole batch."""
        return jax.lax.dynamic_slice_in_dim(numbers, part * count, count, axis)

    # A two-way split, into which later keys are folded: an option that is added here changes no existing recipe's numbers.
    crop_key, flip_key = jax.random.split(key)
    if options.pad:
        images = _shift(images, *own(jax.random.randint(crop_key, (2, whole, 1), 0, 2 * options.pad + 1), axis=1), options.pad)
    elif options.enlarge or options.area:
        sizes = _enlarged if options.enlarge else _shares
        keys = own(jax.random.split(crop_key, whole))
        images = jax.vmap(lambda image, key: _crop(image, key, sizes, options.enlarge or options.area))(images, keys)
    if options.flip:
        images = jnp.where(own(jax.random.bernoulli(flip_key, shape=(whole, 1, 1, 1))), images[:, :, ::-1], images)
    if options.color:
        multiples = options.color * own(jax.random.normal(jax.random.fold_in(key, 2), (whole, 3)))
        added = 255 * (multiples * jnp.array([COLOR_DEVIATIONS])) @ jnp.array(COLOR_COMPONENTS).T
        images = images + added[:, None, None]
    return images


def _shift(images, top, left, pad):
    count, height, width = images.shape[:3]
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = top + jnp.arange(height)[None], left + jnp.arange(width)[None]
    return padded[jnp.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _enlarged(key, least, most):
    """Height and width of the crop, as shares of the image's."""
    return jnp.full(2, 1 / jax.random.uniform(key, (), minval=least, maxval=most))


def _shares(key, least, most):
    """As `_enlarged`, for a random share of the area."""
    area_key, ratio_key = jax.random.split(key)
    area = jax.random.uniform(area_key, (), minval=least, maxval=most)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (), minval=-1.0, maxval=1.0) * jnp.log(4 / 3))
    # Large areas leave no room for long sides.
    return jnp.minimum(1.0, jnp.sqrt(jnp.stack([area * ratio, area / ratio])))


def _crop(image, key, sizes, limits):
    """Cuts a random part of these relative sizes out of an image [H, W, C] and resizes it to H×W, bilinearly."""
    size_key, place_key = jax.random.split(key)
    shares = sizes(size_key, *limits)
    scale = 1 / shares
    start = jax.random.uniform(place_key, (2,)) * (1 - shares) * jnp.array(image.shape[:2])
    image = image.astype(float)
    return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, -start * scale, "linear", antialias=False)


def normalize(images, mean, std):
    """Values from 0 to 255, [N, H, W, C], in JAX's default float: over 255, less the channel's `mean`, over its `std`."""
    mean, std = (jnp.asarray(values, float).reshape(1, 1, 1, -1) for values in (mean, std))
    return (images.astype(float) / 255 - mean) / std
