"""What a default run takes from outside: nothing but what requirements.txt pins."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Notes every attempt to reach a host. Other frameworks are there, and note that they have been imported.
PROGRAM = """
import json, sys
seen = []

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        seen.append([event, repr(arguments)])

sys.addaudithook(watch)
import launch
statuses = [launch.main(command) for command in json.loads(sys.argv[1])]
print(json.dumps([statuses, seen]))
"""


@pytest.mark.slow
def test_default_run_reaches_no_host_and_imports_no_other_framework(tmp_path):
    small = ["--config.model.widths=(4,4,8)", "--config.train.stop_after=4", "--config.train.steps_per_call=4"]
    commands = [
        ["train", "--config=configs/digits.py:resnet8", *small, f"--workdir={tmp_path / 'run'}"],
        ["evaluate", f"--workdir={tmp_path / 'run'}"],
        ["export", f"--workdir={tmp_path / 'run'}", f"--weights={tmp_path / 'weights.safetensors'}"],
        [
            "sweep",
            "--config=configs/sweeps/degradation.py",
            *small,
            "--config.sweep.depths=(8,)",
            f"--workdir={tmp_path / 'sweep'}",
        ],
        ["report", f"--workdir={tmp_path / 'sweep'}"],
        ["describe", "resnet20"],
    ]
    frameworks = tmp_path / "frameworks"
    frameworks.mkdir()
    for name in ("tensorflow", "torch", "keras"):
        (frameworks / f"{name}.py").write_text("open(__file__ + '.imported', 'w').close()\nTensor = Module = int\n")
    command = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    environment = os.environ | {"PYTHONPATH": f"{frameworks}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    statuses, seen = json.loads(done.stdout.splitlines()[-1])
    assert statuses == [0] * len(commands), done.stderr
    assert seen == []
    assert not list(frameworks.glob("*.imported"))


def test_every_requirement_is_pinned_with_hashes():
    text = re.sub(r"^#.*\n", "", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = text.splitlines()
    assert len(lines) > 50
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==\S+( ; [^#]+?)?\s+(--hash=sha256:[0-9a-f]{64}\s*)+", line), line[:80]
