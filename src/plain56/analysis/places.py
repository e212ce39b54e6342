"""The places of a network by name, in order from the images to the classes."""

import numpy as np

from plain56.models.stack import call_order, is_stacked


def in_order(model, values, image_shape):
    """Values by place, from the images to the classes: `{("stage1.0", "conv1"): value}`; blocks are counted from 0 in each stage.

    Args:
        values: by path of modules, such as `("stage1", "conv1")`: one, or one for each block where blocks are stacked.
        image_shape: `(H, W, C)`.
    """
    order, rows = call_order(model, image_shape), []
    for (first, *rest), value in values.items():
        # The block that changes the shape stands by itself, before the stacked ones.
        stage = first.removesuffix("_first")
        begin = int(is_stacked((first,)) and any(path[0] == f"{stage}_first" for path in values))
        for number, one in enumerate(np.atleast_1d(value), start=begin):
            name = f"{stage}.{number}" if is_stacked((stage,)) else first
            rows.append(((order[first,], number, order.get((first, *rest), 0)), (name, *rest), float(one)))
    return {name: value for _, name, value in sorted(rows, key=lambda row: row[0])}
