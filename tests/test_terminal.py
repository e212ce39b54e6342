"""What the command line prints at a terminal and elsewhere."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def at_a_terminal(*command):
    """The lines that a command prints to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    streams = {"stdout": theirs, "stderr": subprocess.DEVNULL, "env": os.environ | {"COLUMNS": "80", "TERM": "dumb"}}
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, **streams) as process:
        os.close(theirs)
        printed = b""
        while chunk := _read(ours):
            printed += chunk
    os.close(ours)
    assert process.returncode == 0, printed
    return printed.decode().splitlines()


def _read(terminal):
    try:
        return os.read(terminal, 10_000)
    except OSError:  # as Linux says that the other end was closed
        return b""


@pytest.mark.parametrize("command", [("launch.py", "describe", "resnet20"), ("-m", "experiments.googlenet_table1")])
def test_json_is_for_programs(command):
    def last_and_rest(lines):
        return json.loads(lines[-1]), lines[:-1]

    piped = subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True)
    result, tables = last_and_rest(piped.stdout.splitlines())
    assert isinstance(result, dict)
    alone = subprocess.run([sys.executable, *command, "--nojson"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert alone.stdout.splitlines() == tables
    shown = at_a_terminal(*command)
    assert not any(line.startswith("{") for line in shown)
    assert len(shown) == len(tables) and all(len(line) <= 80 for line in shown)
    assert last_and_rest(at_a_terminal(*command, "--json")) == (result, shown)
