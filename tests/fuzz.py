"""Damages a user's files in every way that their structure allows, and runs the modes on them: they work or print a sentence.

python -m tests.fuzz [SECONDS [SEED]]    (or `make fuzz`)

A damage is one change to the files of a small sweep, its exported weights, or a folder of pictures: any JSON value in any place,
a key missing, added or doubled; any file empty, cut, changed in a byte, or replaced by a folder, a broken link, a link to
itself, a pipe, or a foreign file. Only launch.main is called, so that the same damages can be tried on any version.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import cv2
import numpy as np

import launch

RUNS = ("plain8-seed0", "resnet8-seed0")
BROKEN, SOUND = RUNS  # the run that is damaged, and the one that must not be affected
SWEEP_FLAGS = [
    "--config=configs/sweeps/degradation.py",
    "--config.sweep.depths=(8,)",
    "--config.model.widths=(16,16,32)",
    "--config.train.batch_size=32",
    "--config.train.steps=6",
    "--config.train.log_every=2",
    "--config.train.evaluate_every=6",
    "--config.train.checkpoint_every=3",
    "--config.train.gradients_every=6",
    "--config.optimizer.schedule.warmup_steps=2",
]
SECONDS = 120  # that a mode may take
NUMBERS = (0, 1, -1, 3, 10**30, 0.5, -1e308)
VALUES = (None, True, False, *NUMBERS, "", "x", "../x", "resnet8", "a" * 300, [], [[]], ["x"], [1, 2, 3], {}, {"a": 1})
TEXTS = ("", "{}", "[]", "null", "NaN", '{"train": "data/train.csv"}', '{"model": {"name": "resnet8"}}', "ä", "[" * 5000)
KINDS = ("run json", "run json", "run file", "sweep json", "sweep file", "record", "weights", "picture", "parent", "folder")
JSON_FILES = {
    "run json": ("config.json", "status.json", "environment.json"),
    "sweep json": ("sweep.json", "sweep.json", "summary.json"),
}


def make_home(folder):
    """A sweep of two runs, weights exported from one, a picture, and a folder of pictures; returns the sweep's rows by name."""
    folder = Path(folder)
    assert run_mode(["sweep", *SWEEP_FLAGS, f"--workdir={folder / 'sweep'}"])[0] == 0
    assert run_mode(["report", f"--workdir={folder / 'sweep'}"])[0] == 0
    assert run_mode(["export", f"--workdir={folder / 'sweep' / SOUND}", f"--weights={folder / 'w.safetensors'}"])[0] == 0
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(25):
            cv2.imwrite(str(folder / "pictures" / name / f"{i}.png"), generator.integers(0, 255, (8, 8, 3), np.uint8))
    return rows_of(folder)


def rows_of(folder):
    """The rows of the sweep's summary by the runs' names."""
    return {row["run"]: row for row in json.loads((folder / "sweep" / "summary.json").read_text())}


def places(value, path=()):
    """The paths of all values in a JSON value, the whole one first."""
    found = [path]
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(part, (*path, key))
    return found


def damage_json(value, chance):
    """A JSON value with one change in one place, as a text, and a description of the change."""
    path = chance.choice(places(value)[1:] or [()])
    if not path:
        return json.dumps(new := chance.choice(VALUES)), f"whole = {new!r}"[:60]
    value = parent = json.loads(json.dumps(value))
    for key in path[:-1]:
        parent = parent[key]
    key, place = path[-1], ".".join(map(str, path))
    kind = chance.choice(("replace", "replace", "replace", "remove", "add", "double"))
    if kind == "remove":
        del parent[key]
    elif kind == "add" and isinstance(parent, dict):
        parent[chance.choice(("", "a.b", "extra", "../up", "name" * 100))] = chance.choice(VALUES)
    elif kind == "double" and isinstance(parent, dict) and len(path) == 1:
        text = json.dumps(value)
        return f"{text[:-1]}, {json.dumps(key)}: {json.dumps(new := chance.choice(VALUES))}}}", f"{place} doubled as {new!r}"[:80]
    else:
        kind, parent[key] = f"= {(new := chance.choice(VALUES))!r}"[:40], new
    return json.dumps(value), f"{place} {kind}"


