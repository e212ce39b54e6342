"""What a run writes down while it trains: records, and its status."""

import time
from contextlib import ExitStack

from plain56 import parallel, runs
from plain56.training.loggers import open_loggers
from plain56.training.progress import from_records


class Journal:
    """The records and the status of a run, which process 0 writes for all processes; a context manager.

    A record belongs to the step of the status, which `advance` sets.

    Args:
        run: held by process 0.
        config: names the loggers.
        step: the updates done in earlier launches; later records are dropped.
        parameters: the number of trained values.
        examples: in the training split: so many make an epoch.
        batch_size: of the whole batch.
    """

    def __init__(self, run, config, step, parameters, examples, batch_size):
        self.run, self.config, self.examples, self.batch_size = run, config, examples, batch_size
        seconds = parallel.on_first(lambda: run.status().seconds)
        self.status = runs.Status("running", step, "", parameters, seconds)
        self._start, self._begin = time.perf_counter() - seconds, time.time() - seconds
        self._records, self._append, self._show, self._stack = [], None, None, ExitStack()
        self._newest = {}  # the newest record of each split
        self.write_status()
        self.restart_clock()

    def __enter__(self):
        parallel.on_first(self._open)
        return self

    def __exit__(self, *error):
        self._stack.close()

    def _open(self):
        with ExitStack() as stack:
            self._append = stack.enter_context(self.run.open_log(self.status.step))
            self._show = stack.enter_context(open_loggers(self.config, self.run.path, self._begin))
            self._newest = dict(self.run.newest({"train", "test"}))
            self._stack = stack.pop_all()

    def advance(self, step, state="running", reason=""):
        """Sets the status to that of a step."""
        seconds = round(time.perf_counter() - self._start, 3)
        self.status = self.status._replace(state=state, step=step, reason=reason, seconds=seconds)

    def record(self, split, values):
        """Notes numbers by name, for the next `flush`."""
        epoch = round(self.status.step * self.batch_size / self.examples, 4)
        record = {"step": self.status.step, "epoch": epoch, "split": split, **values, "seconds": self.status.seconds}
        self._records.append(record)
        self._newest[split] = record

    def flush(self, sync=False):
        """Writes all new records, with `sync` to the disk itself, and shows them to the loggers; an error stops all processes."""
        parallel.on_first(lambda: self._show(self._append(*self._records, sync=sync)))
        self._records.clear()

    def lacks(self, split):
        """Whether the run has no record of a split."""
        return parallel.on_first(lambda: not self.run.metrics(split))

    def write_status(self):
        parallel.on_first(lambda: self.run.write_status(self.status))

    def read_status(self):
        """The status that was written, the same in all processes; one of them may have been interrupted."""
        return runs.Status(*parallel.on_first(self.run.status))

    def progress(self, share, images_per_second=0.0):
        """The run's `Progress`, in process 0."""
        return from_records(self._newest.values(), share, images_per_second, self.status.state)

    def restart_clock(self):
        """Starts to measure the rate anew, which does not count evaluating and saving."""
        self._clock = self.status.step, time.perf_counter()

    def images_per_second(self):
        step, begin = self._clock
        return (self.status.step - step) * self.batch_size / (time.perf_counter() - begin)
