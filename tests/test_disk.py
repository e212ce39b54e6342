"""A disk that is full, read-only or broken: the run stops with a sentence, and goes on once there is space."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plain56 import runs
from plain56.errors import UserError
from plain56.training import train
from tests.devices import one_device
from tests.killed import FLAGS, assert_native, launched, result, same

ROOT = Path(__file__).parent.parent
# In a namespace where any user may mount: a launch until the disk is full, and the same one with more space.
SCRIPT = """
mount -t tmpfs -o size={size} none {disk} || exit 77
{train}
echo status $? >&2
cp -r {disk}/run {folder}/cut
mount -o remount,size=50m none {disk}
{train} 2>/dev/null || exit 1
cp -r {disk}/run {folder}/run
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "flags", "message"),
    [
        # Space for a checkpoint or two, of 330 kB and a margin of 1 MB; and too little for the records of 120 steps.
        ("1600k", ["--config.train.checkpoint_every=12"], r"error: The checkpoint of step \d+ cannot .* MB are free\."),
        ("60k", ["--config.train.checkpoint_every=120", "--config.train.log_every=1"], r"error: .*: No space left on device\."),
    ],
)
def test_full_disk_stops_a_run_that_then_goes_on_with_the_same_bits(tmp_path, size, flags, message):
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    (tmp_path / "disk").mkdir()
    command = [sys.executable, "launch.py", "train", *FLAGS, *flags]
    train = " ".join(f"'{argument}'" for argument in [*command, f"--workdir={tmp_path / 'disk' / 'run'}"])
    script = SCRIPT.format(size=size, disk=tmp_path / "disk", folder=tmp_path, train=train)
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script], cwd=ROOT, env=one_device(), capture_output=True, text=True
    )
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip(f"needs the right to mount a disk: {done.stderr}")
    assert done.returncode == 0, done.stderr
    told = re.compile(r"(network|data|training|devices) |  |\d+% ")  # at the beginning, and while it trains
    *errors, status = [line for line in done.stderr.splitlines() if not told.match(line)]
    assert status == "status 2"
    assert len(errors) == 1 and re.fullmatch(message, errors[0]), errors
    assert runs.read_run(tmp_path / "cut").status().state in ("failed", "preempted")
    assert not list((tmp_path / "cut").rglob("*.part"))
    whole = [*command, f"--workdir={tmp_path / 'whole'}"]
    subprocess.run(whole, cwd=ROOT, env=one_device(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert same(result(tmp_path / "run"), result(tmp_path / "whole"))
    assert_native(runs.read_run(tmp_path / "run"))


@pytest.mark.slow
def test_failed_save_fails_the_run_and_costs_nothing(tmp_path):
    """Files may not be larger than 50 kB, which one of a checkpoint's is."""
    command = [sys.executable, "launch.py", "train", *FLAGS, f"--workdir={tmp_path / 'run'}"]
    first = [*command, "--config.train.stop_after=12"]
    subprocess.run(first, cwd=ROOT, env=one_device(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limits = f"ulimit -f 100; exec {' '.join(map(repr, command))}"  # blocks of 512 bytes
    cut = subprocess.run(["sh", "-c", limits], cwd=ROOT, env=one_device(), capture_output=True, text=True)
    assert cut.returncode == 2
    assert cut.stderr.splitlines()[-1].startswith("error: The checkpoint of step 24 cannot be saved in"), cut.stderr
    run = runs.read_run(tmp_path / "run")
    assert run.status().state == "failed"
    assert [path.name for path in run.checkpoints.glob("*") if path.name.isdigit()] == ["12"]
    assert launched(tmp_path / "run") == launched(tmp_path / "whole") == 0
    parameters, records = result(tmp_path / "run")
    whole, all_records = result(tmp_path / "whole")
    # Stopping at step 12 logs a test there.
    assert [r for r in records if (r["step"], r["split"]) not in ((12, "test"), (12, "train_clean"))] == all_records
    assert all(a.tobytes() == b.tobytes() for a, b in zip(parameters, whole, strict=True))


def test_what_is_foreign_in_the_checkpoint_folder_is_left_alone(tiny_config, stopped_run):
    checkpoints = stopped_run / "checkpoints"
    (checkpoints / "notes.txt").write_text("mine")
    (checkpoints / "backup").mkdir()
    (checkpoints / "99").mkdir()  # looks like one, and is empty
    assert train(tiny_config, stopped_run).state == "finished"
    assert (checkpoints / "notes.txt").read_text() == "mine"
    assert (checkpoints / "backup").exists()
    assert [record["step"] for record in runs.read_run(stopped_run).metrics("train")] == [4, 8, 12]


def test_file_by_the_name_of_a_checkpoint(tmp_path, tiny_config, stopped_run):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="not a run directory"):
        train(tiny_config, tmp_path / "run")
    (stopped_run / "checkpoints" / "12").write_text("no folder")
    assert train(tiny_config, stopped_run).state == "finished"


@pytest.mark.parametrize("content", ["", '{"state": 3, "more": 1}'])
def test_damaged_status_costs_nothing(tiny_config, stopped_run, content):
    (stopped_run / "status.json").write_text(content)
    assert train(tiny_config, stopped_run).step == 12
    assert [record["step"] for record in runs.read_run(stopped_run).metrics("train")] == [4, 8, 12]
