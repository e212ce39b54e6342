"""Published weights, in and out."""

from plain56.weights.pretrained import begin_transfer, evaluate_weights, load_pretrained, predict, save_pretrained

__all__ = ["begin_transfer", "evaluate_weights", "load_pretrained", "predict", "save_pretrained"]