def damage_file(path, chance):
    """Damages a file as a whole; returns how."""
    content = path.read_bytes() if path.is_file() else b""
    kind = chance.choice(("empty", "cut", "byte", "folder", "dangling", "loop", "pipe", "foreign", "gone"))
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "cut":
        path.write_bytes(content[: chance.randrange(len(content) + 1)])
    elif kind == "byte" and content:
        place = chance.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ chance.randrange(1, 256)]) + content[place + 1 :])
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "foreign":
        path.write_bytes(chance.choice((b"\0\xff\n", b"thesis\n", *(text.encode() for text in TEXTS))))
    return kind


def damage_home(folder, chance):
    """Damages one file of a home; returns a description, and the modes that meet it."""
    sweep, run = folder / "sweep", folder / "sweep" / BROKEN
    kind = chance.choice(KINDS)
    if kind in ("run json", "sweep json"):
        path = (run if kind == "run json" else sweep) / chance.choice(JSON_FILES[kind])
        text, done = damage_json(json.loads(path.read_text()), chance)
        path.write_text(text)
    elif kind in ("run file", "sweep file"):
        files = [file for file in sorted(run.rglob("*") if kind == "run file" else sweep.glob("*")) if file.is_file()]
        small = [file for file in files if "checkpoints" not in file.parts or chance.random() < 0.2]
        path = chance.choice(small)
        done = damage_file(path, chance)
    elif kind == "record":
        path = run / "metrics.jsonl"
        lines = path.read_text().splitlines()
        number = chance.randrange(len(lines))
        lines[number], done = damage_json(json.loads(lines[number]), chance)
        path.write_text("\n".join(lines) + "\n")
    elif kind == "weights":
        path = folder / "w.safetensors"
        done = damage_weights(path, chance)
        return f"weights: {done}", weights_modes(folder)
    elif kind == "picture":
        path = chance.choice(sorted((folder / "pictures").rglob("*.png")))
        return f"{path.name}: {damage_file(path, chance)}", picture_modes(folder)
    elif kind == "parent":
        path = chance.choice((sweep / "config.json", folder / "config.json"))
        path.write_text(text := chance.choice([text for text in TEXTS if text.isascii()]))
        done = f"with {text[:40]!r}"
    else:
        path, done = run, "a file in place of the run"
        shutil.rmtree(run)
        run.touch()
    return f"{path.relative_to(folder)}: {done}", run_modes(folder)


def damage_weights(path, chance):
    """Damages the description, the tensors or the bytes of exported weights."""
    import safetensors
    import safetensors.numpy

    kind = chance.choice(("description", "description", "tensor", "file"))
    if kind == "file":
        return damage_file(path, chance)
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    if kind == "description":
        metadata["plain56"], done = damage_json(json.loads(metadata["plain56"]), chance)
    else:
        name = chance.choice(sorted(tensors))
        value = chance.choice((np.nan, np.inf, -1.0, 3e38))
        tensors[name], done = np.full_like(tensors[name], value), f"{name} is {value}"
    safetensors.numpy.save_file(tensors, path, metadata)
    return done


def run_modes(folder):
    sweep, run = folder / "sweep", folder / "sweep" / BROKEN
    return [
        ["sweep", f"--workdir={sweep}", "--status"],
        ["sweep", f"--workdir={sweep}", "--dry_run"],
        ["report", f"--workdir={sweep}"],
        ["report", f"--workdir={run}"],
        ["sweep", f"--workdir={sweep}"],
        ["evaluate", f"--workdir={run}"],
        ["export", f"--workdir={run}", f"--weights={folder / 'out.safetensors'}"],
        ["predict", f"--weights={run}", str(folder / "pictures" / "cat" / "0.png")],
        ["describe", f"--config={run / 'config.json'}"],
        ["train", f"--config={run / 'config.json'}", f"--workdir={run}"],
    ]


