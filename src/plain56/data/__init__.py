"""Images on their way to the devices."""

from plain56.data.augment import normalise
from plain56.data.datasets import Dataset, Pictures, Split, centre, leave_out, load_dataset, open_test_split, resize
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
    "Pictures",
    "Split",
    "batch_indices",
    "centre",
    "epoch_order",
    "evaluation_batch",
    "leave_out",
    "load_dataset",
    "normalise",
    "open_test_split",
    "resize",
    "stream_key",
    "train_batch",
]
