"""Several processes that train one run, as a user starts them."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from plain56 import parallel, runs, training
from plain56.errors import UserError
from plain56.training import load_run
from tests.killed import result, same, wait_until
from tests.test_parallel import free_port

ROOT = Path(__file__).parent.parent
DIGITS = "--config=configs/digits.py:resnet8"
SMALL = [DIGITS, "--config.model.widths=(4,4,8)", "--config.train.batch_size=32", "--config.train.steps_per_call=5"]
started = []


@pytest.fixture(autouse=True)
def none_outlives_its_test():
    yield
    while started:
        process = started.pop()
        process.kill()
        process.communicate()


def start(arguments_of_each):
    """Starts `launch.py train` once for each list of arguments, with two devices each."""
    several = [f"--coordinator=localhost:{free_port()}", f"--num_processes={len(arguments_of_each)}"]
    processes = [
        subprocess.Popen(
            [sys.executable, "launch.py", "train", *several, f"--process_id={process}", *arguments],
            cwd=ROOT,
            env=os.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for process, arguments in enumerate(arguments_of_each)
    ]
    started.extend(processes)
    return processes


def end(processes):
    """The exit status of each, what it printed, and its errors."""
    return [(*process.communicate(timeout=300), process.returncode) for process in processes]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("--config.seed=3", "seed (0 and 3)"),
        pytest.param("--num_processes=3", "--num_processes (2 and 3)", marks=pytest.mark.slow),
    ],
)
def test_processes_that_were_started_differently_stop(tmp_path, other, message):
    workdir = f"--workdir={tmp_path / 'run'}"
    for _, errors, status in end(start([[*SMALL, workdir], [*SMALL, workdir, other]])):
        assert status == 2
        assert f"error: Process 0 and process 1 differ in {message}" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("UNKNOWN: Gloo AllGather failed: [pair.cc:538] Read error [127.0.0.1]:37269: Connection reset by peer", True),
        ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)", True),
        ("INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited or there was a network error.", True),
        ("INTERNAL: NCCL operation ncclCommInitRank() failed: unhandled cuda error, 'out of memory'", False),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes for the gloo buffer", False),
        ("INVALID_ARGUMENT: Buffer has been deleted or donated.", False),
    ],
)
def test_a_broken_connection_is_told_from_other_errors(monkeypatch, message, lost):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(parallel.Lost if lost else jax.errors.JaxRuntimeError), parallel.explaining_lost_processes():
        raise jax.errors.JaxRuntimeError(message)


def test_there_is_no_process_0(monkeypatch):
    monkeypatch.setattr(parallel, "WAIT_SECONDS", 0)
    with pytest.raises(UserError, match="There is no process 0 at --coordinator=localhost:.*; start it first"):
        parallel.join(f"localhost:{free_port()}", 2, 1)


def test_nothing_has_started_several_processes(tmp_path):
    command = [sys.executable, "launch.py", "train", *SMALL, f"--workdir={tmp_path / 'run'}", "--distributed"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2
    assert "--distributed finds no Slurm, Open MPI, Kubernetes or TPU pod around this process; give" in result.stderr


def test_a_directory_that_another_process_does_not_see(tmp_path, tiny_config, monkeypatch):
    monkeypatch.setattr(parallel, "gather", lambda value: [value, False] if value is True else [value])
    with pytest.raises(UserError, match="process 1 does not see what process 0 writes"):
        training.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_stream_their_parts(tmp_path):
    common = ["--config.data.mode=stream", "--config.train.steps=50", "--config.train.checkpoint_every=50"]
    states = []
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        arguments = [*SMALL, *common, "--config.train.stop_after=4", f"--workdir={workdir}"]
        assert [status for *_, status in end(start([arguments] * processes))] == [0] * processes
        states.append(load_run(workdir).state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *states)


def long(workdir):
    """The arguments of both processes of a run that is long enough to be ended before it is finished."""
    every = [f"--config.train.{key}=20" for key in ("log_every", "evaluate_every", "checkpoint_every")]
    return [[*SMALL, *every, "--config.train.steps=120", f"--workdir={workdir}"]] * 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing has interrupted."""
    workdir = tmp_path_factory.mktemp("processes") / "whole"
    assert [status for *_, status in end(start(long(workdir)))] == [0, 0]
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_is_killed_and_all_go_on_with_the_same_bits(tmp_path, whole, victim):
    processes = start(long(tmp_path / "cut"))
    # By then every program has run once: whoever waits for a dead process's first answer, JAX aborts after 100 seconds.
    wait_until(processes[0], lambda: len(runs.Run(tmp_path / "cut").metrics("test")) > 1)
    processes[victim].send_signal(signal.SIGKILL)
    other = processes[1 - victim]
    _, errors = other.communicate(timeout=300)
    # JAX may abort it before it can say anything: without process 0, which holds them together, and after 100 seconds where one
    # of its devices still waits for what another one knows to be lost.
    if other.returncode == -signal.SIGABRT:
        assert victim == 0 or "another task died" in errors
        assert runs.Run(tmp_path / "cut").status().state == "preempted"
    elif victim == 1:
        assert other.returncode == 1
        assert errors.splitlines()[-1].startswith(LOST), errors
        assert runs.Run(tmp_path / "cut").status()[:3:2] == ("failed", errors.splitlines()[-1].removeprefix("error: "))
        assert "Traceback" not in errors
    assert other.returncode not in (0, 75)
    processes[victim].communicate()
    assert runs.Run(tmp_path / "cut").status().step < 120
    assert [status for *_, status in end(start(long(tmp_path / "cut")))] == [0, 0]
    assert same(result(tmp_path / "cut"), result(whole))


