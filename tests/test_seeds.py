import copy
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from plain56 import machine, runs, training
from plain56.errors import UserError
from plain56.training.loop import load_run
from tests.one_or_many_devices import trained

SEEDS = (2**32 - 2, 2)  # the first one, and how many


def compare(dtype, steps, tolerance):
    first, count = SEEDS
    together = jax.tree.leaves(trained(dtype, steps, first, count))
    for i in range(count):
        alone, compared = jax.tree.leaves(trained(dtype, steps, first + i)), 0
        for one, all_of_them in zip(alone, together, strict=True):
            if one.dtype == dtype and one.ndim:
                compared += one.size
            np.testing.assert_allclose(all_of_them[i], one, rtol=0 if one.ndim else 1e-4, atol=tolerance)
        assert compared > 2 * 75_002  # parameters and momentum


def test_each_of_several_seeds_equals_its_run_alone():
    compare("float32", 1, 1e-5)  # each on one of the two devices of the tests


@pytest.mark.slow
def test_each_of_several_seeds_equals_its_run_alone_the_way_of_gpus(monkeypatch):
    """One network after another, in a loop whose body has several blocks."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(machine, "compiler_options", lambda: None)  # a CPU has no CUDA graphs
    compare("float32", 1, 1e-5)


@pytest.mark.slow
def test_each_of_several_seeds_equals_its_run_alone_after_many_steps():
    with jax.enable_x64(True):
        compare("float64", 20, 1e-9)


@pytest.mark.slow
def test_seeds_share_a_device_or_the_batch_of_each_is_shared_out():
    for devices in ("1", "4"):
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        command = [sys.executable, "-c", "from tests.test_seeds import compare; compare('float32', 1, 1e-5)"]
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parent.parent)


def together(config, seeds=2):
    config = copy.deepcopy(config)
    config.train.seeds = seeds
    return config


def test_a_group_is_a_run_directory_of_run_directories(tmp_path, tiny_config):
    status = training.train(together(tiny_config), tmp_path / "group")
    assert (status.state, status.step) == ("finished", 12)
    alone = copy.deepcopy(tiny_config)
    alone.seed = 1
    training.train(alone, tmp_path / "alone")
    group = runs.Run(tmp_path / "group")
    assert [run.path.name for run in group.members()] == ["seed0", "seed1"]
    assert not group.metrics() and group.checkpoints.is_dir()
    member, solo = runs.Run(tmp_path / "group" / "seed1"), runs.Run(tmp_path / "alone")
    assert member.config() == solo.config()
    assert not (member.path / "checkpoints").exists()
    assert member.status()._replace(seconds=0) == solo.status()._replace(seconds=0)
    keys = [[(record["split"], record["step"]) for record in run.metrics()] for run in (member, solo)]
    assert keys[0] == keys[1]
    for ours, theirs in zip(member.metrics(), solo.metrics(), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
    assert member.metrics("train") != runs.Run(tmp_path / "group" / "seed0").metrics("train")
    state, expected = load_run(member.path).state, load_run(solo.path).state
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.05), state.params, expected.params)
    assert training.evaluate_run(member.path)["loss"] == pytest.approx(member.metrics("test")[-1]["loss"], rel=1e-5)
    with pytest.raises(UserError, match="holds 2 networks; give one of them, such as .*seed0"):
        load_run(group.path)
    with pytest.raises(UserError, match="is one of the networks that .*group trains together"):
        training.train(alone, member.path)


def test_a_group_goes_on_with_the_same_bits(tmp_path, tiny_config):
    training.train(together(tiny_config), tmp_path / "whole")
    half = together(tiny_config)
    half.train.stop_after = 8
    assert training.train(half, tmp_path / "cut").state == "preempted"
    assert training.train(together(tiny_config), tmp_path / "cut").state == "finished"
    for name in ("seed0", "seed1"):
        whole, cut = (load_run(tmp_path / folder / name).state for folder in ("whole", "cut"))
        jax.tree.map(np.testing.assert_array_equal, whole, cut)
        records = [
            [record | {"seconds": 0, "images_per_second": 0} for record in runs.Run(tmp_path / folder / name).metrics()]
            for folder in ("whole", "cut")
        ]
        # A step after which a run ends is also logged.
        assert [record for record in records[1] if record in records[0]] == records[0]


@pytest.mark.slow
def test_a_network_that_diverges_leaves_the_others_alone(tmp_path, tiny_config, monkeypatch):
    from plain56.training import experiment

    original = experiment.create_train_state

    def damaged(model, optimizer, seed, **options):
        state = original(model, optimizer, seed, **options)
        broken = jax.tree.map(lambda leaf: jax.numpy.where(seed == 1, jax.numpy.nan, leaf), state.params)
        return state.replace(params=broken)

    monkeypatch.setattr(experiment, "create_train_state", damaged)
    status = training.train(together(tiny_config, 3), tmp_path / "group")
    assert status.state == "finished"
    states = [run.status() for run in runs.Run(tmp_path / "group").members()]
    assert [state.state for state in states] == ["finished", "diverged", "finished"]
    assert [state.step for state in states] == [12, 0, 12]
    assert "step 0" in states[1].reason
    assert not runs.Run(tmp_path / "group" / "seed1").metrics("test")


def test_more_seeds_than_there_are(tmp_path, tiny_config):
    tiny_config.seed = 2**32 - 1
    with pytest.raises(UserError, match="make 4294967296 the last seed"):
        training.train(together(tiny_config), tmp_path / "group")
    assert not (tmp_path / "group").exists()
