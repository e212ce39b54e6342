"""`MODE --help` and `describe --list` say what the flags, config keys, recipes, networks and experiments are, in 80 columns."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from configs import base
from plain56.cli import MODES, manual
from plain56.models import list_models, parse_name
from plain56.runs import flatten

ROOT = Path(__file__).parent.parent
SOURCE = (ROOT / "configs/base.py").read_text()


def help_of(capsys, *arguments):
    assert launch.main([*arguments, "--help"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    return printed


@pytest.mark.parametrize("mode", ["train", "sweep", "finetune", "evaluate", "describe"])
def test_every_key_is_shown_with_its_default(capsys, mode):
    shown = help_of(capsys, mode)
    for key, default in flatten(base.get_config().to_dict()).items():
        assert re.search(rf"^  {re.escape(f'{key}={default}')}( |$)", shown, re.MULTILINE), key
    # Sections are in the order of the source, each in one piece.
    keys = re.findall(r"^  ([\w.]+)=", shown, re.MULTILINE)
    sections = [key.rpartition(".")[0] for key in keys if "." in key]
    assert sections == sorted(sections, key=sections.index) and sections[0] == "model" and keys[0] == "seed"


def test_every_comment_on_a_key_is_shown(capsys):
    def plain(text):
        return "".join(re.sub(r"^ *#|\s", "", text, flags=re.MULTILINE))

    shown = plain(help_of(capsys, "train"))
    comments = re.findall(r"^    (?:config\.\S+ = .*?  )?# (.*)$", SOURCE, re.MULTILINE)
    assert len(comments) > 50
    for comment in comments:
        assert plain(comment) in shown, comment


def test_comments_of_any_statement():
    source = """
def get_config():
    # of nothing

    # above,
    # on two lines
    config.a.b = (  # first
        1,
    )  # last
    config.c = config.d.e = 1
    other.f = 2  # not a key
    config.g = ConfigDict()  # a section
"""
    above, beside = manual.key_comments(source)
    assert above == {"a.b": "above, on two lines", "c": "", "d.e": "", "g": ""}
    assert beside == {"a.b": "first last", "c": "", "d.e": "", "g": "a section"}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_shows_its_flags_and_no_others(capsys, mode):
    shown = help_of(capsys, mode)
    flags = set(re.findall(r"^  --(\w+)", shown, re.MULTILINE))
    assert {"workdir", "json"} <= flags
    for flag, owners in {
        "workers": {"sweep"},
        "protocol": {"evaluate"},
        "list": {"describe"},
        "num_processes": {"train", "finetune"},
        "model": {"finetune", "predict"},
        "config": {"train", "evaluate", "sweep", "describe", "finetune"},
    }.items():
        assert (flag in flags) == (mode in owners), flag
    assert f"launch.py {mode} " in " ".join(shown.split())
    assert ("optimizer.momentum=0.9" in shown) == ("config" in flags)


def test_recipes_and_networks_are_named(capsys):
    train, sweep = help_of(capsys, "train"), help_of(capsys, "sweep")
    assert "configs/imagenet.py " in train and "configs/sweeps/vgg.py " in sweep and "configs/base.py " not in train
    for name in list_models():
        assert re.search(rf"\b{name}\b", train), name


def test_the_overview_names_every_mode(capsys):
    overview = help_of(capsys)
    assert all(re.search(rf"launch.py {mode} ", overview) for mode in MODES) and "MODE --help" in overview


def test_an_experiment_has_a_help():
    command = [sys.executable, "-m", "experiments.degradation", "--help"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "The rule, on final training errors" in shown and "--workers=N" in shown and "--index" not in shown


def test_list_names_all_there_is_without_loading_more_than_the_networks():
    code = "import launch, sys; launch.main(['describe', '--list']); sys.exit('plain56.training' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    *lines, last = result.stdout.splitlines()
    found = json.loads(last)
    assert {row["network"]: row["layers"] for row in found["networks"]} == {name: parse_name(name)[1] for name in list_models()}
    names = {row["name"] for kind in ("recipes", "sweeps", "experiments") for row in found[kind]}
    files = {str(path.relative_to(ROOT)) for folder in ("configs", "configs/sweeps") for path in (ROOT / folder).glob("*.py")}
    files = {file for file in files if not file.endswith(("__init__.py", "base.py"))}
    runnable = {path.stem for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text()}
    assert names == files | {f"python -m plain56.experiments.{name}" for name in runnable}
    assert all(row["about"] for kind in ("recipes", "sweeps", "experiments") for row in found[kind])
    assert max(map(len, lines)) <= 80 and all(any(name in line for line in lines) for name in names)
