"""Images on their way to the devices."""

from plain56.data.augment import normalise
from plain56.data.datasets import Dataset, Pictures, Split, centre, leave_out, load_dataset, open_test_split, resize
from plain56.data.resident import DROPOUT_STREAM, Batch, evaluation_batch, stream_key, train_batch, visiting_order

__all__ = [
    "DROPOUT_STREAM",
    "Batch",
    "Dataset",
    "Pictures",
    "Split",
    "centre",
    "evaluation_batch",
    "leave_out",
    "load_dataset",
    "normalise",
    "open_test_split",
    "resize",
    "stream_key",
    "train_batch",
    "visiting_order",
]
