"""What the guide and the notebook do, they do in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.devices import one_device

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A folder with what the commands need, which come first in the PATH there."""
    for name in ("src", "configs", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("results", "__pycache__"))
    shutil.copy(ROOT / "launch.py", tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'src'}{os.pathsep}{tmp_path}")
    return tmp_path


@pytest.mark.slow
def test_every_block_of_the_guide_runs(copied, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", one_device()["XLA_FLAGS"])
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/guide.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    for block in blocks:
        done = subprocess.run(["sh", "-ec", block], cwd=copied, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (copied / "runs/small/report.html").exists()


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says(copied, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # its networks train for longer than they compile
    notebook = nbformat.read(ROOT / "docs/degradation.ipynb", 4)
    NotebookClient(notebook, timeout=900, coalesce_streams=True, resources={"metadata": {"path": str(copied)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "state finished" in text and "\n{" not in text
    errors = {name: float(train) for name, train in re.findall(r"│ ((?:plain|resnet)\d+) +│ +([\d.]+) %", text)}
    assert errors.keys() == {"plain20", "plain56", "resnet20", "resnet56"}
    assert errors["plain56"] > errors["plain20"] + 20 and errors["resnet56"] < errors["resnet20"] + 2
    predicted, true = (re.search(rf"{row} +\[([\d ]+)\]", text)[1].split() for row in ("predicted", "true"))
    assert sum(a == b for a, b in zip(predicted, true, strict=True)) >= 6
