"""Batches of a data set that does not fit on the devices: read, cropped and put together on the host, ahead of the step."""

import contextlib
import functools
import gc
import itertools
import logging
import math
import multiprocessing
import multiprocessing.resource_tracker
import os
import re
import resource
import signal
import sys
import threading

import cv2
import grain
import jax
import numpy as np
import psutil
from absl import flags

from plain56 import machine
from plain56.data.datasets import check_memory, image_shape
from plain56.data.pictures import center, resize, told_lack
from plain56.data.resident import AUGMENTATION_STREAM, Batch, epoch_order
from plain56.errors import UserError

READ_AHEAD = 2  # batches
# Open files: two for each of fifty arrays that Grain has not freed yet, and some for the run; and those of a worker process.
OPEN_FILES, OPEN_FILES_PER_WORKER = 128, 16
_lock = threading.Lock()  # of the threads that read
_unreadable = set()  # names of pictures that a warning has named

logger = logging.getLogger(__name__)


def train_stream(pictures, data, seed, first_step, steps, batch_size, part=0, parts=1):
    """The batches of some training steps, with the examples of `visiting_order`, or one of `parts` equal parts of each batch.

    If `data.augment` asks for `enlarge` or `area`, pictures are cropped at random here, at their stored size; the devices do the
    rest of it. Every batch is a pure function of seed and step: a stream can begin at any step.

    Args:
        pictures: `Pictures` of the training split.
        data: the config's `data` section.
        first_step: number of updates completed before.

    Returns:
        An iterator over `Batch`es of NumPy arrays, images uint8. Slots of pictures that cannot be read are masked, while a
        resident set leaves them out of its order.
    """

    def example(slot):
        position = first_step * batch_size + slot
        epoch, place = divmod(position, pictures.count)
        generator = np.random.default_rng((seed, AUGMENTATION_STREAM, position))
        return int(_order(seed, epoch, pictures.count)[place]), generator

    return _batches(pictures, data, example, steps, batch_size, part, parts)


def evaluation_stream(pictures, data, batch_size, part=0, parts=1):
    """As `train_stream`, of a split in its own order, cropped in the middle; slots past the end are masked."""
    return _batches(pictures, data, lambda slot: (slot, None), -(-pictures.count // batch_size), batch_size, part, parts)


def _batches(pictures, data, example, count, batch_size, part, parts):
    """The parts of `count` batches; `example` maps a slot of the whole batches to a picture and the generator of its crop."""
    shape, own = image_shape(pictures, data), batch_size // parts

    def load(number):
        batch, slot = divmod(number, own)
        return _load(pictures, data, shape, *example(batch * batch_size + part * own + slot))

    ahead = 1 + (2 * data.workers or READ_AHEAD)
    check_memory(f"A stream of batches of {own} images", ahead * own * math.prod(shape), "smaller images or batches need less")
    cv2.setNumThreads(1)  # the examples of a batch already go to different threads
    examples = grain.MapDataset.range(count * own).map(load)
    if data.workers:
        _check_open_files(data.workers)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, which keep their defaults
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        batches = examples.batch(own).to_iter_dataset(options)
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(data.workers), _set_up_worker)
    else:
        # More threads than cores, since some wait for files.
        options = grain.ReadOptions(num_threads=2 * len(machine.cores()), prefetch_buffer_size=READ_AHEAD * own)
        batches = examples.to_iter_dataset(options).batch(own)
    return _until_failure(batches, data.workers)


def _check_open_files(workers):
    needed = psutil.Process().num_fds() + OPEN_FILES + workers * OPEN_FILES_PER_WORKER
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if needed > allowed != resource.RLIM_INFINITY:
        raise UserError(
            f"data.workers is {workers}, which needs {needed} open files, and the system allows {allowed}; raise the limit with "
            "`ulimit -n`, or choose fewer workers (0 reads in threads)."
        )


def _until_failure(batches, workers):
    """Yields the batches; at their end the worker processes and what they shared are gone.

    Raises UserError if a worker process was killed, or if the system lacks what reading takes.
    """
    failure, iterator = None, None
    try:
        if workers:
            _start_quiet_tracker()
        with _without_requests_to_stop():  # Grain starts its processes when the first batch is asked for
            iterator = iter(batches)
            first = list(itertools.islice(iterator, 1))
        yield from first
        yield from iterator
    except (OSError, RuntimeError, MemoryError, cv2.error) as error:
        failure = told_lack(error) or _told_end_of_worker(error)
        if not failure:
            raise
    finally:
        # Grain fails to end a process that could not begin, in destructors as well.
        hook, sys.unraisablehook = sys.unraisablehook, lambda error: None
        with contextlib.suppress(OSError, AssertionError):
            if workers and iterator:
                iterator.close()
        del iterator
        if workers:
            gc.collect()  # Grain's iterators are cycles that hold shared memory
        sys.unraisablehook = hook
    if failure:
        raise failure


@contextlib.contextmanager
def _without_requests_to_stop():
    """Processes that start here never receive Ctrl-C and SIGTERM: they inherit the mask of signals, from their first moment.

    Only the training process obeys a request to stop, and it may still need batches.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_quiet_tracker():
    """Starts Python's process that frees shared memory at the end, without its warning about what a killed worker left."""
    given = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (given, "ignore:resource_tracker")))
    try:
        multiprocessing.resource_tracker.ensure_running()
    finally:
        os.environ["PYTHONWARNINGS"] = given or ""


