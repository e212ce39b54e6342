"""What `pip install` gives: the command `plain56`, in folders that have nothing of a checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import plain56
from plain56 import runs
from tests.devices import one_device

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
SMALL = ["--config.model.widths=(4,4,4)", "--config.train.steps=10", "--config.optimizer.schedule.warmup_steps=2"]
DEPTHS = "--config.sweep.depths=(8,14)"
OWN_RECIPE = """
from configs import mine
from plain56.configs import digits


def get_config(name="plain8"):
    config = digits.get_config(name)
    config.seed = mine.SEED
    return config
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package that pip builds of a copy of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "configs", "experiments"):
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    build = ["wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*PIP, *build, f"--wheel-dir={folder}", folder / "source"], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def variables(wheel, tmp_path_factory):
    """The variables of a process in an environment that has the package and lies in a folder of another project."""
    folder = tmp_path_factory.mktemp("project")
    git = ["git", "-C", folder, "-c", "user.name=Somebody", "-c", "user.email=somebody@localhost"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=Begin"], check=True)
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()
    # This adds the folder of the dependencies, but not the checkout that a .pth file there may name.
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    inherited = {name: value for name, value in one_device().items() if name != "PYTHONPATH"}
    return inherited | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def run(variables, tmp_path):
    """Runs a command in an empty folder, and returns what it printed."""

    def run(*command, statuses=(0,)):
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode in statuses, done.stdout + done.stderr
        return done.stdout or done.stderr

    return run


def in_checkout(*arguments):
    """What launch.py prints."""
    return subprocess.run([sys.executable, "launch.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def last_line(printed):
    return json.loads(printed.splitlines()[-1])


def test_the_wheel_has_every_file(wheel):
    files = set()
    for folder, folders, names in os.walk(ROOT / "src" / "plain56", followlinks=True):
        folders[:] = [name for name in folders if name not in ("__pycache__", "results")]
        files |= {str((Path(folder) / name).relative_to(ROOT / "src")) for name in names if name != "README.md"}
    assert {
        "plain56/configs/digits.py",
        "plain56/experiments/degradation.py",
        "plain56/ops/convolution.cc",
        "plain56/experiments/benchmarks/peak.cc",
    } < files
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == files


def words(text):
    """The words of a help text, which is wrapped by the length of the command."""
    return text.replace("python launch.py", "plain56").replace("\\\n", " ").split()


def test_it_is_the_program_of_a_checkout(run):
    assert words(run("plain56", "--help")) == words(in_checkout("--help"))
    assert run("plain56", "--version") == in_checkout("--version") == f"plain56 {plain56.__version__}\n"
    code = "import importlib.metadata, plain56; print(plain56.__file__, importlib.metadata.version('plain56'))"
    file, version = run("python", "-c", code).split()
    assert not Path(file).is_relative_to(ROOT) and version == plain56.__version__
    described = in_checkout("describe", "plain20")
    for program in (["plain56"], ["python", "-m", "plain56"]):
        assert run(*program, "describe", "plain20") == described
        assert "There is no mode 'tarin'" in run(*program, "tarin", statuses=(2,))
        assert "configs/sweeps/degradation.py" in run(*program, "train", "--config=configs/nosuch.py", statuses=(2,))


def test_train_evaluate_and_sweep_with_shipped_recipes(run, tmp_path):
    trained = last_line(run("plain56", "train", "--config=configs/digits.py:plain8", *SMALL, "--workdir=run"))
    assert (trained["state"], trained["step"]) == ("finished", 10)
    assert last_line(run("python", "-m", "plain56", "evaluate", "--workdir=run"))["examples"] == 449
    environment = runs.read_run(tmp_path / "run").environment()
    assert environment["packages"]["plain56"] == plain56.__version__
    assert environment["commit"] == ""  # not that of the other project
    if shutil.which("c++"):
        assert environment["convolution"]["convolution"] == "native"
    (tmp_path / "random.py").write_text("raise SystemExit('not the module of this name that a program means')\n")
    sweep = ["--config=configs/sweeps/degradation.py", DEPTHS, *SMALL, "--workdir=runs/sweep", "--workers=2"]
    assert {row["state"] for row in last_line(run("plain56", "sweep", *sweep))["runs"]} == {"finished"}
    assert Path(tmp_path / last_line(run("plain56", "report", "--workdir=runs/sweep"))["report"]).exists()


def test_an_experiment_needs_no_checkout(run, tmp_path):
    result = last_line(run("python", "-m", "plain56.experiments.degradation", DEPTHS, *SMALL))
    assert result["held"] is None and result["claim"].startswith("The claim was not judged: it is about 20 and 56 layers")
    assert (tmp_path / "runs" / "degradation" / "degradation.png").exists()


def test_a_users_own_recipes_come_first(run, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text(OWN_RECIPE)
    (tmp_path / "configs" / "mine.py").write_text("SEED = 7\n")
    for i, program in enumerate((["plain56"], ["python", "-m", "plain56"])):
        run(*program, "train", "--config=configs/digits.py:plain8", *SMALL, f"--workdir={i}")
        assert runs.read_run(tmp_path / str(i)).config()["seed"] == 7
    # The others are there all the same, and take nothing of the user's folder.
    rows = last_line(run("plain56", "sweep", "--config=configs/sweeps/degradation.py", "--dry_run"))["runs"]
    assert [(row["run"], row["seed"]) for row in rows] == [
        ("plain20-seed0", 0),
        ("resnet20-seed0", 0),
        ("plain56-seed0", 0),
        ("resnet56-seed0", 0),
    ]
