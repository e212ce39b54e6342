"""Images on their way to the devices."""

from plain56.data.datasets import Dataset, Split, load_dataset
from plain56.data.resident import Batch, evaluation_batch, example_indices, train_batch

__all__ = ["Batch", "Dataset", "Split", "evaluation_batch", "example_indices", "load_dataset", "train_batch"]
