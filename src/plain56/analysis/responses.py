"""Layer responses: standard deviations of what each convolution gives after batch norm, before anything is added or activated.

He et al. 2015, section 4.2 and Fig. 7, of 3×3 layers: those of residual networks are smaller, the more so the deeper they are.
"""

import jax
import numpy as np
from flax import traverse_util

from plain56.errors import UserError
from plain56.models.stack import in_order


def layer_responses(model, params, batch_stats, moments, image_shape):
    """Standard deviations over all images, positions and channels in evaluation mode, by layer, from the images to the classes.

    Args:
        params, batch_stats: of a plain or residual network, or a VGG with batch norm.
        moments: mean and variance of the input of every batch norm over the images, as `measure_moments` gives them: with the
            statistics and scales they tell the response exactly.
        image_shape: `(H, W, C)`.

    Returns:
        `{"stem_conv": …, "stage1.0.conv1": …}`, of every 3×3 convolution that batch norm follows.

    Raises UserError if batch norm does not follow the convolutions.
    """
    if not batch_stats or "head_norm" in batch_stats:  # the latter: with pre-activation
        raise UserError("Layer responses need batch norm behind each convolution, and this network has none there.")
    params, batch_stats, moments = (traverse_util.flatten_dict(jax.device_get(t)) for t in (params, batch_stats, moments))
    responses = {}
    for (*modules, name), running in batch_stats.items():
        norm, convolution = tuple(modules), (*modules[:-1], modules[-1].replace("norm", "conv"))
        if name != "mean" or params[*convolution, "kernel"].shape[-4:-2] != (3, 3):
            continue
        factor = params[*norm, "scale"] / np.sqrt(batch_stats[*norm, "var"] + model.numerics.epsilon)
        mean = (moments[*norm, "mean"] - running) * factor + params[*norm, "bias"]
        variance = moments[*norm, "var"] * factor**2
        responses[convolution] = np.sqrt(variance.mean(-1) + mean.var(-1))  # within channels, and between them
    return {".".join(name): value for name, value in in_order(model, responses, image_shape).items()}
