"""Streams compared with the resident data set, with each other, and with what is known about the pictures."""

import errno
import itertools
import multiprocessing
import resource
import subprocess
import sys
import threading

import cv2
import jax
import numpy as np
import psutil
import pytest

from configs import base, digits
from plain56 import runs, training
from plain56.data import Batch, Pictures, Split, datasets, evaluation_stream, load_dataset, train_stream, visiting_order
from plain56.errors import UserError
from plain56.training import load_run
from tests.fixtures.sets import noise, write_tfds


def section(**changes):
    data = base.get_config().data
    data.augment.pad, data.augment.flip = 0, False
    data.update_from_flattened_dict(changes)
    return data


def pictures_of(images):
    labels = np.arange(len(images)) % 7
    return Pictures(len(images), lambda i: (images[i], labels[i]), "picture {}".format, labels)


def whole(batches):
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


def assert_equal(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_stream_has_the_examples_of_the_resident_order():
    images = noise(10, 4, 4, 3)
    streamed, labels, mask = whole(train_stream(pictures_of(images), section(), seed=3, first_step=0, steps=9, batch_size=4))
    order = np.asarray(visiting_order(3, 0, 10, 36))[:36]
    np.testing.assert_array_equal(streamed, images[order])
    np.testing.assert_array_equal(labels, order % 7)
    assert mask.all()


CROPS = [{}, {"augment.enlarge": (1.2, 2.0)}, {"augment.area": (0.08, 1.0)}]


@pytest.mark.parametrize("crop", CROPS)
def test_a_stream_begins_anywhere_and_hosts_have_disjoint_parts(crop):
    pictures, data = pictures_of(noise(23, 20, 30, 3)), section(image_size=8, **crop)
    options = {"data": data, "seed": 1, "batch_size": 6}
    batches = list(train_stream(pictures, first_step=0, steps=11, **options))
    for first in (1, 4, 10):
        assert_equal(train_stream(pictures, first_step=first, steps=11 - first, **options), batches[first:])
    hosts = [train_stream(pictures, first_step=0, steps=11, part=part, parts=3, **options) for part in range(3)]
    assert_equal([Batch(*whole(parts)) for parts in zip(*hosts, strict=True)], batches)
    other = list(train_stream(pictures, first_step=0, steps=11, **options | {"seed": 2}))
    assert any((a.images != b.images).any() for a, b in zip(batches, other, strict=True))


@pytest.mark.slow
def test_worker_processes_give_the_same_batches():
    pictures = pictures_of(noise(23, 20, 30, 3))
    streams = [
        train_stream(pictures, section(image_size=8, workers=workers, **CROPS[1]), seed=1, first_step=2, steps=9, batch_size=6)
        for workers in (0, 3)
    ]
    assert_equal(*streams)


@pytest.mark.slow
def test_a_tfds_set_is_streamed_by_threads_and_by_processes(tmp_path):
    images = {split: noise(12, 6, 6, 3) for split in ("train", "test")}
    write_tfds(tmp_path, "insects", images, {split: np.arange(12) % 3 for split in images})
    dataset = load_dataset(section(name="insects", dir=str(tmp_path), mode="stream"))
    order = np.asarray(visiting_order(0, 0, 12, 24))[:24]
    for workers in (0, 2):
        streamed, labels, mask = whole(train_stream(dataset.train, section(workers=workers), 0, 0, 6, 4))
        np.testing.assert_array_equal(streamed, images["train"][order])
        np.testing.assert_array_equal(labels, order % 3)
        assert mask.all()


def test_evaluation_has_every_example_once():
    images = noise(10, 4, 6, 3)
    for parts in (1, 2):
        hosts = [list(evaluation_stream(pictures_of(images), section(image_size=4), 4, part, parts)) for part in range(parts)]
        streamed, labels, mask = whole(batch for batches in zip(*hosts, strict=True) for batch in batches)
        assert len(mask) == 12
        np.testing.assert_array_equal(streamed[mask], images[:, :, 1:5])
        np.testing.assert_array_equal(labels[mask], np.arange(10) % 7)


def coordinates(height, width):
    """A picture whose red is the row and whose green is the column, in steps that survive interpolation."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)


def boxes(picture, **crop):
    """Top, left, height and width of the parts of a picture that a stream cuts out, in its pixels."""
    pictures = Pictures(1, lambda i: (picture, 0), "picture {}".format)
    images = whole(train_stream(pictures, section(image_size=16, **crop), 0, 0, 40, 25))[0].astype(float)
    steps = [(images[:, -1, 8, 0] - images[:, 0, 8, 0]) / 15, (images[:, 8, -1, 1] - images[:, 8, 0, 1]) / 15]
    height, width = (step * 16 for step in steps)
    return images[:, 0, 8, 0] - steps[0] / 2 + 0.5, images[:, 8, 0, 1] - steps[1] / 2 + 0.5, height, width


def test_scale_jitter_cuts_a_square_out_of_the_whole_picture():
    top, left, height, width = boxes(coordinates(120, 240), **{"augment.enlarge": (1.5, 3.0)})
    np.testing.assert_allclose(height, width, atol=2.5)
    assert 38 < height.min() < 44 and 76 < height.max() < 82  # 120 pixels / 3 and / 1.5
    # Nothing is cut off first: crops reach all four edges.
    assert top.min() < 4 and (top + height).max() > 116 and left.min() < 6 and (left + width).max() > 234


def test_random_shares_of_the_area():
    top, left, height, width = boxes(coordinates(200, 160), **{"augment.area": (0.1, 0.6)})
    shares, ratios = height * width / (200 * 160), width / height
    assert 0.09 < shares.min() < 0.13 and 0.55 < shares.max() < 0.62
    assert np.mean(shares) == pytest.approx(0.35, abs=0.03)
    assert 0.72 < ratios.min() < 0.79 and 1.25 < ratios.max() < 1.38
    assert top.min() < 5 and left.min() < 5 and (top + height).max() > 195 and (left + width).max() > 155


def test_shrinking_averages_as_another_library_does():
    from PIL import Image

    image = noise(1, 32, 32, 3)[0]
    pictures = Pictures(1, lambda i: (image, 0), "picture {}".format)
    cropped = next(train_stream(pictures, section(image_size=8, **{"augment.enlarge": (1.0, 1.0)}), 0, 0, 1, 1)).images[0]
    expected = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BOX))
    np.testing.assert_allclose(cropped.astype(int), expected, atol=1)


def test_pictures_that_cannot_be_read_are_masked_and_named(caplog):
    images = noise(10, 4, 4, 3)

    def read(i):
        if i == 3:
            raise OSError
        return (b"no picture" if i == 6 else images[i]), i

    _, labels, mask = whole(train_stream(Pictures(10, read, "picture {}".format), section(), 0, 0, 5, 4))
    assert sorted(labels[mask]) == sorted([i for i in range(10) if i not in (3, 6)] * 2)
    assert (~mask).sum() == 4
    # Their slots hold the next pictures, which batch norm notices.
    np.testing.assert_array_equal(np.unique(labels[~mask]), [4, 7])
    assert caplog.text.count("picture 3 cannot be read") == caplog.text.count("picture 6 cannot be read") == 1
    tested = whole(evaluation_stream(Pictures(10, read, "picture {}".format), section(), 4))
    assert sorted(tested[1][tested[2]]) == [0, 1, 2, 4, 5, 7, 8, 9]


@pytest.mark.slow
def test_workers_leave_signals_alone_and_end_with_their_process(tmp_path):
    program = """
import os, signal, threading, time
from tests.test_streaming import noise, pictures_of, section
from plain56.data import train_stream
signal.signal(signal.SIGTERM, lambda *_: None)
def ask_to_stop():
    while True:
        os.killpg(0, signal.SIGTERM)
        time.sleep(0.01)
threading.Thread(target=ask_to_stop, daemon=True).start()
stream = train_stream(pictures_of(noise(9, 8, 8, 3)), section(image_size=4, workers=2), 0, 0, 10_000, 4)
for _ in range(100):
    next(stream)
print("went on", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout.readline() == "went on\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def streamed(config):
    config.data.mode = "stream"
    return config


def test_a_streamed_run_equals_a_resident_one(tmp_path, tiny_config, finished_run):
    status = training.train(streamed(tiny_config), tmp_path / "stream")
    assert (status.state, status.step) == ("finished", 12)
    paths = finished_run, tmp_path / "stream"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *(load_run(path).state for path in paths))
    for a, b in zip(*(runs.Run(path).metrics() for path in paths), strict=True):
        assert (a["split"], a["step"]) == (b["split"], b["step"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    tiny_config.train.checkpoint_every = 6
    tiny_config.train.stop_after = 6
    training.train(tiny_config, tmp_path / "half")
    tiny_config.train.stop_after = 0
    tiny_config.data.mode = "resident"
    with pytest.raises(UserError, match="began with data.mode=stream, which may not change"):
        training.train(tiny_config, tmp_path / "half")
    tiny_config.data.mode = "auto"
    assert training.train(tiny_config, tmp_path / "half").state == "finished"
    assert runs.Run(tmp_path / "half").environment()["data"]["streamed"]
    with pytest.raises(UserError, match="it must not be streamed"):
        training.evaluate_run(tmp_path / "stream", exact_statistics=True)
    assert training.evaluate_run(tmp_path / "stream")["examples"] == 449


@pytest.mark.parametrize(("way", "sync"), [("pmap", True), ("jit", False), ("pmap", False)])
@pytest.mark.slow
def test_devices_that_compute_for_themselves_stream_their_shares(tmp_path, tiny_config, way, sync):
    tiny_config.parallelism, tiny_config.batch_norm.sync = way, sync
    tiny_config.train.steps = 4
    training.train(tiny_config, tmp_path / "resident")
    training.train(streamed(tiny_config), tmp_path / "stream")
    resident, stream = (load_run(tmp_path / name).state for name in ("resident", "stream"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), resident, stream)


def test_an_interrupted_stream_goes_on_with_the_same_bits(tmp_path, tiny_config):
    training.train(streamed(tiny_config), tmp_path / "whole")
    tiny_config.train.stop_after = 7
    tiny_config.train.checkpoint_every = 7
    training.train(tiny_config, tmp_path / "cut")
    tiny_config.train.stop_after = 0
    training.train(tiny_config, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, *(load_run(tmp_path / name).state for name in ("whole", "cut")))


def write_jpegs(folder, per_class):
    """Two classes of pictures of different sizes: bright on the right, and bright on the left."""
    generator = np.random.default_rng(0)
    for split, label, i in itertools.product(("train", "test"), (0, 1), range(per_class)):
        height, width = generator.integers(40, 90, 2)
        slope = np.linspace(0, 160, width)[None, :, None]
        image = (slope[:, ::-1] if label else slope) + generator.uniform(0, 90, (height, width, 3))
        path = folder / split / "ab"[label]
        path.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path / f"{i}.jpg"), image.astype(np.uint8))


def imagenet_form(folder):
    """The digits recipe on JPEGs that are streamed."""
    config = digits.get_config("resnet8")
    config.model.widths = (4, 4, 8)
    config.data.name, config.data.mode, config.data.image_size = f"folder:{folder}", "stream", 16
    config.data.mean, config.data.std = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)
    config.data.augment.pad, config.data.augment.enlarge, config.data.augment.flip = 0, (1.1, 2.0), False
    config.train.batch_size, config.train.steps, config.train.log_every = 16, 60, 10
    config.train.evaluate_every = config.train.checkpoint_every = 60
    config.optimizer.schedule.warmup_steps = 6
    return config


