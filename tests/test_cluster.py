"""A sweep on a real Slurm, from Debian's packages, that runs on this machine only for the tests."""

import contextlib
import getpass
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch
from plain56 import runs
from tests import test_own
from tests.devices import one_device
from tests.killed import assert_native, result, same
from tests.test_parallel import free_port

ROOT = Path(__file__).parent.parent
SWEEP = ["sweep", "--config=configs/sweeps/degradation.py"]
SMALL = [
    "--config.sweep.depths=(8,14)",
    "--config.sweep.seeds=(0,)",
    "--config.model.widths=(16,16,32)",
    "--config.train.batch_size=32",
    "--config.train.steps=800",
    "--config.train.steps_per_call=5",
    "--config.train.log_every=100",
    "--config.train.evaluate_every=400",
    "--config.train.checkpoint_every=800",
]
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for so many seconds; the default is 120.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=laptop Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def wait_until(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    programs = {name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("munged", "slurmctld", "slurmd")}
    if not all(programs.values()):
        pytest.skip("needs Debian's packages slurmctld, slurmd and munge")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    values = {"host": platform.node().split(".")[0], "user": getpass.getuser(), "ports": (free_port(), free_port())}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, **values))
    munge = {f"{name}-file": f"munge.{name}" for name in ("key", "pid", "log", "seed")} | {"socket": "munge.socket"}
    commands = [
        [programs["munged"], "--foreground", "--force", *(f"--{key}={folder / file}" for key, file in munge.items())],
        [programs["slurmctld"], "-D", "-c"],
        [programs["slurmd"], "-D"],
    ]
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for command in commands:
            log = stack.enter_context((folder / f"{Path(command[0]).name}.out").open("w"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            if "munged" in command[0]:
                wait_until((folder / "munge.socket").exists, 20)
        wait_until(lambda: "idle" in query("sinfo", "-h", "-o", "%T"), 30)
        yield
        subprocess.run(["scancel", f"--user={values['user']}"], check=True)
        wait_until(lambda: not query("squeue", "-h"), 60)


def query(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
def test_four_runs_of_which_one_is_preempted_all_finish(slurm, tmp_path):
    workdir = f"--workdir={tmp_path / 'sweep'}"
    flags = ["--executor=slurm", "--partition=laptop", "--minutes=30", "--cpus=1", "--parallel=2"]
    command = [sys.executable, "launch.py", *SWEEP, *SMALL]
    submitted = subprocess.run([*command, workdir, *flags], cwd=ROOT, env=one_device(), capture_output=True, text=True)
    assert submitted.returncode == 0, submitted.stderr
    elements = runs.read_sweep(tmp_path / "sweep")
    assert len(elements) == 4
    first = elements[0].run
    job = query("squeue", "-h", "-r", "-o", "%i").split()
    assert len(job) == 4
    array = job[0].split("_")[0]
    wait_until(lambda: first.metrics("train"))
    assert len(query("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i").split()) <= 2
    # The signal that Slurm sends before it ends a job, at its time limit or when another job takes its place.
    # Sent to the job's step: if sent to the whole job, this Slurm answers "try again later", and repeats it to the requeued job.
    subprocess.run(["scancel", f"{array}_0.0", "--signal=USR2"], check=True)
    wait_until(lambda: first.status().state == "preempted")
    assert 100 <= first.status().step < 800
    before = first.metrics()
    wait_until(lambda: all(element.run.status().state == "finished" for element in elements), 400)
    steps = [record["step"] for record in first.metrics("train")]
    assert steps == sorted(set(steps)) and set(range(100, 801, 100)) <= set(steps)
    assert first.metrics()[: len(before)] == before  # it did not start over
    wait_until(lambda: not query("squeue", "-h"))
    summary = subprocess.run([sys.executable, "launch.py", "sweep", workdir], cwd=ROOT, capture_output=True, text=True)
    assert summary.returncode == 0 and summary.stdout.count("finished") >= 4
    whole = [*command, f"--workdir={tmp_path / 'whole'}", "--index=0"]  # the same run, not interrupted
    subprocess.run(whole, cwd=ROOT, env=one_device(), check=True, stdout=subprocess.DEVNULL)
    assert same(result(first.path), result(tmp_path / "whole" / first.path.name))
    assert_native(first)


@pytest.mark.slow
def test_jobs_import_a_users_own_network_from_the_folder_of_the_command(slurm, tmp_path):
    (tmp_path / "own_network.py").write_text(test_own.SOURCE)
    (tmp_path / "sweep.py").write_text(test_own.SWEEP)
    command = [sys.executable, ROOT / "launch.py", "sweep", "--config=sweep.py", "--workdir=sweep", "--executor=slurm"]
    environment = one_device() | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT)))}
    subprocess.run([*command, "--partition=laptop", "--minutes=30", "--cpus=1"], cwd=tmp_path, env=environment, check=True)
    elements = runs.read_sweep(tmp_path / "sweep")
    wait_until(lambda: all(element.run.status().state == "stopped" for element in elements), 300)
    assert [element.run.status().step for element in elements] == [2, 2]


def test_there_is_no_slurm(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.main([*SWEEP, *SMALL, f"--workdir={tmp_path / 'sweep'}", "--executor=slurm"]) == 2
    assert "finds no Slurm on this machine: there is no sbatch" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_slurm_refuses(slurm, tmp_path):
    command = [sys.executable, "launch.py", *SWEEP, *SMALL, f"--workdir={tmp_path / 'sweep'}", "--executor=slurm"]
    refused = subprocess.run([*command, "--partition=nosuch"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "error: Slurm refuses the jobs: " in refused.stderr and "invalid partition" in refused.stderr
