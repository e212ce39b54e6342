"""How far a run is, for whoever watches it."""

from typing import NamedTuple


class Progress(NamedTuple):
    """How far a run is, with its newest numbers; None, or 0 for the rate, where none is known yet.

    `share` is in [0, 1], of the work that was left at the beginning; errors are fractions. `loss` and `train_error` are means
    over the newest logging interval.
    """

    share: float
    images_per_second: float = 0.0
    loss: float | None = None
    train_error: float | None = None
    test_error: float | None = None
    state: str = "running"


def from_records(records, share, images_per_second=0.0, state="running"):
    """The `Progress` of a run with these records, which are in order of steps."""
    newest = {record["split"]: record for record in records}
    train, test = newest.get("train", {}), newest.get("test", {})
    return Progress(share, images_per_second, train.get("loss"), train.get("top1_error"), test.get("top1_error"), state)
