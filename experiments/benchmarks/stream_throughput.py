"""How fast JPEGs are decoded and cropped, compared with a loop with Pillow and tf.data, and how long training waits for them.

    python -m plain56.experiments.benchmarks.stream_throughput [--rounds=7] [--folder=runs/stream_throughput]

ResNet's preprocessing for training (He et al. 2015, section 3.4): decode, resize the shorter side to a random length from
[256, 480], crop 224×224. `experiments/benchmarks/jpegs.py` makes the JPEGs. Programs take turns, as in `throughput.py`:

    plain56   this package's stream, in threads
    Pillow    one picture after another
    tf.data   as in TensorFlow's ImageNet recipes, in an environment of its own that is set up at the first call

In a turn each program reads a few hundred pictures from scratch. Then resnet18 trains on the stream, at 224 pixels with batch 8,
and the time that it waits for batches is measured. Writes stream_throughput.json.
"""

import argparse
import contextlib
import functools
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from plain56.experiments.benchmarks.turns import Failed, describe_machine, python_with, serve, start_all, summary

PROGRAMS = ("plain56", "Pillow", "tf.data")
BATCH, BATCHES = 64, 8
SIDES = (256, 480)
SIZE = 224
WAITING_STEPS = 60
TENSORFLOW_PROGRAM = Path(__file__).with_name("stream_throughput_tf.py")


def section(folder):
    """The config's `data` section for the JPEGs."""
    from plain56.configs import imagenet

    data = imagenet.get_config("resnet18").data
    data.name, data.mode, data.test_split = f"folder:{folder}", "stream", "test"
    data.augment.enlarge = tuple(side / SIZE for side in SIDES)
    return data


def run_plain56(folder):
    """The program "plain56"."""
    import importlib.metadata

    from plain56.data import load_dataset, train_stream

    data = section(folder)
    pictures = load_dataset(data).train

    def read():
        for batch in train_stream(pictures, data, seed=0, first_step=0, steps=BATCHES, batch_size=BATCH):
            assert batch.mask.all()

    serve({name: importlib.metadata.version(name) for name in ("grain", "opencv-python-headless")}, {"read": read})


def run_pillow(folder):
    """The program "Pillow"."""
    import numpy as np
    import PIL
    from PIL import Image

    files = sorted(Path(folder).glob("train/*/*.jpg"))

    def read():
        generator = np.random.default_rng(0)
        for _ in range(BATCHES):
            np.stack([crop(Image.open(files[i]).convert("RGB"), generator) for i in generator.integers(len(files), size=BATCH)])

    def crop(image, generator):
        side = min(image.size) * SIZE / generator.uniform(*SIDES)
        left, top = (generator.uniform(0, length - side) for length in image.size)
        box = left, top, left + side, top + side
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))

    serve({"pillow": PIL.__version__}, {"read": read})


def command_of(program, folder):
    """The command that starts a program."""
    if program != "tf.data":
        return [sys.executable, "-m", "plain56.experiments.benchmarks.stream_throughput", f"--run={program}", f"--jpegs={folder}"]
    python = python_with("tensorflow", "tensorflow-cpu")
    if isinstance(python, Failed):
        raise python
    return [python, str(TENSORFLOW_PROGRAM), str(folder), *map(str, (BATCH, BATCHES, *SIDES, SIZE))]


def measure(folder, rounds, show):
    """Images per second by program, versions, and sentences about programs that could not be run."""
    commands = {program: functools.partial(command_of, program, folder) for program in PROGRAMS}
    with contextlib.ExitStack() as stack:
        programs, versions, sentences = start_all(commands, stack, show)
        rates = {program: [] for program in programs}
        for number in range(rounds):
            show(f"round {number + 1} of {rounds}")
            for program, process in programs.items():
                milliseconds = statistics.median(process.turn("read"))
                rates[program].append(BATCH * BATCHES / milliseconds * 1000)
    return rates, versions, sentences


def waiting_share(folder):
    """The share of the time of resnet18's training steps (224 pixels, batch 8) in which the stream has no batch ready."""
    from plain56 import machine
    from plain56.configs import imagenet
    from plain56.training import prepare

    machine.set_up()
    config = imagenet.get_config("resnet18")
    config.data = section(folder)
    config.train.batch_size, config.train.steps = 8, WAITING_STEPS + 10
    config.optimizer.schedule.boundaries = ()
    waited = 0.0

    def timed(stream):
        nonlocal waited
        while True:
            before = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - before
            yield batch

    program = prepare(config)
    stream = timed(program.stream(0))
    state, totals = program.train_steps(*program.initial, stream, 0, 10)
    totals.loss.block_until_ready()
    waited, before = 0.0, time.perf_counter()
    _, totals = program.train_steps(state, totals, stream, 10, WAITING_STEPS)
    totals.loss.block_until_ready()
    seconds = time.perf_counter() - before
    return {"share": round(waited / seconds, 4), "step_milliseconds": round(1000 * seconds / WAITING_STEPS, 1)}


def main():
    """Measures, or with --run is one of the programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("runs/stream_throughput"))
    parser.add_argument("--run", choices=PROGRAMS[:2], help=argparse.SUPPRESS)
    parser.add_argument("--jpegs", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        {"plain56": run_plain56, "Pillow": run_pillow}[options.run](options.jpegs)
        return
    show = functools.partial(print, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as jpegs:
        from plain56.experiments.benchmarks.jpegs import write

        write(jpegs, per_class=100, test_per_class=1)
        rates, versions, sentences = measure(jpegs, options.rounds, show)
        show("resnet18 trains")
        waiting = waiting_share(jpegs)
    result = {
        "machine": describe_machine(),
        "versions": {"python": platform.python_version()} | versions,
        "images_per_second": {program: summary(values) for program, values in rates.items()},
        "times_as_fast_as": {
            program: summary([a / b for a, b in zip(rates["plain56"], values, strict=True)])
            for program, values in rates.items()
            if program != "plain56"
        },
        "resnet18_waits": waiting,
        "sentences": sentences,
    }
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "stream_throughput.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
