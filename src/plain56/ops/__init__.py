"""Convolution and batch norm, fast on every backend."""

from plain56.ops.batch_norm import affine, batch_norm
from plain56.ops.convolution import convolve

__all__ = ["affine", "batch_norm", "convolve"]