LOST = "error: Another process of this run is gone or has failed"


@pytest.mark.slow
def test_one_process_is_lost_before_training_begins(tmp_path):
    port = free_port()
    join = f"import os; from plain56 import parallel; parallel.join('localhost:{port}', 2, 1); os._exit(9)"
    several = [f"--coordinator=localhost:{port}", "--num_processes=2", "--process_id=0"]
    command = [sys.executable, "launch.py", "train", *SMALL, *several, f"--workdir={tmp_path / 'run'}"]
    with subprocess.Popen([sys.executable, "-c", join], cwd=ROOT, stderr=subprocess.DEVNULL):
        first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert first.returncode == 1
    assert first.stderr.splitlines()[-1].startswith(LOST), first.stderr
    assert "Traceback" not in first.stderr


@pytest.mark.slow
def test_what_process_0_cannot_write_stops_all(tmp_path):
    every = ["--config.train.log_every=1", "--config.train.evaluate_every=400", "--config.train.checkpoint_every=400"]
    processes = start([[*SMALL, *every, "--config.train.steps=400", f"--workdir={tmp_path / 'run'}"]] * 2)
    wait_until(processes[0], lambda: runs.Run(tmp_path / "run").metrics("train"))
    resource.prlimit(processes[0].pid, resource.RLIMIT_FSIZE, (20_000, 20_000))  # of each file; the log's would be larger
    for _, errors, status in end(processes):
        assert status == 2
        assert errors.splitlines()[-1].endswith(f"{tmp_path / 'run'} cannot be written: File too large."), errors
        assert "Traceback" not in errors
    assert runs.Run(tmp_path / "run").status().state == "failed"


@pytest.mark.slow
def test_one_process_is_told_to_stop_and_all_go_on_with_the_same_bits(tmp_path, whole):
    processes = start(long(tmp_path / "cut"))
    wait_until(processes[0], lambda: runs.Run(tmp_path / "cut").metrics("train"))
    processes[1].send_signal(signal.SIGTERM)
    first, second = end(processes)
    assert (first[2], second[2]) == (75, 75)
    assert "stopped by SIGTERM, after saving at step" in first[1]
    assert 0 < runs.Run(tmp_path / "cut").status().step < 120
    (output, _, status), (silent, *_) = end(start(long(tmp_path / "cut")))
    assert status == 0 and '"state": "finished"' in output and "state" not in silent  # JAX's Gloo is not
    paths = whole, tmp_path / "cut"
    jax.tree.map(np.testing.assert_array_equal, *(load_run(path).state for path in paths))
    steps = [[record["step"] for record in runs.Run(path).metrics("test")] for path in paths]
    assert steps[0] == list(range(20, 121, 20)) and sorted(set(steps[1])) == steps[1] and set(steps[0]) <= set(steps[1])