def _told_end_of_worker(error):
    """The UserError for Grain's exception about a worker process that has ended; None for any other exception."""
    ended = re.search(r"terminated unexpectedly with exit code (-?)(\d+)", str(error))
    if not ended:
        return None
    how = signal.strsignal(int(ended[2])) if ended[1] else f"exit status {ended[2]}"
    return UserError(
        f"A process that reads data (data.workers) ended too early: {how}. It may lack memory, or shared memory in /dev/shm; "
        "launch again to go on, perhaps with fewer workers."
    )


def _set_up_worker(number, workers):
    jax.config.update("jax_platforms", "cpu")  # a worker computes only the order of examples, and leaves the devices free
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """Ends a worker whose training process was killed."""
    multiprocessing.parent_process().join()
    os._exit(0)


@functools.lru_cache(maxsize=4)
def _computed_order(seed, epoch, count):
    return np.asarray(jax.jit(epoch_order, static_argnums=2)(seed, epoch, count))


def _order(seed, epoch, count):
    with _lock:  # at the start of an epoch all threads ask at once
        return _computed_order(seed, epoch, count)


def _load(pictures, data, shape, index, generator):
    """One slot of a batch; without a generator, cropped in the middle."""
    decoded = pictures.decode(index, shape[-1]) if index < pictures.count else None
    mask = decoded is not None
    if not mask:
        if index < pictures.count:
            _warn(pictures.name(index))
        if not generator:
            return Batch(np.zeros(shape, np.uint8), np.int32(0), np.bool_(False))
        # Another picture instead, which only batch norm notices.
        others = (pictures.decode((index + offset) % pictures.count, shape[-1]) for offset in range(1, pictures.count))
        decoded = next(filter(None, others), (np.zeros(shape, np.uint8), 0))
    image, label = decoded
    options = data.augment
    if generator and (options.enlarge or options.area):
        image = _random_crop(image, shape[:2], options, generator)
    elif data.image_size:
        image = center(resize(image, data.image_size), data.image_size)
    if image.shape != shape:
        found, expected = ("×".join(map(str, size[:2])) for size in (image.shape, shape))
        raise UserError(f"{pictures.name(index)} must have {expected} pixels, not {found}; or choose a data.image_size.")
    return Batch(image, np.int32(label), np.bool_(mask))


def _warn(name):
    """Warns once for each picture, not in every epoch."""
    with _lock:
        if name in _unreadable:
            return
        _unreadable.add(name)
    logger.warning("%s cannot be read; left out.", name)


def _random_crop(image, size, options, generator):
    """A random part of an image [H, W, C], resized to `size`; see `augment`."""
    lengths = np.array(image.shape[:2])
    if options.enlarge:
        # The shorter side becomes a random multiple of the crop's (He et al. 2015, section 3.4).
        box = np.full(2, lengths.min() / generator.uniform(*options.enlarge))
    else:
        area = lengths.prod() * generator.uniform(*options.area)
        ratio = math.exp(generator.uniform(-1, 1) * math.log(4 / 3))
        box = np.array([math.sqrt(area / ratio), math.sqrt(area * ratio)])
    box = np.clip(np.round(box), 1, lengths).astype(int)  # large areas leave no room for long sides
    top, left = generator.integers(lengths - box + 1)
    cut = image[top : top + box[0], left : left + box[1]]
    # Bilinear values, of four pixels each, would skip pixels; averages over areas do not, but take six times as long.
    skips = (box > 2 * np.array(size)).any()
    resized = cv2.resize(cut, size[::-1], interpolation=cv2.INTER_AREA if skips else cv2.INTER_LINEAR)
    return resized.reshape(*size, image.shape[-1])
