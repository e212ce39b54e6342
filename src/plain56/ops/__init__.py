"""Convolution primitives."""

from plain56.ops.convolution import convolve

__all__ = ["convolve"]
