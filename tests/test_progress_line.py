"""What people watch: one line, redrawn in a terminal of 80 columns, and printed from time to time elsewhere."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plain56.cli import progress_line as shown
from plain56.training.progress import Progress

ROOT = Path(__file__).parent.parent
HALF = Progress(0.5, 16599.4, 0.0069, 0.761, 0.7617)


def test_a_line_has_all_numbers_and_fits_a_terminal_in_the_main_job():
    line = shown.line_of("4/4", 0.879, 41.9, {"resnet56-seed0": HALF}, width=80)
    assert line == "4/4 87% 0:41 left resnet56-seed0 loss 0.007 error 76.1% test 76.2% 16,599 img/s"


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (Progress(0.0), "0% plain8 starting"),
        (HALF._replace(test_error=None, images_per_second=0.0), "0% plain8 loss 0.007 error 76.1%"),
        (HALF._replace(loss=float("nan"), train_error=None, images_per_second=0.0), "0% plain8 loss nan test 76.2%"),
        (HALF._replace(state="diverged"), "0% plain8 diverged"),
    ],
)
def test_only_what_is_known_is_shown(run, line):
    assert shown.line_of("", 0.0, None, {"plain8": run}) == line


def test_names_give_way_to_numbers():
    run = {"resnet20-learning_rate0.03-seed0": HALF}
    whole = shown.line_of("2/24", 0.5, 4321, run)
    assert whole.startswith("2/24 50% 1:12:01 left resnet20-learning_rate0.03-seed0 loss")
    cut = shown.line_of("2/24", 0.5, 4321, run, width=78)
    assert len(cut) == 78
    assert re.search(r" left re\S*…\S*d0 loss 0.007 error 76.1% test 76.2% 16,599 img/s$", cut)
    assert "resn…ed0 loss" in shown.line_of("2/24", 0.5, 4321, run, width=10), "too little is left of the name"


def test_several_runs_are_told_apart():
    runs = {"plain56-seed0": HALF._replace(images_per_second=0.0), "resnet20-seed0": Progress(0.0)}
    line = shown.line_of("1/4 ended", 0.25, None, runs)
    assert line == "1/4 ended 25% plain56-seed0 loss 0.007 error 76.1% test 76.2%; resnet20-seed0 starting"


def test_elsewhere_a_line_is_printed_from_time_to_time_and_when_a_run_ends(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(shown.time, "monotonic", lambda: now)
    with shown.progress() as show:
        for step in range(200):  # compiling takes a hundred seconds, and each of 99 steps one
            now = 100.0 + step if step else 0.0
            show("1/2", step / 200, {"first": HALF._replace(state="running" if step < 199 else "finished")})
        show("2/2", 0.995, {"second": Progress(0.0)})
    lines = capsys.readouterr().err.splitlines()
    assert 20 <= len(lines) <= 26, "at least every ten seconds, and not much more often"
    seconds = [int(m[1]) * 60 + int(m[2]) for line in lines[1:] if (m := re.search(r" (\d+):(\d\d) left first ", line))]
    assert len(seconds) == len(lines) - 1
    assert seconds[0] == pytest.approx(190, abs=2), "compiling counts as work"
    assert seconds == sorted(seconds, reverse=True) and seconds[-1] <= 1
    assert lines[-1].startswith("1/2 99% ") and "first" in lines[-1]


TERMINAL = """
import time
from plain56.cli import progress
from plain56.training.progress import Progress
runs = {name: Progress(0.5, 16599.4, 0.0069, 0.761, 0.7617) for name in ("a-run-of-many-words-0", "b-run-of-many-words-1")}
with progress() as show:
    for i in range(12):
        show("1/4 ended", i / 12, runs)
        time.sleep(0.25)
"""


def test_a_terminal_redraws_one_line_that_fits_and_shows_the_runs_in_turn():
    code = f"import plain56.cli.progress_line as p; p.TURN = 0.5\n{TERMINAL}"
    wide = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    master, slave = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=wide, stderr=slave) as process:
        os.close(slave)
        read = b""
        try:
            while part := os.read(master, 4096):
                read += part
        except OSError:  # the other end is closed
            pass
    os.close(master)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read.decode())
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    assert all(len(line) <= 80 for line in lines)
    assert set(re.findall(r"(\d) loss 0.007 error 76.1% test 76.2% 16,599 img/s$", "\n".join(lines), re.MULTILINE)) == {"0", "1"}
    assert text.count("\n") <= 2, "it is not one line"
