"""Published weights, in and out."""

from plain56.weights.files import evaluate_weights, load_pretrained, predict, save_pretrained

__all__ = ["evaluate_weights", "load_pretrained", "predict", "save_pretrained"]
