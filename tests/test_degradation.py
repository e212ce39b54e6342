"""The degradation figure and the rule of its claim, on made-up runs; and the main job as shipped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.degradation import reproduce
from plain56 import claim, cli, runs, sweeps
from plain56.errors import UserError
from plain56.figures import degradation as figure

ROOT = Path(__file__).parent.parent
FAMILIES = ("plain", "resnet")


def made_up_sweep(folder, errors, data="digits"):
    """Run directories as training leaves them: `{(family, depth): final training errors by seed}`."""
    elements = {
        f"{family}{depth}-seed{seed}": {"overrides": {"model.name": f"{family}{depth}", "seed": seed}, "config": {}}
        for (family, depth), values in errors.items()
        for seed in range(len(values))
    }
    runs.write_sweep(folder, elements)
    for (family, depth), values in errors.items():
        for seed, error in enumerate(values):
            with runs.hold(folder / f"{family}{depth}-seed{seed}") as run, run.open_log(0) as append:
                run.write_config({"seed": seed, "data": {"name": data}})
                for step in (10, 20):
                    for split in ("train", "test"):
                        errors = {"loss": 1.0, "top1_error": error if step == 20 else 0.9}
                        append({"step": step, "split": split, "seconds": 1.0, **errors})
            run.write_status(runs.Status("finished", 20, "", 100, 1.0))
    return sweeps.summarize(folder)


def test_seeds_are_drawn_as_mean_and_range(tmp_path):
    equal = [15 / 449] * 3  # their mean is not quite themselves
    errors = {("plain", 20): [0.1, 0.3], ("plain", 56): [0.6, 0.8], ("resnet", 20): equal, ("resnet", 56): [0.0, 0.1]}
    made_up_sweep(tmp_path, errors)
    networks = [network for network in figure.read(tmp_path) if network.row["model"] == "plain56"]
    steps, curves = figure._curves(networks, "test")
    assert steps == [10, 20]
    assert curves.mean(axis=0).tolist() == pytest.approx([90, 70])
    assert figure.draw(tmp_path) == tmp_path / "degradation.png"
    first = (tmp_path / "degradation.svg").read_bytes()
    figure.draw(tmp_path)
    assert (tmp_path / "degradation.svg").read_bytes() == first, "a second drawing differs"
    # And the same without the run directories.
    figure.write_curves(tmp_path)
    (tmp_path / "kept").mkdir()
    for name in ("summary.csv", "curves.csv"):
        shutil.copy(tmp_path / name, tmp_path / "kept")
    figure.draw(tmp_path / "kept")
    assert (tmp_path / "kept" / "degradation.svg").read_bytes() == first
    assert not list(tmp_path.glob("*.part*"))


def test_unfinished_runs_are_drawn_as_far_as_they_came(tmp_path):
    made_up_sweep(tmp_path, {("plain", 20): [0.1, 0.3], ("resnet", 20): [0.1]})
    run = runs.Run(tmp_path / "plain20-seed1")
    with run.open_log(10):
        pass  # forgets what came after step 10
    run.write_status(runs.Status("diverged", 10))
    sweeps.summarize(tmp_path)
    steps, curves = figure._curves([network for network in figure.read(tmp_path) if network.row["model"] == "plain20"], "train")
    assert steps == [10, 20]
    np.testing.assert_array_equal(curves, [[90, 10], [90, np.nan]])
    assert figure.draw(tmp_path).exists()


def test_nothing_to_draw_yet(tmp_path):
    runs.write_sweep(tmp_path, {"plain20-seed0": {"overrides": {"model.name": "plain20", "seed": 0}, "config": {}}})
    assert sweeps.summarize(tmp_path)[0]["state"] == "queued"
    with pytest.raises(UserError, match="nothing to draw"):
        figure.draw(tmp_path)


def test_a_figure_that_cannot_be_written(tmp_path):
    made_up_sweep(tmp_path, {("plain", 20): [0.1]})
    (tmp_path / "degradation.pdf").mkdir()
    with pytest.raises(UserError, match="degradation.pdf cannot be written: Is a directory"):
        figure.draw(tmp_path)
    assert not list(tmp_path.glob("*part*"))


def test_degradation_figure_shows_no_other_networks(tmp_path):
    runs.write_sweep(tmp_path, {"vgg": {"overrides": {"model.name": "vgg11", "seed": 0}, "config": {}}})
    with runs.hold(tmp_path / "vgg") as run, run.open_log(0) as append:
        append({"step": 1, "split": "train", "loss": 2.0, "top1_error": 0.9, "seconds": 1.0})
    sweeps.summarize(tmp_path)
    with pytest.raises(UserError, match="has vgg11; this figure shows plain and residual networks, and others of known depth"):
        figure.draw(tmp_path)


@pytest.mark.parametrize(
    ("plain", "residual", "held"),
    [
        ([0.01, 0.22], [0.01, 0.03], True),
        ([0.01, 0.20], [0.01, 0.02], False),  # plain rises by 19 points only
        ([0.01, 0.60], [0.01, 0.04], False),  # residual rises by 3 points
        ([0.01, 0.60], [0.05, 0.01], True),
    ],
)
def test_claim_rule(tmp_path, plain, residual, held):
    errors = {("plain", 20): plain[:1], ("plain", 56): plain[1:], ("resnet", 20): residual[:1], ("resnet", 56): residual[1:]}
    result, sentence = claim.judge(made_up_sweep(tmp_path, errors))
    assert result == held
    assert f"{100 * (plain[1] - plain[0]):+.1f} points in plain" in sentence


def test_claim_averages_seeds_and_needs_every_run(tmp_path):
    errors = {("plain", 20): [0.0, 0.2], ("plain", 56): [0.2, 0.6], ("resnet", 20): [0.0], ("resnet", 56): [0.0]}
    rows = made_up_sweep(tmp_path, errors)
    assert "+30.0 points in plain" in claim.judge(rows)[1]
    rows[1]["state"] = "diverged"
    assert claim.judge(rows) == (None, "The claim was not judged: plain20 with seed 1 is diverged.")


def test_claim_is_judged_only_at_its_own_depths(tmp_path):
    errors = {("plain", 20): [0.0], ("plain", 56): [0.3], ("resnet", 20): [0.0], ("resnet", 56): [0.01]}
    others = {("plain", 8): [0.2], ("plain", 110): [0.9], ("resnet", 8): [0.2], ("resnet", 110): [0.9]}
    held, sentence = claim.judge(made_up_sweep(tmp_path / "all", errors | others))
    assert held and "from 20 to 56 layers the training error changed by +30.0 points" in sentence
    del errors["resnet", 20]
    expected = "The claim was not judged: it is about 20 and 56 layers, and the sweep lacks resnet20."
    assert claim.judge(made_up_sweep(tmp_path / "part", errors)) == (None, expected)
    held, sentence = claim.judge(made_up_sweep(tmp_path / "others", others))
    assert held is None and sentence.endswith("lacks plain20, plain56, resnet20, resnet56.")


PLAIN = {20: [0.20], 56: [0.40], 110: [0.88], 152: [0.89]}
RESIDUAL = {20: [0.15, 0.17], 56: [0.17], 110: [0.165], 152: [0.155]}


@pytest.mark.parametrize(
    ("plain", "residual", "held"),
    [
        ({}, {}, True),
        ({152: [0.87]}, {}, False),  # below 110 layers
        ({56: [0.41, 0.39]}, {56: [0.179]}, True),  # above 20 layers by 1.9 points, where two seeds are two apart
        ({}, {56: [0.181]}, False),  # by 2.1
        ({}, {20: [0.15], 56: [0.151], 152: [0.14]}, False),  # one seed of each: no spread
        ({}, {110: [0.155], 152: [0.161]}, False),  # within the spread, but above 20 layers
    ],
)
def test_claim_rule_of_cifar10(tmp_path, plain, residual, held):
    errors = {("plain", depth): seeds for depth, seeds in (PLAIN | plain).items()}
    errors |= {("resnet", depth): seeds for depth, seeds in (RESIDUAL | residual).items()}
    result, sentence = claim.judge(made_up_sweep(tmp_path, errors, "cifar10"))
    assert result == held
    assert "at 20, 56, 110, 152 layers the training error is 20.00, 4" in sentence


def test_claim_about_cifar10_needs_both_families_at_several_depths(tmp_path):
    errors = {("plain", 20): [0.2], ("resnet", 20): [0.1]}
    about = "The claim was not judged: it is about plain and residual networks of several depths, and the sweep "
    assert claim.judge(made_up_sweep(tmp_path / "one", errors, "cifar10")) == (None, f"{about}has fewer than two.")
    errors |= {("plain", 56): [0.3]}
    assert claim.judge(made_up_sweep(tmp_path / "part", errors, "cifar10")) == (None, f"{about}lacks resnet56.")
    assert claim.judge(made_up_sweep(tmp_path / "both", errors | {("resnet", 56): [0.09]}, "cifar10"))[0]


@pytest.mark.parametrize(
    ("depths", "error", "state", "status", "held"),
    [
        ((8, 14), 0.5, "finished", 0, None),
        ((8, 14), 0.5, "stopped", 0, None),
        ((8, 14), 0.5, "diverged", 1, None),
        ((20, 56), 0.5, "stopped", 0, None),
        ((20, 56), 0.8, "finished", 1, False),
        ((20, 56), 0.0, "finished", 0, True),
        ((20, 56, 110), 0.0, "queued", 1, True),  # the state is that of the last run
    ],
)
def test_exit_status_of_the_experiment(tmp_path, monkeypatch, capsys, depths, error, state, status, held):
    errors = {(family, depth): [0.9 if (family, depth) == ("plain", 56) else error] for family in FAMILIES for depth in depths}
    rows = made_up_sweep(tmp_path, errors)
    rows[-1]["state"] = state
    monkeypatch.setattr(cli, "run_sweep", lambda options: rows)
    assert cli.run(reproduce, [f"--workdir={tmp_path}"]) == status
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["held"] is held


@pytest.mark.slow
def test_degradation_on_digits(tmp_path):
    """The main job as shipped, on one more seed: He et al. 2015, Fig. 6."""
    command = [sys.executable, "-m", "experiments.degradation", f"--workdir={tmp_path}", "--config.sweep.seeds=(1,)"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert json.loads(result.stdout.splitlines()[-1])["held"]
    errors = {(row["residual"], row["depth"]): row["train_error"] for row in runs.read_summary(tmp_path)}
    assert errors[False, 56] - errors[False, 20] >= 0.2
    assert errors[True, 56] - errors[True, 20] <= 0.02
