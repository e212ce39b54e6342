"""Images on their way to the devices."""

from plain56.data.datasets import Dataset, Split, load_dataset
from plain56.data.resident import Batch, batch_indices, epoch_order, evaluation_batch, train_batch

__all__ = ["Batch", "Dataset", "Split", "batch_indices", "epoch_order", "evaluation_batch", "load_dataset", "train_batch"]
