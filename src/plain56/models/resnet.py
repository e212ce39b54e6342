"""Residual networks and their plain counterparts, CIFAR form.

He, Zhang, Ren, Sun 2015, "Deep residual learning for image recognition", section 4.2: a 3×3 convolution, three stages of n
blocks of two 3×3 convolutions each, global average pooling and one linear layer: 6n + 2 weighted layers.

    depth                20       32       44       56       110        152        1202
    blocks per stage n   3        5        7        9        18         25         200
    parameters (A)       269,722  464,154  658,586  853,018  1,727,962  2,408,474  19,421,274

A plain network is the residual one minus the additions, nothing else: with shortcut A the two have the same parameters.
"""

import jax.numpy as jnp
from flax import linen as nn

from plain56.errors import UserError
from plain56.models.layers import Numerics, Output, batch_norm, convolution, dense, scan_blocks

SHORTCUTS = ("A", "B", "C")
MINIMUM_IMAGE_SIZE = 4  # survives two halvings


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; a residual one adds its input to their output before the last ReLU (Fig. 2).

    `shortcut` names what carries the input where the shape changes (section 4.1): "A" is the identity, subsampled and padded
    with zero channels, without parameters; "B" is a 1×1 projection there, the identity elsewhere; "C" is a projection in every
    block. `residual=False` leaves the shortcut out, and its projection with it.

    Takes and returns `(images [N, H, W, C], train)`; the second output is there for `nn.scan`.
    """

    filters: int
    strides: int = 1
    residual: bool = True
    shortcut: str = "A"
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x, train):
        y = convolution(self.numerics, self.filters, 3, self.strides, name="conv1")(x)
        y = nn.relu(batch_norm(self.numerics, train, name="norm1")(y))
        y = convolution(self.numerics, self.filters, 3, name="conv2")(y)
        y = batch_norm(self.numerics, train, name="norm2")(y)
        if self.residual:
            y = y + self._shortcut(x, train)
        return nn.relu(y), None

    def _shortcut(self, x, train):
        same_shape = self.strides == 1 and x.shape[-1] == self.filters
        if self.shortcut == "C" or (self.shortcut == "B" and not same_shape):
            # With its own batch norm: an unnormalised projection drowns the residual.
            x = convolution(self.numerics, self.filters, 1, self.strides, name="shortcut_conv")(x)
            return batch_norm(self.numerics, train, name="shortcut_norm")(x)
        if same_shape:
            return x
        added = self.filters - x.shape[-1]
        x = x[:, :: self.strides, :: self.strides]
        # Half of the zero channels before and half after, as in the published PyTorch weights.
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (added // 2, added - added // 2)))


class ResNet(nn.Module):
    """A CIFAR-form network of `2 · 3 · blocks_per_stage + 2` layers.

    `module.apply(variables, images [N, H, W, C], train=False)` returns `Output(logits [N, num_classes])`. The stages after
    the first halve the image with stride 2. Blocks of equal shape run under one `nn.scan`, so depth costs nothing to compile.
    """

    blocks_per_stage: int
    num_classes: int
    residual: bool = True
    shortcut: str = "A"
    widths: tuple[int, ...] = (16, 32, 64)
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, images, train=False):
        if min(images.shape[1:3]) < MINIMUM_IMAGE_SIZE:
            raise UserError(
                f"The images are too small: they are {images.shape[1]}×{images.shape[2]} pixels, and this network needs at "
                f"least {MINIMUM_IMAGE_SIZE}×{MINIMUM_IMAGE_SIZE}."
            )
        fields = {"residual": self.residual, "shortcut": self.shortcut, "numerics": self.numerics}
        x = images.astype(self.numerics.dtype)
        x = convolution(self.numerics, self.widths[0], 3, name="stem_conv")(x)
        x = nn.relu(batch_norm(self.numerics, train, name="stem_norm")(x))
        for stage, filters in enumerate(self.widths, start=1):
            strides = 1 if stage == 1 else 2
            equal = self.blocks_per_stage
            if strides != 1 or x.shape[-1] != filters:
                x, _ = BasicBlock(filters, strides, **fields, name=f"stage{stage}_first")(x, train)
                equal -= 1
            if equal:
                x, _ = scan_blocks(BasicBlock, equal, filters=filters, **fields, name=f"stage{stage}")(x, train)
        x = jnp.mean(x, axis=(1, 2)).astype(self.numerics.parameter_dtype)
        return Output(dense(self.num_classes, param_dtype=self.numerics.parameter_dtype, name="head")(x))
