"""How test pictures are fed to a trained network: one crop, ten crops, or whole at several sizes. Published errors depend on it.

    center    the shorter side resized to 256, and the 224×224 middle
    ten_crop  the middle 256×256, of which the four corners and the middle, and their mirror images (Krizhevsky et al. 2012,
              section 4.1; He et al. 2015, Table 3)
    dense     the whole picture at several sizes of the shorter side, and its mirror image, through the network read as a
              convolution (Simonyan & Zisserman 2014, section 3.2; He et al. 2015, Table 4)

Class probabilities are averaged over crops, mirror images and sizes. For networks of S pixels all sizes are scaled by S / 224.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from plain56 import parallel
from plain56.data import center, leave_out, normalize, resize
from plain56.models.vgg import VGG, possible_pools
from plain56.training.metrics import batch_totals, example_losses

PUBLISHED_SIZE = 224
RESIZED = 256
# Simonyan & Zisserman 2014, Table 4, of networks trained with scale jitter; He et al. 2015, section 3.4.
DENSE_SIDES = {"vgg": (256, 384, 512)}
RESNET_SIDES = (224, 256, 384, 480, 640)
# One batch holds about as many pixels as this many images of 224×224.
BATCH_IMAGES = 64


def dense_sides(family, size):
    """The published sizes of the shorter side, for a network that takes `size` pixels."""
    return tuple(_scaled(side, size) for side in DENSE_SIDES.get(family, RESNET_SIDES))


def _scaled(side, size):
    return round(side * size / PUBLISHED_SIZE)


def for_any_size(model, image_shape):
    """The network that was trained on images of `image_shape`, for pictures of other sizes: the same layers and pools."""
    if not isinstance(model, VGG):
        return model
    if model.form == "small":
        return model.clone(pools=possible_pools(image_shape))
    return model.clone(form="dense")


def views(picture, protocol, size, sides=()):
    """What the network sees of a picture: arrays [views, h, w, C], one for each size.

    Args:
        picture: uint8 [H, W, C].
        size: height and width of crops.
        sides: of "dense", the sizes of the shorter side.
    """
    if protocol == "dense":
        resized = [resize(picture, side) for side in sides]
        return [np.stack([image, image[:, ::-1]]) for image in resized]
    side = _scaled(RESIZED, size)
    square = center(resize(picture, side), side)
    if protocol == "center":
        return [center(square, size)[None]]
    last = side - size
    corners = [square[top : top + size, left : left + size] for top in (0, last) for left in (0, last)]
    crops = np.stack([*corners, center(square, size)])
    return [np.concatenate([crops, crops[:, :, ::-1]])]


def evaluate_pictures(model, variables, pictures, data, protocol, size, sides=(), on_progress=lambda share: None):
    """The totals of a test split under a protocol.

    Args:
        model, variables: a network that takes images of the sizes that the protocol asks for.
        data: the config's `data` section.
        protocol, size, sides: see `views`.

    Raises UserError if too many pictures cannot be read, or a picture is too small for the network.
    """
    layout = parallel.layout()
    devices = layout.mesh.size

    @functools.partial(jax.jit, out_shardings=layout.whole)
    def log_probabilities(variables, stacks):
        """Of the sum over views; as logarithms, because a sure network's probabilities underflow."""
        number, count = stacks.shape[:2]
        images = normalize(stacks.reshape(number * count, *stacks.shape[2:]), data.mean, data.std)
        logits = model.apply(variables, layout.split(images)).logits
        return jax.nn.logsumexp(jax.nn.log_softmax(logits).reshape(number, count, -1), axis=1)

    total = pictures.count
    labels = np.zeros(total, np.int32)
    sums = np.full((total, model.num_classes), -np.inf, np.float32)
    waiting, unreadable = {}, []

    def run(shape):
        """Sends off what waits in this shape, filled up to a whole batch, so that each shape is compiled once."""
        places, stacks = zip(*waiting.pop(shape), strict=True)
        batch = np.zeros((batch_size(shape, devices), *shape), np.uint8)
        batch[: len(stacks)] = stacks
        results = np.asarray(log_probabilities(variables, batch))[: len(stacks)]
        sums[list(places)] = np.logaddexp(sums[list(places)], results)

    for i in range(total):
        decoded = pictures.decode(i, len(data.mean))
        if decoded is None:
            unreadable.append(i)
            continue
        picture, labels[i] = decoded
        for stack in views(picture, protocol, size, sides):
            waiting.setdefault(stack.shape, []).append((i, stack))
            if len(waiting[stack.shape]) == batch_size(stack.shape, devices):
                run(stack.shape)
                on_progress((i + 1) / total)
    for shape in list(waiting):
        run(shape)
    readable = leave_out(pictures, unreadable, "test split")
    labels = jnp.asarray(labels[readable])
    # All pictures have as many views, so their logarithmic sums differ from probabilities by a factor that softmax removes.
    logits = jnp.asarray(sums[readable])
    return batch_totals(example_losses(logits, labels), logits, labels, jnp.ones(labels.shape, bool))


def batch_size(shape, devices):
    """How many stacks [views, h, w, C] go into one batch: a multiple of the devices."""
    views, height, width, _ = shape
    fitting = BATCH_IMAGES * PUBLISHED_SIZE**2 // (views * height * width * devices)
    return devices * min(max(1, fitting), 256)
