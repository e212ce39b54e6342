"""Sweeps and their figure, by real tiny runs."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

import launch
from configs.sweeps import degradation as sweep_config
from experiments.degradation import check_claim
from plain56 import runs, sweeps
from plain56.errors import UserError
from plain56.figures import degradation as figure
from tests.killed import assert_native, has_saved, one_device, result, same, wait_until

ROOT = Path(__file__).parent.parent
ERRORS = "train_error,train_clean_error,validation_error,test_error"
COLUMNS = f"run,model,depth,residual,seed,steps,state,{ERRORS},train_loss,parameters,seconds"


# A sweep over rates, the first run of which is long, and one of which diverges.
RATES = """
from configs import digits

def get_config():
    config = digits.get_config("resnet8")
    config.model.widths = (16, 16, 16)
    config.train.batch_size, config.train.evaluate_every = 32, 100
    config.optimizer.schedule.warmup_steps = 2
    return config

def sweep(config):
    for rate, steps in ((0.03, 1000), (0.02, 20), (1e30, 20)):
        yield {"optimizer.learning_rate": rate, "train.steps": steps}
"""


@pytest.fixture
def tiny_sweep(tiny_config):
    config = sweep_config.get_config()
    config.update_from_flattened_dict(runs.flatten(tiny_config.to_dict()))
    config.sweep.depths = (8,)
    return config


def test_elements_and_their_names():
    config = sweep_config.get_config("cifar10")
    config.sweep.depths = (56, 110, 152)
    config.sweep.seeds = (0, 3)
    elements = {element.name: element for element in sweeps.expand(config, sweep_config.sweep)}
    assert len(elements) == 12
    assert elements["plain56-seed3"].config.seed == 3
    assert elements["plain56-seed3"].config.optimizer.schedule.warmup_steps == 0
    # The deep ones warm up, and an ImageNet network is never meant.
    deep = elements["resnet152_cifar-seed0-warmup_steps400-warmup_learning_rate0.01"]
    assert deep.config.optimizer.schedule.warmup_steps == 400
    assert all("sweep" not in element.config for element in elements.values())


def test_killed_sweep_goes_on_and_draws_its_figure(tmp_path):
    flags = {
        "sweep.depths": "(8,)",
        "model.widths": "(16,16,16)",
        "train.batch_size": 32,
        "train.steps": 3000,
        "train.checkpoint_every": 20,
        "optimizer.schedule.warmup_steps": 2,
    }
    command = [sys.executable, "launch.py", "sweep", "--config=configs/sweeps/degradation.py", f"--workdir={tmp_path}"]
    process = subprocess.Popen(
        [*command, *(f"--config.{key}={value}" for key, value in flags.items())], cwd=ROOT, env=one_device()
    )
    first, second = (runs.Run(tmp_path / name) for name in ("plain8-seed0", "resnet8-seed0"))
    # The first run is cut as soon as it has saved something: it is far from its end.
    wait_until(process, lambda: has_saved(first))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (first.status().state, second.status().state) == ("preempted", "queued")
    before = first.metrics("train")
    saved = max(int(folder.name) for folder in first.checkpoints.glob("*") if folder.name.isdigit())

    flags = {**flags, "train.stop_after": saved + 20}
    result = subprocess.run(
        [*command, *(f"--config.{key}={value}" for key, value in flags.items())], cwd=ROOT, env=one_device(), check=True
    )
    assert result.returncode == 0
    with (tmp_path / "summary.csv").open() as file:
        assert file.readline() == COLUMNS + "\n"
        rows = list(csv.DictReader(file, COLUMNS.split(",")))
    assert [(row["model"], row["residual"]) for row in rows] == [("plain8", "False"), ("resnet8", "True")]
    after = first.metrics("train")
    assert [record["step"] for record in after] == list(range(20, saved + 21, 20))
    assert before[0] == after[0], "the run began anew"
    drawn = subprocess.run(
        [sys.executable, "launch.py", "report", f"--workdir={tmp_path}"],
        cwd=ROOT,
        env=one_device(),
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(drawn.stdout.splitlines()[-1])["figure"] == str(tmp_path / "degradation.png")
    assert (tmp_path / "degradation.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "degradation.svg").read_text()
    for text in ("plain networks", "residual networks", "8 layers", "training error", "test error", "final error"):
        assert f">{text}<" in svg


def test_workers_share_a_sweep_of_which_one_run_is_killed_and_one_diverges(tmp_path):
    (tmp_path / "rates.py").write_text(RATES)
    workdir = tmp_path / "sweep"
    command = [sys.executable, "launch.py", "sweep", f"--workdir={workdir}"]
    first = [*command, f"--config={tmp_path / 'rates.py'}", "--workers=2"]
    listed = subprocess.run([*first, "--dry_run"], cwd=ROOT, env=one_device(), check=True, capture_output=True, text=True)
    assert [row["run"] for row in json.loads(listed.stdout.splitlines()[-1])["runs"]] == [
        f"resnet8-learning_rate{rate}-steps{steps}" for rate, steps in ((0.03, 1000), (0.02, 20), (1e30, 20))
    ]
    assert not workdir.exists()

    long_run = runs.Run(workdir / "resnet8-learning_rate0.03-steps1000")
    with subprocess.Popen(first, cwd=ROOT, env=one_device(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweep:
        wait_until(sweep, lambda: has_saved(long_run))
        assert long_run.status().state == "running"
        os.kill(int(long_run.holder().split()[1]), signal.SIGKILL)
        output, errors = sweep.communicate(timeout=120)
    assert sweep.returncode == 1, errors
    assert "A worker was killed by SIGKILL" in errors
    rows = json.loads(output.splitlines()[-1])["runs"]
    assert [row["state"] for row in rows] == ["preempted", "finished", "diverged"]
    assert rows == runs.read_summary(workdir)
    status = subprocess.run([*command, "--status"], cwd=ROOT, env=one_device(), check=True, capture_output=True, text=True)
    shown = json.loads(status.stdout.splitlines()[-1])["runs"]
    assert [(row["state"], row["step"]) for row in shown] == [(row["state"], row["steps"]) for row in rows]

    # Launched again, from the directory alone: the killed one goes on from its checkpoint, and nothing else is trained.
    logged = long_run.metrics("train")[0]
    finished = (workdir / "resnet8-learning_rate0.02-steps20" / "metrics.jsonl").stat().st_mtime_ns
    assert subprocess.run([*command, "--index=0"], cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL).returncode == 0
    # One has diverged for good.
    assert subprocess.run(command, cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL).returncode == 1
    assert [row["state"] for row in runs.read_summary(workdir)] == ["finished", "finished", "diverged"]
    assert_native(long_run)
    assert long_run.metrics("train")[0] == logged
    assert (workdir / "resnet8-learning_rate0.02-steps20" / "metrics.jsonl").stat().st_mtime_ns == finished


@pytest.mark.slow
def test_workers_give_the_same_bits_as_one_process(tmp_path):
    (tmp_path / "rates.py").write_text(RATES)
    flags = [f"--config={tmp_path / 'rates.py'}", "--config.train.stop_after=8"]
    for name, extra in (("alone", []), ("shared", ["--workers=2"])):
        command = [sys.executable, "launch.py", "sweep", *flags, f"--workdir={tmp_path / name}", *extra]
        assert subprocess.run(command, cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL).returncode == 1
    for name in ("resnet8-learning_rate0.03-steps1000", "resnet8-learning_rate0.02-steps20"):
        assert same(result(tmp_path / "alone" / name), result(tmp_path / "shared" / name))


@pytest.mark.slow
def test_a_sweep_whose_processes_are_all_killed_ends_with_the_same_bits(tmp_path):
    (tmp_path / "rates.py").write_text(RATES)
    command = [sys.executable, "launch.py", "sweep", f"--config={tmp_path / 'rates.py'}", "--workers=2"]
    assert (
        subprocess.run(
            [*command, f"--workdir={tmp_path / 'whole'}"], cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL
        ).returncode
        == 1
    )
    command += [f"--workdir={tmp_path / 'cut'}"]
    long_run = runs.Run(tmp_path / "cut" / "resnet8-learning_rate0.03-steps1000")
    with subprocess.Popen(command, cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL) as sweep:
        wait_until(sweep, lambda: has_saved(long_run))
        tree = [psutil.Process(sweep.pid), *psutil.Process(sweep.pid).children(recursive=True)]
        for process in tree:
            process.kill()
    psutil.wait_procs(tree)
    assert long_run.status().state == "preempted"
    # As the one rate that diverges has it.
    assert subprocess.run(command, cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL).returncode == 1
    assert [row["state"] for row in runs.read_summary(tmp_path / "cut")] == ["finished", "finished", "diverged"]
    for name in (row["run"] for row in runs.read_summary(tmp_path / "cut")):
        assert same(result(tmp_path / "cut" / name), result(tmp_path / "whole" / name))
        assert_native(runs.Run(tmp_path / "cut" / name))


def test_interrupted_workers_save_and_say_so(tmp_path):
    (tmp_path / "rates.py").write_text(RATES)
    workdir = tmp_path / "sweep"
    command = [sys.executable, "launch.py", "sweep", f"--config={tmp_path / 'rates.py'}", f"--workdir={workdir}", "--workers=2"]
    long_run = runs.Run(workdir / "resnet8-learning_rate0.03-steps1000")
    with subprocess.Popen(command, cwd=ROOT, env=one_device(), stderr=subprocess.PIPE, text=True) as sweep:
        wait_until(sweep, long_run.metrics)
        sweep.send_signal(signal.SIGTERM)
        _, errors = sweep.communicate(timeout=120)
    assert sweep.returncode == 75
    assert "Interrupted; the same command goes on from there." in errors
    status = long_run.status()
    assert (status.state, status.reason) == ("preempted", f"stopped by SIGTERM, after saving at step {status.step}")
    assert runs.read_summary(workdir)[0]["state"] == "preempted"


def test_failed_run_does_not_stop_the_others(tmp_path, tiny_sweep, monkeypatch):
    elements = sweeps.expand(tiny_sweep, sweep_config.sweep)
    real = sweeps.train
    trained = []

    def train(config, workdir, *others):
        trained.append(config.model.name)
        if config.model.name == "plain8":
            raise OSError("disk")
        return real(config, workdir, *others)

    monkeypatch.setattr(sweeps, "train", train)
    shares = []
    rows = sweeps.run_sweep(elements, tmp_path, lambda name, share, rate: shares.append(share))
    assert [row["state"] for row in rows] == ["failed", "finished"]
    assert runs.Run(tmp_path / "plain8-seed0").status().reason == "OSError: disk"
    assert rows[0]["test_error"] is None
    assert rows[1]["parameters"] > 0
    assert rows == runs.read_summary(tmp_path)
    assert shares == sorted(shares)
    assert shares[-1] == 1

    # Launched again, the failed one is tried again and the finished one is not trained again.
    monkeypatch.setattr(sweeps, "train", real)
    finished = (tmp_path / "resnet8-seed0" / "metrics.jsonl").stat().st_mtime_ns
    assert [row["state"] for row in sweeps.run_sweep(elements, tmp_path)] == ["finished", "finished"]
    assert (tmp_path / "resnet8-seed0" / "metrics.jsonl").stat().st_mtime_ns == finished
    # And another sweep in its place is refused before anything is changed.
    tiny_sweep.optimizer.momentum = 0.5
    with pytest.raises(UserError, match="different run plain8-seed0: optimizer.momentum"):
        sweeps.run_sweep(sweeps.expand(tiny_sweep, sweep_config.sweep), tmp_path)


def test_interrupted_sweep_says_how_far_it_is(tmp_path, tiny_sweep):
    def interrupt(name, share, rate):
        if name == "resnet8-seed0" and share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweeps.run_sweep(sweeps.expand(tiny_sweep, sweep_config.sweep), tmp_path, interrupt)
    assert [row["state"] for row in runs.read_summary(tmp_path)] == ["finished", "preempted"]


def test_sweep_over_any_key(tmp_path, tiny_config):
    def sweep(config):
        for rate in (0.01, 0.03):
            yield {"optimizer.learning_rate": rate}

    tiny_config.train.stop_after = 4
    elements = sweeps.expand(tiny_config, sweep)
    assert [element.name for element in elements] == ["resnet8-learning_rate0.01", "resnet8-learning_rate0.03"]
    for _ in range(2):  # launched again, nothing is left to do
        rows = sweeps.run_sweep(elements, tmp_path)
        assert [(row["model"], row["seed"], row["state"]) for row in rows] == [("resnet8", 0, "preempted")] * 2
    with pytest.raises(UserError, match="differ in more than depth"):
        figure.draw(tmp_path)


def test_damaged_log_of_one_run_does_not_stop_the_others(tmp_path, tiny_sweep):
    tiny_sweep.train.stop_after = 4
    elements = sweeps.expand(tiny_sweep, sweep_config.sweep)
    sweeps.run_sweep(elements, tmp_path)
    (tmp_path / "plain8-seed0" / "metrics.jsonl").write_bytes(b"\0\n")
    (tmp_path / "resnet8-seed0" / "status.json").write_bytes(b"")
    tiny_sweep.train.stop_after = 8
    rows = sweeps.run_sweep(sweeps.expand(tiny_sweep, sweep_config.sweep), tmp_path)
    assert [(row["state"], row["steps"]) for row in rows] == [("damaged", 0), ("preempted", 8)]


def test_workers_that_fail_say_where(tmp_path, tiny_sweep):
    elements = sweeps.expand(tiny_sweep, sweep_config.sweep)
    with pytest.raises(UserError, match=r"The workers failed; see .*0\.log"):
        sweeps.run_workers(elements, tmp_path, [sys.executable, "-c", "import nothing_of_that_name"], 2)
    assert "nothing_of_that_name" in (tmp_path / "workers" / "1.log").read_text()


def test_names_are_those_of_folders(tiny_config):
    names = [f"folder:/pictures/{name}" for name in ("cats", "d" * 300)]
    elements = sweeps.expand(tiny_config, lambda config: [{"data.name": name} for name in names])
    assert elements[0].name == "resnet8-namefolder__pictures_cats"
    assert len(elements[1].name) == 200


def test_overrides_that_do_not_fit(tiny_config):
    with pytest.raises(UserError, match="do not fit the config"):
        sweeps.expand(tiny_config, lambda config: [{"seed": "first"}])
    with pytest.raises(UserError, match="do not fit the config"):
        sweeps.expand(tiny_config, lambda config: [{"sed": 1}])


def made_up_sweep(folder, errors):
    """Run directories as training leaves them: `{(family, depth): final training errors by seed}`."""
    elements = {
        f"{family}{depth}-seed{seed}": {"overrides": {"model.name": f"{family}{depth}", "seed": seed}, "config": {}}
        for (family, depth), values in errors.items()
        for seed in range(len(values))
    }
    runs.write_sweep(folder, elements)
    for (family, depth), values in errors.items():
        for seed, error in enumerate(values):
            with runs.hold(folder / f"{family}{depth}-seed{seed}") as run, run.open_log(0, start=0.0) as append:
                run.write_config({"seed": seed})
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
    with run.open_log(10, start=0.0):
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
    result, sentence = check_claim(made_up_sweep(tmp_path, errors))
    assert result == held
    assert f"{100 * (plain[1] - plain[0]):+.1f} points in plain" in sentence


def test_claim_averages_seeds_and_needs_every_run(tmp_path):
    errors = {("plain", 20): [0.0, 0.2], ("plain", 56): [0.2, 0.6], ("resnet", 20): [0.0], ("resnet", 56): [0.0]}
    rows = made_up_sweep(tmp_path, errors)
    assert "+30.0 points in plain" in check_claim(rows)[1]
    rows[1]["state"] = "diverged"
    assert check_claim(rows) == (False, "The claim cannot be judged: plain20 with seed 1 is diverged.")


@pytest.mark.slow
def test_degradation_on_digits(tmp_path):
    """The main job as shipped, on one more seed: He et al. 2015, Fig. 6."""
    command = [sys.executable, "-m", "experiments.degradation", f"--workdir={tmp_path}", "--config.sweep.seeds=(1,)"]
    result = subprocess.run(command, cwd=ROOT, env=one_device(), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert json.loads(result.stdout.splitlines()[-1])["held"]
    errors = {(row["residual"], row["depth"]): row["train_error"] for row in runs.read_summary(tmp_path)}
    assert errors[False, 56] - errors[False, 20] >= 0.2
    assert errors[True, 56] - errors[True, 20] <= 0.02


@pytest.mark.slow
def test_1202_layers_train(tmp_path, tiny_config):
    tiny_config.model.name = "resnet1202"
    tiny_config.train.steps = 4
    tiny_config.optimizer.schedule.warmup_steps = 1
    status = sweeps.train(tiny_config, tmp_path / "run")
    assert (status.state, status.step) == ("finished", 4)


@pytest.mark.parametrize("name", [3, "a/b", "../x", "workers", ".hidden"])
def test_names_of_runs_are_names_of_folders(tiny_sweep, name):
    with pytest.raises(UserError, match="The sweep names a run "):
        sweeps.expand(tiny_sweep, lambda config: [{"name": name, "model.name": "resnet8"}])


def test_degradation_figure_shows_no_other_networks(tmp_path):
    runs.write_sweep(tmp_path, {"vgg": {"overrides": {"model.name": "vgg11", "seed": 0}, "config": {}}})
    with runs.hold(tmp_path / "vgg") as run, run.open_log(0, start=0.0) as append:
        append({"step": 1, "split": "train", "loss": 2.0, "top1_error": 0.9, "seconds": 1.0})
    sweeps.summarize(tmp_path)
    with pytest.raises(UserError, match="has vgg11; this figure shows only plain and residual networks"):
        figure.draw(tmp_path)


def test_other_elements_are_added_and_keep_their_numbers(tmp_path, tiny_sweep, capsys):
    def run(depths, **choices):
        tiny_sweep.sweep.depths = depths
        return sweeps.run_sweep(sweeps.expand(tiny_sweep, sweep_config.sweep), tmp_path, **choices)

    tiny_sweep.train.stop_after = 4
    run((8,))
    names = ["plain8-seed0", "resnet8-seed0", "plain14-seed0", "resnet14-seed0"]
    rows = run((14,), index=3)  # counted over all that the directory then has
    assert [row["run"] for row in rows] == names
    assert [row["state"] for row in rows] == ["preempted", "preempted", "queued", "preempted"]
    with pytest.raises(UserError, match=r"--index is 6; it must be from 0 to 5"):
        run((20,), index=6)
    assert [element.name for element in sweeps.read(tmp_path)] == names
    assert [(tmp_path / name / "metrics.jsonl").exists() for name in names] == [True, True, False, True]


def foreign_config(sweep, run):
    (run / "config.json").write_text('{"train": "data/train.csv"}')


def other_seed(sweep, run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"seed": 7}))


def file_for_run(sweep, run):
    shutil.rmtree(run)
    run.touch()


def edited_sweep(sweep, run):
    elements = json.loads((sweep / "sweep.json").read_text())
    elements[run.name]["config"]["train"] = "x"
    (sweep / "sweep.json").write_text(json.dumps(elements))


def foreign_element(sweep, run):
    elements = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps({run.name: 5} | {k: v for k, v in elements.items() if k != run.name}))


def list_for_split(sweep, run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "split": ["train"], "seconds": 1.0}\n')


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    from configs import digits

    folder = tmp_path_factory.mktemp("two") / "sweep"
    config = digits.get_config("resnet8")
    config.model.widths, config.train.batch_size, config.train.steps, config.train.steps_per_call = (4, 4, 8), 32, 4, 4
    config.optimizer.schedule.warmup_steps = 1
    sweeps.run_sweep([sweeps.Element(f"seed{seed}", {"seed": seed}, with_seed(config, seed)) for seed in (0, 1)], folder)
    figure.draw(folder)
    return folder


def with_seed(config, seed):
    changed = config.copy_and_resolve_references()
    changed.seed = seed
    return changed.lock()


@pytest.mark.parametrize(
    "damage", [foreign_config, other_seed, file_for_run, edited_sweep, foreign_element, list_for_split], ids=lambda f: f.__name__
)
def test_a_damaged_run_is_named_and_the_others_go_on(two_runs, tmp_path, capsys, monkeypatch, damage):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "sweep"
    shutil.copytree(two_runs, folder)
    for name in ("link.png", "folder.png"):
        (folder / name).mkdir() if name == "folder.png" else (folder / name).symlink_to("nowhere")
    (tmp_path / "config.json").write_text('{"train": "data/train.csv"}')  # nobody's business
    damage(folder, folder / "seed0")
    for mode, status in ((["sweep", "--status"], 0), (["report"], 0), (["sweep"], 1)):
        assert launch.main([*mode, f"--workdir={folder}"]) == status, mode
        captured = capsys.readouterr()
        shown = {row["run"]: row["state"] for row in json.loads(captured.out.splitlines()[-1])["runs"]}
        unnoticed = damage is list_for_split and "--status" in mode  # a log is not read to tell how a run stands
        assert shown == {"seed0": "finished" if unnoticed else "damaged", "seed1": "finished"}
        assert "Traceback" not in captured.err
    assert "seed0" in captured.err


def test_long_names_are_cut_and_stay_apart(tiny_config):
    def sweep(config):
        for name in ("a", "b"):
            yield {"data.dir": "/" + "ü" * 300 + name, "data.name": "folder:x"}

    names = [element.name for element in sweeps.expand(tiny_config, sweep)]
    assert len(set(names)) == 2 and all(len(name.encode()) <= 200 for name in names)


def test_no_more_workers_than_runs(tmp_path, tiny_sweep):
    elements = sweeps.expand(tiny_sweep, sweep_config.sweep)
    with pytest.raises(UserError, match="The workers failed"):
        sweeps.run_workers(elements, tmp_path, [sys.executable, "-c", "raise SystemExit(1)"], 9)
    assert sorted(log.name for log in (tmp_path / "workers").iterdir()) == ["0.log", "1.log"]
