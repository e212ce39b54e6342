"""What the ideas of two papers save: GoogLeNet's 1×1 reductions, and VGG's stacks of 3×3 convolutions.

GoogLeNet: each Inception block against one without the 1×1 reductions before its 3×3 and 5×5 convolutions (Szegedy et al. 2014,
Fig. 2b against 2a), on the same input. The 1×1 projection after the pool stays, so that the output has the same channels.

VGG: each block's convolutions against one layer that sees as far: two 3×3 against 5×5, three against 7×7, four against 9×9. As in
Simonyan & Zisserman 2014, section 2.3, every layer takes and gives the block's C channels, also the first one, which takes fewer
in the network, and biases are not counted: three 3×3 have 27C² weights, and one 7×7 has 49C². The 1×1 convolutions of
vgg16_1x1 count with their stack.
"""

from typing import NamedTuple

from flax import linen as nn

from plain56.analysis import complexity
from plain56.models.googlenet import INCEPTIONS, GoogLeNet, Inception
from plain56.models.vgg import VGG, WIDTHS


class Saving(NamedTuple):
    """What a block has, and what it would have without the idea."""

    name: str
    parameters: int
    parameters_without: int
    multiply_adds: int
    multiply_adds_without: int


def savings(model, image_shape, rows):
    """A saving for each Inception block or stack of convolutions; none for other networks.

    Args:
        rows: of `complexity.parts(model, image_shape)`.
    """
    rows = [row for row in rows if not row.training_only]
    inputs = [image_shape, *(row.output_shape for row in rows)]
    inputs = {row.name: shape for row, shape in zip(rows, inputs, strict=False)}
    if isinstance(model, GoogLeNet):
        return [_reductions(model, row, inputs[row.name]) for row in rows if row.name.startswith("inception")]
    if isinstance(model, VGG):
        blocks = enumerate(zip(model.configuration, WIDTHS, strict=True), start=1)
        return [_stack(f"block{i}", sizes, filters, inputs[f"block{i}"]) for i, (sizes, filters) in blocks if len(sizes) > 1]
    return []


def total(saved):
    """The sum of `savings`."""
    return Saving("total", *(sum(column) for column in zip(*(row[1:] for row in saved), strict=True)))


class _Alone(nn.Module):
    """A block as a network of its own."""

    block: nn.Module

    @nn.compact
    def __call__(self, images, train=False):
        return self.block(images, train)


def _reductions(model, row, input_shape):
    single, _, size3, _, size5, pooled = INCEPTIONS[row.name.removeprefix("inception")]
    large = 3 if model.normalize else 5
    naive = Inception((single, 0, size3, 0, size5, pooled), large, normalize=model.normalize, numerics=model.numerics)
    (without,) = complexity.parts(_Alone(naive), input_shape)
    return Saving(row.name, row.parameters, without.parameters, row.multiply_adds, without.multiply_adds)


def _stack(name, sizes, filters, input_shape):
    field = 1 + sum(size - 1 for size in sizes)
    weights, weights_without = (sum(size**2 for size in kernels) * filters**2 for kernels in (sizes, (field,)))
    positions = input_shape[0] * input_shape[1]
    return Saving(f"{name} ({field}×{field})", weights, weights_without, weights * positions, weights_without * positions)
