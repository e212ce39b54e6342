"""Images on their way to the devices."""

from plain56.data.datasets import Dataset, Split, load_dataset
from plain56.data.resident import (
    DROPOUT_STREAM,
    Batch,
    batch_indices,
    epoch_order,
    evaluation_batch,
    stream_key,
    train_batch,
)

__all__ = [
    "DROPOUT_STREAM",
    "Batch",
    "Dataset",
    "Split",
    "batch_indices",
    "epoch_order",
    "evaluation_batch",
    "load_dataset",
    "stream_key",
    "train_batch",
]
