"""Sweeps in one process: their elements and names, and runs that fail, are damaged, or are added."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import launch
from configs.sweeps import degradation as sweep_config
from plain56 import runs, summary, sweeps
from plain56.errors import UserError
from plain56.figures import degradation as figure
from plain56.training.progress import Progress

ROOT = Path(__file__).parent.parent


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
    assert all("sweep" not in element.config and element.config.is_locked for element in elements.values())
    elements["plain56-seed3"].config.train.steps = 1
    assert elements["plain56-seed0"].config.train.steps == config.train.steps > 1


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
    rows = sweeps.run_sweep(elements, tmp_path, lambda now: shares.append(now.share))
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
    written = []
    monkeypatch.setattr(runs, "write_summary", lambda workdir, make_rows: written.append(make_rows()) or written[-1])
    monkeypatch.setattr(sweeps, "train", lambda *arguments: pytest.fail("an ended run is trained"))
    assert [row["state"] for row in sweeps.run_sweep(elements, tmp_path)] == ["finished", "finished"]
    assert len(written) == 1, "the table of ended runs is written again"
    # And another sweep in its place is refused before anything is changed.
    tiny_sweep.optimizer.momentum = 0.5
    with pytest.raises(UserError, match="different run plain8-seed0: optimizer.momentum"):
        sweeps.run_sweep(sweeps.expand(tiny_sweep, sweep_config.sweep), tmp_path)


def test_interrupted_sweep_says_how_far_it_is(tmp_path, tiny_sweep):
    def interrupt(now):
        if "resnet8-seed0" in now.training and now.share > 0.6:
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
        assert [(row["model"], row["seed"], row["state"]) for row in rows] == [("resnet8", 0, "stopped")] * 2
        assert [row["optimizer.learning_rate"] for row in rows] == [0.01, 0.03]
    assert figure.draw(tmp_path).exists()
    # What has no columns, as a table of an earlier version, does not say which is which.
    table = [{key: row[key] for key in row if "." not in key} for row in rows]
    runs.write_summary(tmp_path, lambda: table)
    with pytest.raises(UserError, match="have the same network, seed and overrides"):
        figure.draw(tmp_path)


def test_stopped_runs_are_complete_and_go_on_when_they_may(tmp_path, tiny_sweep, capsys):
    def run(stop_after):
        tiny_sweep.train.stop_after = stop_after
        rows = sweeps.run_sweep(sweeps.expand(tiny_sweep, sweep_config.sweep), tmp_path)
        return [(row["state"], row["steps"]) for row in rows]

    assert run(4) == [("stopped", 4)] * 2 and sweeps.is_complete(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-seed0/*.json*")}
    assert len(written) >= 8
    assert run(4) == [("stopped", 4)] * 2
    assert {path: path.stat().st_mtime_ns for path in written} == written
    # Earlier versions called this state "preempted".
    old = runs.Run(tmp_path / "plain8-seed0")
    old.write_status(old.status()._replace(state="preempted", reason="stopped by train.stop_after = 4"))
    assert sweeps.is_complete(tmp_path)
    assert launch.main(["sweep", f"--workdir={tmp_path}", "--status"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert [(row["state"], row["step"]) for row in shown] == [("preempted", 4), ("stopped", 4)]
    # A stopped run has its errors in tables and figures.
    found = summary.finished_runs(tmp_path)
    assert [row["run"] for _, row in found] == ["resnet8-seed0"] and found[0][1]["test_error"] is not None
    figure.draw(tmp_path)
    assert run(8) == [("stopped", 8)] * 2
    assert run(0) == [("finished", 12)] * 2


def test_damaged_log_of_one_run_does_not_stop_the_others(tmp_path, tiny_sweep):
    tiny_sweep.train.stop_after = 4
    elements = sweeps.expand(tiny_sweep, sweep_config.sweep)
    sweeps.run_sweep(elements, tmp_path)
    (tmp_path / "plain8-seed0" / "metrics.jsonl").write_bytes(b"\0\n")
    (tmp_path / "resnet8-seed0" / "status.json").write_bytes(b"")
    tiny_sweep.train.stop_after = 8
    rows = sweeps.run_sweep(sweeps.expand(tiny_sweep, sweep_config.sweep), tmp_path)
    assert [(row["state"], row["steps"]) for row in rows] == [("damaged", 0), ("stopped", 8)]


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


def test_other_elements_are_added_and_keep_their_numbers(tmp_path, tiny_sweep, capsys):
    def run(depths, **choices):
        tiny_sweep.sweep.depths = depths
        return sweeps.run_sweep(sweeps.expand(tiny_sweep, sweep_config.sweep), tmp_path, **choices)

    tiny_sweep.train.stop_after = 4
    run((8,))
    names = ["plain8-seed0", "resnet8-seed0", "plain14-seed0", "resnet14-seed0"]
    rows = run((14,), index=3)  # counted over all that the directory then has
    assert [row["run"] for row in rows] == names
    assert [row["state"] for row in rows] == ["stopped", "stopped", "queued", "stopped"]
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


def test_progress_of_workers_is_read_from_the_runs(tmp_path, tiny_sweep, stopped_run):
    elements, seen = sweeps.expand(tiny_sweep, sweep_config.sweep), []
    sweeps.write(elements, tmp_path / "sweep")
    trained = tmp_path / "sweep" / "resnet8-seed0"
    with runs.hold(trained) as run:  # as a worker does
        run.write_config(elements[1].config.to_dict())
        run.write_status(runs.Status("running", 8))
        shutil.copy(stopped_run / "metrics.jsonl", trained)
        sweeps.run_workers(elements, tmp_path / "sweep", [sys.executable, "-c", "import time; time.sleep(1)"], 1, seen.append)
    test = runs.read_run(stopped_run).metrics("test")[-1]
    train = runs.read_run(stopped_run).metrics("train")[-1]
    now = seen[0]
    assert (now.ended, now.total, now.share) == (0, 2, pytest.approx(8 / 24))
    assert now.training == {
        "resnet8-seed0": Progress(pytest.approx(8 / 12), 0.0, train["loss"], train["top1_error"], test["top1_error"])
    }


def test_no_more_workers_than_runs(tmp_path, tiny_sweep):
    elements = sweeps.expand(tiny_sweep, sweep_config.sweep)
    with pytest.raises(UserError, match="The workers failed"):
        sweeps.run_workers(elements, tmp_path, [sys.executable, "-c", "raise SystemExit(1)"], 9)
    assert sorted(log.name for log in (tmp_path / "workers").iterdir()) == ["0.log", "1.log"]
