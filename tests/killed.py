"""Runs launch.py and kills its own process with SIGKILL at a chosen moment. `make soak` does this many times, at random moments.

python -m tests.killed MOMENT OCCURRENCE DELAY train --config=… --workdir=…
python -m tests.killed soak [KILLS [SEED]]
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests.devices import devices, one_device

ROOT = Path(__file__).parent.parent
# The moments to be killed at: {moment: (how often it comes in a run of FLAGS, how long it lasts in seconds)}.
MOMENTS = {
    "start": (1, 3.0),
    "compile": (1, 3.0),
    "call": (20, 0.05),
    "record": (30, 0.0),
    "evaluate": (8, 0.02),
    "save": (10, 0.15),
}
# The intervals are not multiples of each other, so that every moment comes in every state of the others.
FLAGS = [
    "--config=configs/digits.py:resnet8",
    "--config.model.widths=(16,16,32)",  # one CPU device computes all their convolutions in C++
    "--config.train.batch_size=32",
    "--config.train.steps=120",
    "--config.train.steps_per_call=7",
    "--config.train.log_every=6",
    "--config.train.evaluate_every=15",
    "--config.train.evaluate_train_every=60",
    "--config.train.checkpoint_every=12",
    "--config.optimizer.schedule.warmup_steps=10",
]
# The kinds of run, each of which resumes in its own way.
KINDS = {
    "resident": ("train",),
    "streamed": ("train", "--config.data.mode=stream"),
    "pmap": ("train", "--config.parallelism=pmap"),
    "finetuned": ("finetune", "--weights={folder}/weights.safetensors", "--config.transfer.freeze=('stem',)"),
}


def assert_native(run):
    """Fails if a run's newest start did not compute its convolutions in C++; skips the test if they cannot be compiled."""
    if not shutil.which("c++"):
        pytest.skip("the convolutions in C++ need c++")
    environment = run.environment()["convolution"]
    assert environment["convolution"] == "native"
    assert all(width % environment["lanes"] == 0 for width in run.config()["model"]["widths"] or (16, 32, 64))


def launch_and_kill(moment, occurrence, delay, arguments):
    """Runs launch.py in this process, which is killed `delay` seconds after the n-th beginning of the moment."""
    remaining = occurrence

    def begin():
        nonlocal remaining
        remaining -= 1
        if remaining == 0:
            # Another process kills it: this one may be anywhere in compiled code.
            subprocess.Popen(["sh", "-c", f"sleep {delay}; kill -KILL {os.getpid()}"])

    def announced(function):
        def call(*positional, **named):
            begin()
            return function(*positional, **named)

        return call

    if moment == "start":
        begin()
    import launch
    from plain56 import runs
    from plain56.training import checkpoints, session

    if moment == "compile":
        session.prepare = announced(session.prepare)
    if moment in ("call", "evaluate"):
        key, prepare = {"call": "train_steps", "evaluate": "evaluate"}[moment], session.prepare

        def prepare_announced(config):
            program = prepare(config)
            setattr(program, key, announced(getattr(program, key)))
            return program

        session.prepare = prepare_announced
    if moment == "save":
        checkpoints.save = announced(checkpoints.save)
    if moment == "record":
        open_log = runs.Run.open_log

        @contextlib.contextmanager
        def open_log_announced(run, *positional, **named):
            with open_log(run, *positional, **named) as append:

                def append_or_die(*records, sync):
                    nonlocal remaining
                    written = []
                    for record in records:
                        remaining -= 1
                        if remaining == 0:
                            with (run.path / "metrics.jsonl").open("a") as file:
                                file.write(f'{{"step": {record["step"]}, "epo')
                            os.kill(os.getpid(), signal.SIGKILL)
                        written += append(record)
                    return written + append(sync=sync)

                yield append_or_die

        runs.Run.open_log = open_log_announced
    sys.exit(launch.main(arguments))


