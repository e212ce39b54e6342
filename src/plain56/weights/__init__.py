"""Published weights, in and out."""

from plain56.weights.torchvision import from_torchvision

__all__ = ["from_torchvision"]
