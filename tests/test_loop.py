"""Whole runs of the shipped digits recipe, shrunk to seconds, on two simulated devices."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest

import launch
from configs import digits
from plain56 import runs
from plain56.errors import UserError
from plain56.training import evaluate_run, prepare, program, step, train
from plain56.training import loop as training_loop
from tests.killed import assert_native, last_line


def final_parameters(config, workdir):
    manager = training_loop.checkpoints.open_checkpoints(workdir / "checkpoints")
    state, _ = training_loop.checkpoints.restore(manager, prepare(config).initial)
    return state


def without_times(records):
    return [{key: value for key, value in record.items() if key not in ("seconds", "images_per_second")} for record in records]


def test_shipped_recipe_learns(tmp_path):
    flags = ("--config.train.steps=60", "--config.optimizer.schedule.warmup_steps=6")
    workdir = f"--workdir={tmp_path / 'run'}"
    trained = last_line("train", "--config=configs/digits.py:resnet8", *flags, workdir)
    run = runs.read_run(tmp_path / "run")
    status = run.status()
    assert (trained["state"], trained["step"]) == ("finished", 60)
    assert (status.state, status.step, status.parameters) == ("finished", 60, 75_002)
    assert_native(run)
    logged, tested = run.metrics("train"), run.metrics("test")
    assert [record["step"] for record in logged] == [record["step"] for record in tested] == [20, 40, 60]
    assert logged[0]["loss"] > 1.5
    assert logged[-1]["loss"] < 1.0
    assert tested[-1]["top1_error"] < 0.3
    assert logged[-1]["epoch"] == pytest.approx(60 * 128 / 1348, abs=1e-4)
    assert last_line("evaluate", workdir) == {
        "step": 60,
        "split": "test",
        "examples": 449,
        **{key: tested[-1][key] for key in ("loss", "top1_error", "top5_error")},
    }


def test_continued_run_equals_an_uninterrupted_one(tmp_path, tiny_config, finished_run):
    tiny_config.train.stop_after = 5
    status = train(tiny_config, tmp_path / "parts")
    assert (status.state, status.step) == ("stopped", 5)
    # As if it had been killed after logging more than it had saved.
    run = runs.read_run(tmp_path / "parts")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "split": "train", "loss": 0.0, "seconds": 1.0}\n{"step": 7, "spl')
    tiny_config.train.stop_after = 0
    tiny_config.train.steps_per_call = 3  # the size of a call is no part of the result
    assert train(tiny_config, tmp_path / "parts").state == "finished"
    jax.tree.map(
        np.testing.assert_array_equal,
        final_parameters(tiny_config, tmp_path / "parts"),
        final_parameters(tiny_config, finished_run),
    )
    whole, parts = (runs.read_run(path).metrics() for path in (finished_run, tmp_path / "parts"))
    # Stopping early logs one partial interval and one test; all else comes once, and is the same.
    assert [(r["step"], r["split"]) for r in parts if r["step"] != 5] == [(r["step"], r["split"]) for r in whole]
    assert without_times(parts)[-2:] == without_times(whole)[-2:]


@pytest.mark.slow
def test_calls_and_intervals_change_no_bit(tmp_path, tiny_config):
    states, last = [], []
    for i, (per_call, log, evaluate, checkpoint) in enumerate(((4, 4, 12, 4), (1, 1, 12, 12), (5, 3, 7, 2), (1000, 12, 5, 12))):
        options = tiny_config.train
        options.steps_per_call, options.log_every, options.evaluate_every, options.checkpoint_every = (
            per_call,
            log,
            evaluate,
            checkpoint,
        )
        train(tiny_config, tmp_path / str(i))
        states.append(final_parameters(tiny_config, tmp_path / str(i)))
        last.append(without_times(runs.read_run(tmp_path / str(i)).metrics("test"))[-1])
    for state, record in zip(states[1:], last[1:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, state, states[0])
        assert record == last[0]


def test_step_is_traced_once(tmp_path, tiny_config, monkeypatch):
    traces = []

    def traced(*arguments, train_step=step.train_step):
        traces.append(arguments)
        return train_step(*arguments)

    monkeypatch.setattr(step, "train_step", traced)
    tiny_config.train.steps_per_call = 3  # so that calls have different lengths
    assert train(tiny_config, tmp_path / "run").state == "finished"
    assert len(traces) == 1


def test_finished_run_is_not_run_again(tiny_config, finished_run):
    run = runs.read_run(finished_run)
    status, records = run.status(), run.metrics()
    assert train(tiny_config, finished_run, lambda progress: pytest.fail("it trained again")) == status
    assert run.metrics() == records


def test_a_stopped_run_is_left_alone_until_it_may_go_on(tiny_config, stopped_run):
    run = runs.read_run(stopped_run)
    status, before = run.status(), {path: path.stat().st_mtime_ns for path in stopped_run.glob("*.json*")}
    assert (status.state, status.step, status.reason) == ("stopped", 8, "by train.stop_after = 8, of 12 steps")
    for stop_after in (8, 5):
        tiny_config.train.stop_after = stop_after
        assert train(tiny_config, stopped_run, lambda progress: pytest.fail("it trained again")) == status
    assert {path: path.stat().st_mtime_ns for path in stopped_run.glob("*.json*")} == before
    tiny_config.train.stop_after = 10
    assert train(tiny_config, stopped_run)[:2] == ("stopped", 10)
    # As earlier versions called it.
    run.write_status(run.status()._replace(state="preempted", reason="stopped by train.stop_after = 10"))
    assert train(tiny_config, stopped_run)[:2] == ("stopped", 10)
    tiny_config.train.stop_after = 0
    assert train(tiny_config, stopped_run)[:2] == ("finished", 12)


def test_progress_has_the_newest_numbers(tmp_path, tiny_config):
    tiny_config.train.evaluate_every, tiny_config.train.stop_after = 8, 8
    seen = []
    train(tiny_config, tmp_path / "run", seen.append)
    tiny_config.train.stop_after = 0
    train(tiny_config, tmp_path / "run", seen.append)
    run = runs.read_run(tmp_path / "run")
    records = {(record["step"], record["split"]): record for record in run.metrics()}
    second_begins = next(i for i, now in enumerate(seen) if i and now.share == 0)
    first, second = seen[:second_begins], seen[second_begins:]  # which begins with what the first launch knew
    for launched, stop in ((first, 8), (second, 12)):
        assert launched[0].share == 0 and launched[-1].share == 1
        assert [now.share for now in launched] == sorted(now.share for now in launched)
        logged, tested = records[stop, "train"], records[stop, "test"]
        assert launched[-1][2:5] == (logged["loss"], logged["top1_error"], tested["top1_error"])
    assert first[0][1:] == (0.0, None, None, None, "running")
    assert second[0][1:] == (0.0, *first[-1][2:5], "running")
    assert [first[-1].state, second[-1].state] == ["stopped", "finished"]
    assert first[-1].images_per_second > 0


def test_diverged_run_keeps_its_history(tmp_path, tiny_config):
    tiny_config.optimizer.learning_rate = 1e30
    tiny_config.optimizer.schedule.warmup_learning_rate = 1e-3
    seen = []
    status = train(tiny_config, tmp_path / "run", seen.append)
    assert status.state == seen[-1].state == "diverged"
    assert f"step {status.step}" in status.reason
    run = runs.read_run(tmp_path / "run")
    assert run.status() == status
    assert run.metrics("train")[-1]["step"] == status.step
    assert np.isfinite(run.metrics("train")[-1]["loss"])
    state = final_parameters(tiny_config, tmp_path / "run")
    assert int(state.step) == status.step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    # Launched again, it does not run again.
    assert train(tiny_config, tmp_path / "run") == status


def test_another_run_in_the_directory_is_refused(tiny_config, stopped_run):
    tiny_config.optimizer.momentum = 0.5
    with pytest.raises(UserError, match=r"different run: optimizer.momentum \(0.9 there, 0.5 now\)"):
        train(tiny_config, stopped_run)


def damage(checkpoint, how):
    """Damages what tensorstore wrote of a checkpoint's arrays: the largest file, as a broken disk or a cut copy would."""
    file = max((f for f in checkpoint.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 16
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_damaged_checkpoint_falls_back_to_the_one_before(tiny_config, finished_run, stopped_run, caplog, how):
    newest = stopped_run / "checkpoints" / "8"
    if how == "gone":
        shutil.rmtree(newest / "arrays")
    else:
        damage(newest, how)
    assert train(tiny_config, stopped_run).step == 12
    assert "The checkpoint of step 8 is damaged (" in caplog.text
    assert "going on from step 4" in caplog.text
    assert (stopped_run / "checkpoints" / "damaged-8-1").is_dir()
    parameters = [final_parameters(tiny_config, path) for path in (finished_run, stopped_run)]
    jax.tree.map(np.testing.assert_array_equal, *parameters)
    steps = [record["step"] for record in runs.read_run(stopped_run).metrics("train")]
    assert steps == [4, 8, 12]


def test_nothing_goes_on_where_every_checkpoint_is_damaged(tiny_config, finished_run):
    for checkpoint in ("8", "12"):
        damage(finished_run / "checkpoints" / checkpoint, "cut")
    before = runs.read_run(finished_run).metrics()
    with pytest.raises(UserError, match=r"No checkpoint in .* can be read \(step 12: .*; step 8: .*\); remove that folder"):
        evaluate_run(finished_run)
    (finished_run / "status.json").unlink()
    with pytest.raises(UserError, match="No checkpoint"):
        train(tiny_config, finished_run)
    assert runs.read_run(finished_run).metrics() == before


def test_data_that_changed_is_refused(tiny_config, stopped_run, monkeypatch):
    real = program.load_dataset
    monkeypatch.setattr(
        program, "load_dataset", lambda data: real(data)._replace(test=jax.tree.map(lambda a: a[1:], real(data).test))
    )
    with pytest.raises(UserError, match=r"The data set has changed since .* began: test \(449 then, 448 now\), crc32"):
        train(tiny_config, stopped_run)


def test_train_and_validation_error_without_augmentation(tmp_path, tiny_config):
    tiny_config.data.validation_examples = 100
    tiny_config.train.evaluate_train_every = 5
    train(tiny_config, tmp_path / "run")
    run = runs.read_run(tmp_path / "run")
    assert [record["step"] for record in run.metrics("train_clean")] == [5, 10, 12]
    assert [record["step"] for record in run.metrics("validation")] == [record["step"] for record in run.metrics("test")] == [12]
    prepared, state = prepare(tiny_config), final_parameters(tiny_config, tmp_path / "run")
    for split, examples in (("train", prepared.dataset.train), ("validation", prepared.dataset.validation)):
        totals = prepared.evaluate(state.params, state.batch_stats, examples)
        assert int(totals.examples) == {"train": 1248, "validation": 100}[split]
        record = run.metrics("train_clean" if split == "train" else split)[-1]
        assert {key: record[key] for key in totals.means()} == totals.means()


@pytest.mark.slow
def test_run_is_repeated_from_its_config_json(tmp_path, tiny_config):
    tiny_config.train.stop_after = 4
    train(tiny_config, tmp_path / "run")
    again = ["train", f"--config={tmp_path / 'run' / 'config.json'}", f"--workdir={tmp_path / 'again'}"]
    assert launch.main(again) == 0
    assert runs.read_run(tmp_path / "again").config() == runs.read_run(tmp_path / "run").config()
    parameters = [final_parameters(tiny_config, tmp_path / name) for name in ("run", "again")]
    jax.tree.map(np.testing.assert_array_equal, *parameters)
    assert launch.main([*again[:2], "--config.seed=1", f"--workdir={tmp_path / 'other'}"]) == 0
    assert runs.read_run(tmp_path / "other").config()["seed"] == 1


@pytest.mark.parametrize(("stop_after", "state"), [(0, "finished"), (4, "stopped")])
def test_signal_in_the_last_call_is_not_lost(tmp_path, tiny_config, stop_after, state):
    tiny_config.train.stop_after = stop_after

    def interrupt(progress):
        if progress.share == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        train(tiny_config, tmp_path / "run", interrupt)
    assert runs.read_run(tmp_path / "run").status().state == state


def test_failed_run_says_why(tmp_path, tiny_config, monkeypatch):
    def broken(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(training_loop.checkpoints, "save", broken)
    with pytest.raises(OSError, match="No space"):
        train(tiny_config, tmp_path / "run")
    status = runs.read_run(tmp_path / "run").status()
    assert (status.state, status.reason) == ("failed", "OSError: No space left on device")
    assert "in broken\n" in (tmp_path / "run" / "error.txt").read_text()
    monkeypatch.undo()
    assert train(tiny_config, tmp_path / "run").state == "finished"
    assert not (tmp_path / "run" / "error.txt").exists()


@pytest.mark.slow
def test_a_network_without_batch_norm_begins_with_a_shallower_ones_layers(tmp_path, tiny_config, caplog):
    config = digits.get_config("vgg11")
    config.train.batch_size, config.train.steps, config.optimizer.schedule.warmup_steps = 8, 3, 0
    config.optimizer.learning_rate = 0.01
    assert train(config, tmp_path / "vgg11").state == "finished"
    before = final_parameters(config, tmp_path / "vgg11")
    config.model.name = "vgg13"
    config.train.warm_start = str(tmp_path / "vgg11")
    config.optimizer.learning_rate = 1e-30  # nothing moves
    config.optimizer.weight_decay = 0.0
    with caplog.at_level("INFO", "plain56"):
        assert train(config, tmp_path / "vgg13").state == "finished"
    assert "From step 3 of" in caplog.text and "block3_conv2" in caplog.text and "block1_conv2" not in caplog.text
    after = final_parameters(config, tmp_path / "vgg13")
    shared = before.params.keys()
    for name in shared:  # a bias of zero moves by 1e-36
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-30), before.params[name], after.params[name])
    assert after.params.keys() - shared == {"block1_conv2", "block2_conv2"}
    assert after.batch_stats == {}

    tiny_config.train.warm_start = str(tmp_path / "vgg11")
    tiny_config.train.batch_size = 8
    tiny_config.data.examples_per_class = 1
    with pytest.raises(UserError, match="has no layer of the name and shape of one in resnet8"):
        train(tiny_config, tmp_path / "resnet8")


@pytest.mark.slow
def test_warns_when_the_loss_stays_at_that_of_guessing(tmp_path, tiny_config, monkeypatch, caplog):
    monkeypatch.setattr(training_loop, "STUCK_STEPS", 4)
    config = digits.get_config("vgg11")
    config.train.update(tiny_config.train)
    config.train.batch_size = 8
    config.data.examples_per_class = 3
    config.optimizer.schedule.warmup_steps = 2
    config.data.std = (1e5,)  # nothing of the images reaches the last layer
    train(config, tmp_path / "stuck")
    assert caplog.text.count("After 8 steps the training loss is still 2.30") == 1
    caplog.clear()
    tiny_config.data.examples_per_class = 20
    train(tiny_config, tmp_path / "learns")
    assert "training loss" not in caplog.text


def test_a_run_that_goes_on_with_another_convolution_says_so(tiny_config, stopped_run, caplog):
    run = runs.read_run(stopped_run)
    began = run.environment()
    assert began["convolution"] == {"convolution": "portable", "lanes": 0}  # there are two devices here
    run.write_environment(began | {"convolution": {"convolution": "native", "lanes": 16}})
    train(tiny_config, stopped_run)
    assert "goes on with {'convolution': 'portable', 'lanes': 0}" in caplog.text
