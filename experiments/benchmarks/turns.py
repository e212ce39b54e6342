"""What the benchmarks share: programs that take turns, so that a machine that is busy for a while slows all of them.

Only Python's own library is imported at once, since this also runs in environments that have nothing of ours.
"""

import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TURN_SECONDS = 1.0
# With "cpu", PyTorch finds no GPU either. On a GPU the programs share its memory, most of which JAX would reserve.
ENVIRONMENTS = {
    "cpu": {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    "gpu": {"JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
}
VECTOR_FLAGS = re.compile(r"avx2|fma|avx512f|avx512_bf16|amx_\w+")


class Failed(Exception):
    """A program cannot be run; the message says why."""


class Program:
    """A process that waits for turns."""

    def __init__(self, command, environment=None):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, **pipes, text=True, env=environment)
        try:
            self.about = self.read()
        except Failed:
            self.close()
            raise

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            reason = (self.errors.read().strip() or "it ended without a word").splitlines()[-1]
            raise Failed(reason[:300])
        return json.loads(line)

    def turn(self, work):
        """Milliseconds of each repetition in one turn."""
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def serve(about, works, repeats=1):
    """Prints what a program is, then takes turns until its input ends.

    Args:
        works: functions without arguments, by name.
        repeats: how many times each of them does its work in one call; the times are of one.
    """
    for work in works.values():
        work()
        work()
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        work, times, start = works[line.strip()], [], time.perf_counter()
        while not times or time.perf_counter() - start < TURN_SECONDS:
            before = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - before) / repeats)
        print(json.dumps(times), flush=True)


@functools.cache
def python_with(name, *packages):
    """The path of the interpreter of an environment with other packages, set up at the first call, or a `Failed`."""
    from plain56.machine import cache_folder

    folder = cache_folder() / name
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"Setting up {', '.join(packages)} in {folder}, which takes minutes", file=sys.stderr, flush=True)
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
        ):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                return Failed((result.stderr.strip() or "set-up failed").splitlines()[-1][:300])
        (folder / "complete").touch()
    return str(python)


def start_all(commands, stack, show, device="cpu"):
    """Starts programs: `(those that run, versions, sentences about those that could not be run)`.

    Args:
        commands: functions that return a program's command, by its name.
        stack: an `ExitStack`, which ends the programs.
        device: "cpu" or "gpu".
    """
    running, versions, sentences = {}, {}, []
    for name, command in commands.items():
        show(f"{name} starts")
        try:
            running[name] = Program(command(), os.environ | ENVIRONMENTS[device])
            stack.callback(running[name].close)
            versions |= running[name].about
        except Failed as error:
            sentences.append(f"{name} could not be run: {error}")
    return running, versions, sentences


def summary(values):
    """Median and quartiles of numbers; all three are the number if there is only one."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return dict(zip(("lower_quartile", "median", "upper_quartile"), (round(value, 3) for value in quartiles), strict=True))


def find_gpu():
    """The name of the GPU that JAX would use, or None. Another process asks, since asking takes the GPU's memory."""
    command = [sys.executable, "-c", "import jax; print(jax.devices('cuda')[0].device_kind)"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if result.returncode else result.stdout.strip()


def parse_cpuinfo(text):
    """The first processor of Linux's /proc/cpuinfo: its name, numbers (None where it has none) and vector extensions."""
    fields = dict(re.findall(r"^([^\t:\n]+)[ \t]*:[ \t]*(.*)$", text.split("\n\n")[0], re.MULTILINE))
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "family": fields.get("cpu family"),
        "model": fields.get("model"),
        "stepping": fields.get("stepping"),
        "flags": [flag for flag in fields.get("flags", "").split() if VECTOR_FLAGS.fullmatch(flag)],
    }


def describe_machine(gpu=None):
    """The processor, the number of cores, the system, and the name of the GPU if that is what is measured."""
    file = Path("/proc/cpuinfo")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = parse_cpuinfo(file.read_text() if file.exists() else "")
    return processor | {"cores": cores, "system": platform.system(), "gpu": gpu}


def machine_line(machine):
    """What `describe_machine` returns, as a line."""
    details = [f"{key} {machine[key]}" for key in ("family", "model", "stepping") if machine[key]] + machine["flags"]
    processor = machine["processor"] + (f" ({', '.join(details)})" if details else "")
    return ", ".join([processor, f"{machine['cores']} cores", machine["system"], *filter(None, [machine["gpu"]])])
