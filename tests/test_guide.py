"""The guide's commands do what it says, in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_block_of_the_guide_runs(tmp_path):
    for name in ("src", "configs", "experiments", "launch.py"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("results", "__pycache__"))
        else:
            shutil.copy(source, tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/guide.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path / 'src'}{os.pathsep}{tmp_path}",
    }
    for block in blocks:
        done = subprocess.run(["sh", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (tmp_path / "runs/small/report.html").exists()
