"""Weights in files: tensors by the names of PyTorch and Keras, to our variables and back."""
