"""The experiments that make the papers' tables: their sweeps are sound, and their numbers those of the runs."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from configs.sweeps import degradation, landmarks, vgg
from experiments import costs, googlenet_table1, gradients_in_training, redraw, resnet_table2, resnet_table6, vgg_table3
from plain56 import cli, runs, sweeps
from plain56.cluster import INTERRUPTED
from plain56.pretrained import evaluate_weights
from tests.devices import one_device
from tests.killed import wait_until

ROOT = Path(__file__).parent.parent
SWEEP = "configs/sweeps/degradation.py"


def result_of(function, flags, capsys):
    assert cli.run(function, flags) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def without_names(drawing):
    """An SVG without the names of its parts, which matplotlib makes of all bits of their places: processors round otherwise."""
    return re.sub(r"\b[a-zA-Z][0-9a-f]{10}\b", "", drawing)


def test_figures_of_the_results_are_those_of_their_tables(tmp_path, capsys):
    shutil.copytree(redraw.RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("*.png", "*.svg", "*.pdf"))
    assert result_of(redraw.redraw, [f"--workdir={tmp_path}"], capsys)["redrawn"]
    for shown in redraw.RESULTS.rglob("*.svg"):
        drawn = tmp_path / "results" / shown.relative_to(redraw.RESULTS)
        assert without_names(drawn.read_text()) == without_names(shown.read_text()), shown
        assert drawn.with_suffix(".png").exists() and shown.with_suffix(".png").exists()


def test_nothing_to_redraw(tmp_path, capsys):
    assert cli.run(redraw.redraw, [f"--workdir={tmp_path}"]) == 2
    assert "has no table of a figure" in capsys.readouterr().err


def test_googlenet_is_near_the_papers_table(capsys):
    lines = result_of(googlenet_table1.compare, [], capsys)["table"]
    assert len(lines) == 12
    for line in lines:
        operations, published = float(line["multiply-adds (M)"]), float(line["paper's operations (M)"])
        # The paper's first convolution costs a third of a full one, and its fifth stage is counted differently.
        tolerance = {"conv1": 84, "inception5a": 3}.get(line["block"], 0.7)
        assert abs(operations - published) <= tolerance, line["block"]
        if line["block"] not in ("conv1", "inception4c", "inception5a"):
            assert float(line["parameters (K)"]) == pytest.approx(float(line["paper's"]), rel=0.02)


@pytest.mark.parametrize("recipe", ["digits", "imagenet"])
def test_vggs_sweep_has_the_rows_of_the_papers_table(recipe):
    elements = {element.name: element.config for element in sweeps.expand(vgg.get_config(recipe), vgg.sweep)}
    assert list(elements) == list(vgg_table3.PAPER)
    assert elements["C-256-512"].model.name == "vgg16_1x1"
    assert elements["C-256-512"].data.augment.enlarge == (256 / 224, 512 / 224)
    assert elements["E-384"].data.augment.enlarge == (384 / 224, 384 / 224)


@pytest.mark.parametrize("recipe", ["digits", "cifar10"])
def test_landmarks_have_their_own_rates(recipe):
    elements = {
        element.config.model.name: element.config for element in sweeps.expand(landmarks.get_config(recipe), landmarks.sweep)
    }
    assert list(elements) == ["vgg16_bn", "googlenet_bn", "resnet20", "resnet56"]
    assert elements["vgg16_bn"].model.form == "small" and elements["resnet56"].model.form is None
    rates = [config.optimizer.learning_rate for config in elements.values()]
    assert rates == ([0.03] * 4 if recipe == "digits" else [0.01, 0.01, 0.1, 0.1])


def test_savings_need_no_sweep(tmp_path, capsys):
    figures = result_of(costs.measure, [f"--workdir={tmp_path}"], capsys)["figures"]
    assert [Path(figure).name for figure in figures] == ["savings.png"]


def test_sweep_in_the_imagenet_form():
    elements = sweeps.expand(degradation.get_config("imagenet"), degradation.sweep)
    assert [element.name for element in elements] == ["plain18-seed0", "resnet18-seed0", "plain34-seed0", "resnet34-seed0"]
    config = degradation.get_config("imagenet")
    config.sweep.depths = (152,)
    deepest = sweeps.expand(config, degradation.sweep)[-1].config
    assert deepest.model.name == "resnet152" and deepest.optimizer.schedule.warmup_steps == 0
    assert set(resnet_table2.PAPER["plain"]) == {18, 34}


def test_short_recipe_of_cifar10():
    elements = sweeps.expand(degradation.get_config("cifar10_short"), degradation.sweep)
    names = [f"{family}{depth}-seed0" for depth in (20, 56, 110, "152_cifar") for family in ("plain", "resnet")]
    assert [element.name for element in elements] == names
    for config in (element.config for element in elements):
        schedule = config.optimizer.schedule
        assert (config.data.name, config.train.steps, config.train.batch_size) == ("cifar10", 3900, 128)
        assert (schedule.name, schedule.warmup_steps, schedule.warmup_learning_rate) == ("cosine", 400, 0.0)
        assert config.train.gradients_every and config.model.widths is None


def made_up_gradients(folder, names, norms=(1.0, 0.5)):
    """A sweep whose runs have only measured gradients, in two steps."""
    overrides = {name: {"model.name": name.split("-")[0], "seed": int(name[-1])} for name in names}
    runs.write_sweep(folder, {name: {"overrides": own, "config": {}} for name, own in overrides.items()})
    for name in names:
        with runs.hold(folder / name) as run, run.open_log(0) as append:
            run.write_config({"seed": int(name[-1])})
            for step in (0, 10):
                found = {"outputs": {f"stage1.{i}": norm for i, norm in enumerate(norms)}, "kernels": {}}
                append({"step": step, "split": "gradients", "seconds": 1.0, **found})
        run.write_status(runs.Status("finished", 10))


def test_gradients_in_training_are_of_the_first_seed_of_each_network(tmp_path, capsys):
    made_up_gradients(tmp_path, ["plain8-seed1", "plain8-seed0", "resnet14-seed1", "vgg11-seed0"], (1e3, None, 0.0))
    assert result_of(gradients_in_training.draw, [f"--workdir={tmp_path}"], capsys)["figure"] == str(tmp_path / "gradients.png")
    rows = runs.read_table(tmp_path, "gradients")
    assert {row["run"] for row in rows} == {"plain8-seed0", "resnet14-seed1"}
    assert [row["norm"] for row in rows[:3]] == ["1000", "", "0"]
    made_up_gradients(tmp_path / "none", ["vgg11-seed0"])
    assert cli.run(gradients_in_training.draw, [f"--workdir={tmp_path / 'none'}"]) == 2
    assert "No run in" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [2000, 64_000])
def test_the_papers_errors_stand_beside_the_papers_recipe(tmp_path, capsys, steps):
    runs.write_sweep(tmp_path, {"resnet56-seed0": {"overrides": {"model.name": "resnet56", "seed": 0}, "config": {}}})
    run = runs.Run(tmp_path / "resnet56-seed0")
    run.write_config({"model": {"name": "resnet56"}, "seed": 0, "train": {"steps": steps}, "data": {"name": "cifar10"}})
    run.write_status(runs.Status("finished", steps))
    record = {"step": steps, "epoch": 1.0, "split": "test", "loss": 0.3, "top1_error": 0.07, "top5_error": 0.0, "seconds": 1.0}
    (run.path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    result_of(resnet_table6.tabulate, [f"--workdir={tmp_path}"], capsys)
    published = steps == 64_000
    assert (tmp_path / "published.csv").exists() == published
    assert ("Open diamonds: the paper's test errors" in (tmp_path / "degradation.svg").read_text()) == published


@pytest.mark.slow
def test_cifar10_degradation_is_ended_and_goes_on(tmp_path):
    """As on a GPU that is lent for some time, with another data set and few steps."""
    flags = [f"--config={SWEEP}", f"--workdir={tmp_path}", "--config.sweep.depths=(8,)"]
    flags += ["--config.train.steps=200", "--config.train.gradients_every=100", "--config.model.widths=(4,4,4)"]
    flags += ["--config.train.checkpoint_every=20"]
    command = [sys.executable, "-m", "experiments.cifar10_degradation", *flags]
    process = subprocess.Popen(command, cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL)
    wait_until(process, (tmp_path / "resnet8-seed0" / "checkpoints" / "40").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == INTERRUPTED
    states = {row["run"]: (row["state"], row["steps"]) for row in runs.read_summary(tmp_path)}
    assert states["plain8-seed0"] == ("finished", 200) and states["resnet8-seed0"][0] == "preempted"
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["plain8-seed0.safetensors"]
    kept = (tmp_path / "weights" / "plain8-seed0.safetensors").read_bytes()
    assert {row["run"] for row in runs.read_table(tmp_path, "gradients")} == {"plain8-seed0", "resnet8-seed0"}
    before = [record for record in runs.Run(tmp_path / "resnet8-seed0").metrics() if record["step"] <= 40]

    assert subprocess.run(command, cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL).returncode == 0
    rows = runs.read_summary(tmp_path)
    assert [(row["run"], row["state"]) for row in rows] == [("plain8-seed0", "finished"), ("resnet8-seed0", "finished")]
    assert runs.Run(tmp_path / "resnet8-seed0").metrics()[: len(before)] == before, "it began anew"
    files = {path.stem: path for path in (tmp_path / "weights").iterdir()}
    assert files.keys() == {"plain8-seed0", "resnet8-seed0"} and files["plain8-seed0"].read_bytes() == kept
    config = degradation.get_config()
    config.model.name, config.model.widths = "resnet8", (4, 4, 4)
    error = evaluate_weights(config, files["resnet8-seed0"])["top1_error"]
    assert error == pytest.approx(rows[1]["test_error"], abs=0.01)
    blocks = {row["block"] for row in runs.read_table(tmp_path, "gradients") if row["run"] == "resnet8-seed0"}
    assert len(blocks) == 4  # the stem and three blocks
    for name in ("curves.csv", "degradation.png"):
        assert (tmp_path / name).exists()


@pytest.mark.slow
def test_tables_from_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    flags = [f"--config={SWEEP}", f"--workdir={tmp_path}", "--config.sweep.depths=(8,)", "--config.sweep.seeds=(0,1)"]
    flags += ["--config.train.steps=10", "--config.optimizer.schedule.warmup_steps=2", "--config.model.widths=(4,4,4)"]
    assert launch.main(["sweep", *flags]) == 0
    capsys.readouterr()
    errors = [100 * row["test_error"] for row in runs.read_summary(tmp_path) if row["residual"]]
    table = result_of(resnet_table6.tabulate, [f"--workdir={tmp_path}"], capsys)["table"]
    assert [(line["network"], line["runs"]) for line in table] == [("plain8", "2"), ("resnet8", "2")]
    assert table[1]["test error"].startswith(f"{sum(errors) / 2:.2f} ± ")
    figures = result_of(costs.measure, [f"--workdir={tmp_path}"], capsys)["figures"]
    assert [Path(figure).name for figure in figures] == ["savings.png", "costs.png"]
    rows = runs.read_table(tmp_path, "costs")
    assert len(rows) == 4 and len({row["multiply_adds"] for row in rows}) == 1
    saved = {row["network"]: row for row in runs.read_table(tmp_path, "savings")}
    assert saved.keys() == {"googlenet", "vgg16"}
