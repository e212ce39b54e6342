"""Images on their way to the devices."""

from plain56.data.augment import normalize
from plain56.data.datasets import (
    UNREADABLE_SHARE,
    Dataset,
    Split,
    are_in_color,
    choose_mode,
    how_resized,
    image_shape,
    leave_out,
    load_dataset,
    load_resident,
    open_test_split,
)
from plain56.data.pictures import Pictures, center, read_picture, resize
from plain56.data.resident import (
    DROPOUT_STREAM,
    SURVIVAL_STREAM,
    Batch,
    augmented,
    evaluation_batch,
    stream_key,
    train_batch,
    visiting_order,
)
from plain56.data.streaming import evaluation_stream, train_stream
