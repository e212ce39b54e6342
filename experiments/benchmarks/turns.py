"""What the benchmarks share: programs that take turns, so that a machine that is busy for a while slows all of them.

Only Python's own library is imported at once, since this also runs in environments that have nothing of ours.
"""

import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TURN_SECONDS = 1.0


class Failed(Exception):
    """A program cannot be run; the message says why."""


class Program:
    """A process that waits for turns."""

    def __init__(self, command, environment=None):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, **pipes, text=True, env=environment)
        self.about = self.read()

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


def serve(about, works):
    """Prints what a program is, then takes turns until its input ends; `works` are functions without arguments, by name."""
    for work in works.values():
        work()
        work()
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        work, times, start = works[line.strip()], [], time.perf_counter()
        while not times or time.perf_counter() - start < TURN_SECONDS:
            before = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - before))
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


def start_all(commands, stack, show):
    """Starts programs: `(those that run, versions, sentences about those that could not be run)`.

    Args:
        commands: functions that return a program's command, by its name.
        stack: an `ExitStack`, which ends the programs.
    """
    running, versions, sentences = {}, {}, []
    for name, command in commands.items():
        show(f"{name} starts")
        try:
            running[name] = Program(command(), os.environ | {"JAX_PLATFORMS": "cpu"})
            stack.callback(running[name].close)
            versions |= running[name].about
        except Failed as error:
            sentences.append(f"{name} could not be run: {error}")
    return running, versions, sentences


def summary(values):
    """Median and range of numbers."""
    return {"median": round(statistics.median(values), 3), "least": round(min(values), 3), "most": round(max(values), 3)}


def describe_machine():
    """The processor, the number of cores and the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor}, {cores} cores, {platform.system()}"
