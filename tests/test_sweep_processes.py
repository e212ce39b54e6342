"""Sweeps by one process or several, as users launch them: killed, interrupted, and shared among workers."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from plain56 import runs
from tests.devices import one_device
from tests.killed import assert_native, result, same, wait_until

ROOT = Path(__file__).parent.parent
ERRORS = "train_error,train_clean_error,validation_error,test_error"
COLUMNS = f"run,data,model,depth,residual,seed,steps,state,{ERRORS},train_loss,parameters,seconds"


# A sweep over rates, the first run of which is long, and one of which diverges.
RATES = """
from configs import digits

def get_config():
    config = digits.get_config("resnet8")
    config.model.widths = (16, 16, 16)
    config.train.batch_size, config.train.evaluate_every = 32, 100
    config.optimizer.schedule.warmup_steps = 2
    return config

def sweep(config):
    for rate, steps in ((0.03, 1000), (0.02, 20), (1e30, 20)):
        yield {"optimizer.learning_rate": rate, "train.steps": steps}
"""


def test_killed_sweep_goes_on_and_draws_its_figure(tmp_path):
    flags = {
        "sweep.depths": "(8,)",
        "model.widths": "(16,16,16)",
        "train.batch_size": 32,
        "train.steps": 3000,
        "train.checkpoint_every": 20,
        "optimizer.schedule.warmup_steps": 2,
    }
    command = [sys.executable, "launch.py", "sweep", "--config=configs/sweeps/degradation.py", f"--workdir={tmp_path}"]
    process = subprocess.Popen(
        [*command, *(f"--config.{key}={value}" for key, value in flags.items())], cwd=ROOT, env=one_device()
    )
    first, second = (runs.Run(tmp_path / name) for name in ("plain8-seed0", "resnet8-seed0"))
    # The first run is cut as soon as it has saved something: it is far from its end.
    wait_until(process, first.has_checkpoint)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (first.status().state, second.status().state) == ("preempted", "queued")
    before = first.metrics("train")
    saved = max(int(folder.name) for folder in first.checkpoints.glob("*") if folder.name.isdigit())

    flags = {**flags, "train.stop_after": saved + 20}
    result = subprocess.run(
        [*command, *(f"--config.{key}={value}" for key, value in flags.items())], cwd=ROOT, env=one_device(), check=True
    )
    assert result.returncode == 0
    with (tmp_path / "summary.csv").open() as file:
        assert file.readline() == COLUMNS + "\n"
        rows = list(csv.DictReader(file, COLUMNS.split(",")))
    assert [(row["model"], row["residual"]) for row in rows] == [("plain8", "False"), ("resnet8", "True")]
    after = first.metrics("train")
    assert [record["step"] for record in after] == list(range(20, saved + 21, 20))
    assert before[0] == after[0], "the run began anew"
    drawn = subprocess.run(
        [sys.executable, "launch.py", "report", f"--workdir={tmp_path}"],
        cwd=ROOT,
        env=one_device(),
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(drawn.stdout.splitlines()[-1])["figure"] == str(tmp_path / "degradation.png")
    assert (tmp_path / "degradation.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "degradation.svg").read_text()
    for text in ("Plain networks", "Residual networks", "Final error", "Thin: training error. Bold: test error."):
        assert f"<!-- {text} -->" in svg


def test_workers_share_a_sweep_of_which_one_run_is_killed_and_one_diverges(tmp_path):
    (tmp_path / "rates.py").write_text(RATES)
    workdir = tmp_path / "sweep"
    command = [sys.executable, "launch.py", "sweep", f"--workdir={workdir}"]
    first = [*command, f"--config={tmp_path / 'rates.py'}", "--workers=2"]
    listed = subprocess.run([*first, "--dry_run"], cwd=ROOT, env=one_device(), check=True, capture_output=True, text=True)
    assert [row["run"] for row in json.loads(listed.stdout.splitlines()[-1])["runs"]] == [
        f"resnet8-learning_rate{rate}-steps{steps}" for rate, steps in ((0.03, 1000), (0.02, 20), (1e30, 20))
    ]
    assert not workdir.exists()

    long_run = runs.Run(workdir / "resnet8-learning_rate0.03-steps1000")
    with subprocess.Popen(first, cwd=ROOT, env=one_device(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweep:
        wait_until(sweep, long_run.has_checkpoint)
        assert long_run.status().state == "running"
        os.kill(int(long_run.holder().split()[1]), signal.SIGKILL)
        output, errors = sweep.communicate(timeout=120)
    assert sweep.returncode == 1, errors
    assert "A worker was killed by SIGKILL" in errors
    rows = json.loads(output.splitlines()[-1])["runs"]
    assert [row["state"] for row in rows] == ["preempted", "finished", "diverged"]
    assert rows == runs.read_summary(workdir)
    status = subprocess.run([*command, "--status"], cwd=ROOT, env=one_device(), check=True, capture_output=True, text=True)
    shown = json.loads(status.stdout.splitlines()[-1])["runs"]
    assert [(row["state"], row["step"]) for row in shown] == [(row["state"], row["steps"]) for row in rows]

    # Launched again, from only the directory: the killed one goes on from its checkpoint, and nothing else is trained.
    logged = long_run.metrics("train")[0]
    finished = (workdir / "resnet8-learning_rate0.02-steps20" / "metrics.jsonl").stat().st_mtime_ns
    assert subprocess.run([*command, "--index=0"], cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL).returncode == 0
    # One has diverged for good.
    assert subprocess.run(command, cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL).returncode == 1
    assert [row["state"] for row in runs.read_summary(workdir)] == ["finished", "finished", "diverged"]
    assert_native(long_run)
    assert long_run.metrics("train")[0] == logged
    assert (workdir / "resnet8-learning_rate0.02-steps20" / "metrics.jsonl").stat().st_mtime_ns == finished


@pytest.mark.slow
def test_workers_that_are_all_killed_end_with_the_bits_of_one_process(tmp_path):
    (tmp_path / "rates.py").write_text(RATES)
    command = [sys.executable, "launch.py", "sweep", f"--config={tmp_path / 'rates.py'}"]
    alone = [*command, f"--workdir={tmp_path / 'whole'}"]
    assert subprocess.run(alone, cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL).returncode == 1
    command += [f"--workdir={tmp_path / 'cut'}", "--workers=2"]
    long_run = runs.Run(tmp_path / "cut" / "resnet8-learning_rate0.03-steps1000")
    with subprocess.Popen(command, cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL) as sweep:
        wait_until(sweep, long_run.has_checkpoint)
        tree = [psutil.Process(sweep.pid), *psutil.Process(sweep.pid).children(recursive=True)]
        for process in tree:
            process.kill()
    psutil.wait_procs(tree)
    assert long_run.status().state == "preempted"
    # As the one rate that diverges has it.
    assert subprocess.run(command, cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL).returncode == 1
    assert [row["state"] for row in runs.read_summary(tmp_path / "cut")] == ["finished", "finished", "diverged"]
    for name in (row["run"] for row in runs.read_summary(tmp_path / "cut")):
        assert same(result(tmp_path / "cut" / name), result(tmp_path / "whole" / name))
        assert_native(runs.Run(tmp_path / "cut" / name))


def test_interrupted_workers_save_and_say_so(tmp_path):
    (tmp_path / "rates.py").write_text(RATES)
    workdir = tmp_path / "sweep"
    command = [sys.executable, "launch.py", "sweep", f"--config={tmp_path / 'rates.py'}", f"--workdir={workdir}", "--workers=2"]
    long_run = runs.Run(workdir / "resnet8-learning_rate0.03-steps1000")
    with subprocess.Popen(command, cwd=ROOT, env=one_device(), stderr=subprocess.PIPE, text=True) as sweep:
        wait_until(sweep, long_run.metrics)
        sweep.send_signal(signal.SIGTERM)
        _, errors = sweep.communicate(timeout=120)
    assert sweep.returncode == 75
    assert "Interrupted; the same command goes on from there." in errors
    status = long_run.status()
    assert (status.state, status.reason) == ("preempted", f"stopped by SIGTERM, after saving at step {status.step}")
    assert runs.read_summary(workdir)[0]["state"] == "preempted"