def test_a_network_learns_from_streamed_jpegs(tmp_path):
    write_jpegs(tmp_path / "jpegs", 40)
    status = training.train(imagenet_form(tmp_path / "jpegs"), tmp_path / "run")
    assert status.state == "finished"
    records = runs.Run(tmp_path / "run")
    assert records.metrics("test")[-1]["top1_error"] < 0.1 < records.metrics("train")[0]["top1_error"]


def test_too_many_pictures_that_cannot_be_read_stop_the_run(tmp_path):
    write_jpegs(tmp_path / "jpegs", 20)
    for number in range(5):
        (tmp_path / "jpegs" / "train" / "a" / f"{number}.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="of 160 examples of the split 'train' could not be read; at most 5 %"):
        training.train(imagenet_form(tmp_path / "jpegs"), tmp_path / "run")


def test_pictures_of_several_sizes_need_one(tmp_path):
    write_jpegs(tmp_path / "jpegs", 5)
    config = imagenet_form(tmp_path / "jpegs")
    config.data.image_size, config.data.augment.enlarge = 0, ()
    with pytest.raises(UserError, match=r"jpg must have .* pixels, not .*; or choose a data.image_size"):
        training.train(config, tmp_path / "run")


def test_what_fits_is_resident(monkeypatch):
    data = digits.get_config().data
    assert isinstance(load_dataset(data).train, Split)
    datasets._choose_mode.cache_clear()
    free = psutil.virtual_memory()._replace(available=2 * 1797 * 64 - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert isinstance(load_dataset(data).train, Pictures)
    datasets._choose_mode.cache_clear()


def workers_of(process):
    """The reading processes of a process; not Python's own, which frees shared memory and ignores signals."""
    return [child for child in process.children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_run_goes_on_after_a_reading_process_was_killed(tmp_path, tiny_config, capfd):
    config = streamed(tiny_config)
    config.train.steps, config.train.evaluate_every, config.data.workers = 40, 40, 2

    def kill(progress):
        if progress.share == 0.2:
            workers_of(psutil.Process())[0].kill()

    with pytest.raises(UserError, match="A process that reads data .data.workers. ended too early: Killed.* again to go on"):
        training.train(config, tmp_path / "killed", kill)
    assert runs.Run(tmp_path / "killed").status().state == "failed"
    assert not workers_of(psutil.Process())
    assert training.train(config, tmp_path / "killed").state == "finished"
    config.data.workers = 0
    training.train(config, tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, *(load_run(tmp_path / name).state for name in ("whole", "killed")))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_threads_that_cannot_begin(monkeypatch, workers):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    stream = train_stream(pictures_of(noise(9, 4, 4, 3)), section(workers=workers), 0, 0, 4, 4)
    with (
        monkeypatch.context() as patched,
        pytest.raises(UserError, match="for lack of memory, open .* .can't start new thread.;"),
    ):
        patched.setattr(threading.Thread, "start", refuse)
        next(stream)


def test_processes_that_cannot_begin(monkeypatch):
    def refuse(*arguments):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    stream = train_stream(pictures_of(noise(9, 4, 4, 3)), section(workers=2), 0, 0, 4, 4)
    multiprocessing.resource_tracker.ensure_running()
    with monkeypatch.context() as patched, pytest.raises(UserError, match="for lack of .* .Resource temporarily unavailable.;"):
        patched.setattr(multiprocessing.util, "spawnv_passfds", refuse)
        next(stream)


def test_workers_need_open_files(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (40, 4096))
    pictures = pictures_of(noise(9, 4, 4, 3))
    with pytest.raises(UserError, match=r"data.workers is 2, which needs \d+ open files, and the system allows 40; raise"):
        train_stream(pictures, section(workers=2), 0, 0, 4, 4)
    assert len(list(train_stream(pictures, section(), 0, 0, 4, 4))) == 4


def test_batches_that_do_not_fit():
    with pytest.raises(UserError, match=r"A stream of batches of 8192 images needs 4608.0 GiB of memory, and .* are free"):
        train_stream(pictures_of(noise(9, 4, 4, 3)), section(image_size=8192), 0, 0, 4, 8192)


def test_an_image_that_cannot_be_enlarged_is_told(monkeypatch):
    def fail(*arguments, **options):
        raise cv2.error("OpenCV: error: (-4:Insufficient memory) Failed to allocate 9 bytes")

    monkeypatch.setattr(cv2, "resize", fail)
    with pytest.raises(UserError, match="for lack of memory, open files or processes .*Insufficient memory"):
        next(train_stream(pictures_of(noise(9, 4, 4, 3)), section(image_size=8), 0, 0, 4, 4))