def wait_until(process, condition):
    """Waits until a process has done something, and fails if it ends first or takes more than two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def last_line(*arguments):
    """The last line that launch.py prints, run on one device, which is also faster than the simulated ones of the tests."""
    command = [sys.executable, "launch.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=one_device(), check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def launched(workdir, moment=None, occurrence=1, delay=0.0, kind="resident"):
    """The exit status of one launch, which is killed if a moment is given: −9 if the kill came in time."""
    command = ["-m", "tests.killed", moment, str(occurrence), str(delay)] if moment else ["launch.py"]
    mode, *extra = (argument.format(folder=Path(workdir).parent) for argument in KINDS[kind])
    command = [sys.executable, *command, mode, *FLAGS, *extra, f"--workdir={workdir}"]
    environment = devices(2) if kind == "pmap" else one_device()
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def train_whole(folder, kind):
    """The result of an uninterrupted run of a kind, in FOLDER/KIND."""
    if kind == "finetuned":
        if not (Path(folder) / "resident").exists():
            train_whole(folder, "resident")
        export = ["launch.py", "export", f"--workdir={folder}/resident", f"--weights={folder}/weights.safetensors"]
        subprocess.run([sys.executable, *export], cwd=ROOT, env=one_device(), check=True, stdout=subprocess.DEVNULL)
    assert launched(f"{folder}/{kind}", kind=kind) == 0
    return result(f"{folder}/{kind}")


def result(workdir):
    """A run's result: its last parameters, statistics and momentum, and its records without the clock's values."""
    import jax

    from plain56 import runs
    from plain56.config import from_json
    from plain56.training import checkpoints, prepare

    run = runs.read_run(workdir)
    with contextlib.closing(checkpoints.open_checkpoints(run.checkpoints, read_only=True)) as manager:
        state, _ = checkpoints.restore(manager, prepare(from_json(run.config())).initial)
    clock = {"seconds", "images_per_second"}
    records = [{key: record[key] for key in record.keys() - clock} for record in run.metrics()]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)], records


def same(one, other):
    """Whether two results are the same bit for bit, with every record once and in order."""
    return one[1] == other[1] and all(a.tobytes() == b.tobytes() for a, b in zip(one[0], other[0], strict=True))


def soak(kills=30, seed=0):
    """Kills runs at random moments, at most five times each, until they are finished; returns whether all are the same."""
    chance, failures, done = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = {kind: train_whole(folder, kind) for kind in KINDS}
        print(f"seed {seed}; an uninterrupted run logs {len(whole['resident'][1])} records", flush=True)
        moments, kinds = [], []
        while done < kills:
            begin, survived = time.monotonic(), []
            workdir = f"{folder}/{done}"
            kinds = kinds or chance.sample(list(KINDS), len(KINDS))
            kind = kinds.pop()
            while len(survived) < 5 and done < kills:
                # The moments take turns, so that none is left out.
                moments = moments or chance.sample(list(MOMENTS), len(MOMENTS))
                moment = moments.pop()
                times, duration = MOMENTS[moment]
                # Each start has less left to do, but the first occurrences always come.
                occurrence, delay = chance.randint(1, max(1, times // 5)), round(chance.uniform(0, duration), 3)
                status = launched(workdir, moment, occurrence, delay, kind)
                if status == 0:
                    break  # it was finished before the moment came
                assert status == -signal.SIGKILL, status
                done += 1
                survived.append(f"{moment} {occurrence} +{delay} s")
            status = launched(workdir, kind=kind)
            right = status == 0 and same(result(workdir), whole[kind])
            failures += not right
            verdict = "the same to the bit" if right else f"NOT THE SAME (status {status})"
            print(f"{kind} killed at {'; '.join(survived)}: {verdict} ({time.monotonic() - begin:.0f} s)", flush=True)
    print(f"{done} kills, {failures} runs that differ", flush=True)
    return failures == 0


if __name__ == "__main__":
    if sys.argv[1] == "soak":
        sys.exit(not soak(*map(int, sys.argv[2:])))
    launch_and_kill(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