def weights_modes(folder):
    weights = f"--weights={folder / 'w.safetensors'}"
    return [
        ["predict", weights, str(folder / "pictures" / "cat" / "0.png")],
        ["evaluate", "--config=configs/digits.py:resnet8", "--config.model.widths=(16,16,32)", weights],
        ["export", f"--workdir={folder / 'w.safetensors'}", f"--weights={folder / 'out.stablehlo'}"],
    ]


def picture_modes(folder):
    data = [f"--config.data.name=folder:{folder / 'pictures'}", "--config.train.steps=2", "--config.train.batch_size=8"]
    data += ["--config.model.widths=(4,4,8)", "--config.optimizer.schedule.warmup_steps=0"]
    train = ["train", "--config=configs/digits.py:resnet8", *data]
    return [
        ["predict", f"--weights={folder / 'w.safetensors'}", *map(str, sorted((folder / "pictures" / "cat").iterdir()))],
        [*train, f"--workdir={folder / 'resident'}"],
        [*train, "--config.data.mode=stream", f"--workdir={folder / 'streamed'}"],
    ]


def run_mode(arguments):
    """The exit status of a mode, or None for an exception or a hang, and what it printed on each of the two streams."""

    def stop(number, frame):
        raise TimeoutError(f"{SECONDS} s")

    out, errors, before = io.StringIO(), io.StringIO(), signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = launch.main(arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        status = None
        errors.write(traceback.format_exc())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return status, out.getvalue(), errors.getvalue()


def judge(arguments, status, out, errors):
    """What is wrong with the way in which a mode has ended, or ""."""
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    last = errors.splitlines()[-1] if errors else ""
    if status is None:
        return f"{last[:200]}"
    if status not in (0, 1, 2, 75) or (status == 2 and len(told) != 1):
        return f"status {status} and {len(told)} sentences: {last[:200]}"
    if "Traceback" in errors or "nan" in out.lower():
        return f"a traceback or NaN: {last[:200]}"
    return ""


def attempt(home, rows, chance, folder):
    """Damages a copy of a home and runs the modes on it; returns the damage and what went wrong, by mode."""
    shutil.copytree(home, folder, symlinks=True)
    damage, modes = damage_home(folder, chance)
    planned = sound_element(folder) == sound_element(home)
    wrong = {}
    for arguments in modes:
        status, out, errors = run_mode(arguments)
        fault = judge(arguments, status, out, errors)
        looks = {"--status", "--dry_run"} & set(arguments)
        stopped = status == 2 and not damage.startswith(f"sweep/{BROKEN}")  # by damage to the sweep as a whole
        if not (fault or looks or stopped) and planned and arguments[0] in ("report", "sweep"):
            fault = missed(folder, rows)
        if fault:
            wrong[" ".join([arguments[0], *looks])] = fault
    return damage, wrong


def sound_element(folder):
    """The sound run's element of sweep.json, or None if it cannot be read."""
    path = folder / "sweep" / "sweep.json"
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError, RecursionError):
        return json.loads(path.read_text())[SOUND] if path.is_file() else None  # reading a pipe would wait for its writer


def missed(folder, rows):
    """What the summary lacks of the sound run, or ""."""
    try:
        found = rows_of(folder).get(SOUND)
    except (OSError, KeyError, TypeError, ValueError):
        found = None
    same = found and all(found.get(key) == rows[SOUND][key] for key in ("state", "steps", "test_error", "parameters"))
    return "" if same else f"the other run's row is {found}"


def main(seconds=600, seed=0):
    """Tries damages for some seconds; returns the number of kinds of fault that were found."""
    found, tried, end = {}, 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as top:
        home = Path(top) / "home"
        rows = make_home(home)
        while time.monotonic() < end:
            number = seed * 1_000_000 + tried
            copy = Path(top) / str(number)  # another name each time, since a data set is read once per name
            damage, wrong = attempt(home, rows, random.Random(number), copy)
            shutil.rmtree(copy)
            tried += 1
            for mode, fault in wrong.items():
                found.setdefault((mode, fault.split(":")[0][:60]), (number, damage, fault))
                print(f"{number} {damage} | {mode}: {fault}", flush=True)
    print(f"{tried} damages, {len(found)} kinds of fault", flush=True)
    return len(found)


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
