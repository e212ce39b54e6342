"""A network of a user's own: one file, which is trained, tested, described, exported and compared like those that ship."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import launch
from configs import cifar10, digits, imagenet
from plain56 import load_pretrained, runs, sweeps, training
from plain56.errors import UserError
from plain56.models import parse_name
from plain56.models.registry import create_model
from plain56.pretrained import save_pretrained
from tests.devices import one_device
from tests.test_parallel import free_port

ROOT = Path(__file__).parent.parent
SOURCE = (ROOT / "tests/fixtures/own_network.py").read_text()
NAME = "own_network:scaled"


@pytest.fixture
def folder(own_folder):
    """The current folder, with the user's file."""
    (own_folder / "own_network.py").write_text(SOURCE)
    return own_folder


def own_config(**options):
    config = digits.get_config(NAME)
    config.train.steps, config.train.batch_size, config.optimizer.schedule.warmup_steps = 8, 32, 2
    config.train.steps_per_call = config.train.log_every = config.train.evaluate_every = config.train.checkpoint_every = 4
    runs.override(config, {f"model.options.{key}": value for key, value in options.items()})
    return config


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_own_network_is_trained_tested_exported_and_read_like_any_other(folder, capsys):
    config = own_config(depth=6)
    config.train.gradients_every = 8
    assert training.train(config, folder / "run").state == "finished"
    run = runs.read_run(folder / "run")
    logged, (gradients,) = run.metrics("test")[-1], run.metrics("gradients")[-1:]
    assert list(gradients["outputs"]) == [f"stage1.{block}" for block in range(4)]
    assert run.environment()["own_sources"].keys() == {NAME}
    assert launch.main(["evaluate", "--workdir=run"]) == 0
    assert last_json(capsys) | {"split": "test"} == {
        key: logged[key] for key in ("loss", "top1_error", "top5_error", "step", "split")
    } | {"examples": 449}
    assert launch.main(["export", "--workdir=run", "--weights=own.safetensors"]) == 0
    module, variables, _ = load_pretrained("own.safetensors", NAME)
    trained = training.load_run("run").state
    assert module.scale == 0.5 and variables["params"]["stage1"]["conv"]["kernel"].shape == (4, 3, 3, 4, 4)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, {"params": trained.params, "batch_stats": trained.batch_stats}))
    flags = [f"--config=configs/digits.py:{NAME}", "--config.model.options.depth=6"]
    Path("configs").symlink_to(Path(digits.__file__).parent)
    assert launch.main(["evaluate", "--weights=own.safetensors", *flags, "--config.train.batch_size=32"]) == 0
    assert last_json(capsys)["loss"] == logged["loss"]
    assert launch.main(["describe", "--image_size=8", *flags, "--config.data.mean=(0.5,)"]) == 0
    assert (
        last_json(capsys)["parameters"]
        == run.status().parameters
        == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    )


def test_a_file_causes_no_import_by_itself(folder, capsys):
    training.train(own_config(), "run")
    launch.main(["export", "--workdir=run", "--weights=own.safetensors"])
    sys.modules.pop("own_network")
    (folder / "own_network.py").write_text("raise SystemExit('it was imported')")
    (folder / "picture.png").write_bytes(b"")
    for read in (
        lambda: load_pretrained("own.safetensors"),
        lambda: load_pretrained("own.safetensors", "resnet20"),
        lambda: training.initial_weights.choose(digits_from("own.safetensors")),
    ):
        with pytest.raises(UserError, match="imported only if you name it: model=own_network:scaled"):
            read()
    assert launch.main(["predict", "--weights=own.safetensors", "picture.png"]) == 2
    assert launch.main(["sweep", "--status", "--workdir=run"]) == 2  # no sweep, and no import either
    assert "own_network" not in sys.modules
    with pytest.raises(UserError, match="it was imported"):
        load_pretrained("own.safetensors", NAME)


def digits_from(weights):
    config = digits.get_config()
    config.transfer.weights = weights
    return config


@pytest.mark.parametrize("name", ["vgg", "resnet", "googlenet"])
def test_name_of_a_shipped_family_means_nothing_in_a_users_file(folder, name):
    (folder / "own_network.py").write_text(SOURCE + f"\n\n{name} = scaled\n")
    config = digits.get_config(f"own_network:{name}")
    config.train.stop_after = 1
    assert training.train(config, "run").step == 1
    save_pretrained("own.safetensors", "run")
    _, variables, _ = load_pretrained("own.safetensors", f"own_network:{name}")
    assert jax.tree.all(jax.tree.map(np.array_equal, variables["params"], training.load_run("run").state.params))
    assert sweeps.run_sweep(sweeps.expand(config, lambda config: [{"seed": 1}]), "sweep")[0]["residual"] is False


@pytest.mark.parametrize("name", ["vgg_mine:net", "googlenet_mine:net", "resnet2000:net"])
def test_recipes_take_a_users_network_for_no_shipped_one(name):
    for recipe in (cifar10, imagenet):
        config, other = recipe.get_config(name), recipe.get_config("any:net")
        other.model.name = name
        assert config == other


def test_own_network_is_fine_tuned(folder):
    training.train(own_config(depth=6), "run")
    config = own_config()
    config.transfer.weights, config.transfer.freeze, config.train.stop_after = "run", ("stem",), 4
    config = training.initial_weights.choose(config, workdir="tuned")
    assert config.model.options.depth == 6
    training.train(config, "tuned")
    before, after = (training.load_run(name).state.params for name in ("run", "tuned"))
    assert np.array_equal(before["stem_conv"]["kernel"], after["stem_conv"]["kernel"])
    assert not np.array_equal(before["stage1"]["conv"]["kernel"], after["stage1"]["conv"]["kernel"])


@pytest.mark.slow
def test_changed_file_is_told_and_the_run_goes_on(folder, caplog):
    config = own_config()
    config.train.stop_after = 4
    training.train(config, "run")
    (folder / "own_network.py").write_text(SOURCE + "# A comment.\n")
    training.load_run("run")  # by the code that this process has imported
    warning = "The file of own_network:scaled has changed since run was trained"
    for arguments, told in (
        (("evaluate",), True),
        (("train", "--config=run/config.json", "--config.train.stop_after=0"), True),
        (("evaluate",), False),
    ):
        process = start(*arguments, "--workdir=run")
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and (warning in errors) == told, errors
    assert warning not in caplog.text and runs.read_run("run").status().state == "finished"


def test_options_make_a_run_another_one(folder):
    training.train(own_config(depth=5), "run")
    for options, now in (({"depth": 6}, 6), ({}, None)):
        with pytest.raises(UserError, match=rf"holds a different run: model.options.depth \(5 there, {now} now\); choose"):
            training.train(own_config(**options), "run")


@pytest.mark.slow
def test_sweep_compares_own_networks_with_others(folder):
    def elements(config):
        for depth in (5, 6):
            yield {"model.name": NAME, "model.options.depth": depth}
        yield {"model.name": "plain8"}
        yield {"model.name": "plain8", "optimizer.name": "adam", "optimizer.options.b2": 0.99}

    config = own_config()
    config.train.stop_after = 4
    rows = sweeps.run_sweep(sweeps.expand(config, elements), "sweep")
    assert [(row["model"], row["depth"]) for row in rows] == [(NAME, 5), (NAME, 6), ("plain8", 8), ("plain8", 8)]
    assert all(row["steps"] == 4 for row in rows) and len({row["train_loss"] for row in rows}) == 4
    assert sweeps.is_complete("sweep")


def test_name_and_depth_are_known_without_an_import():
    assert parse_name("no_such_module.part:network", {"depth": 56}) == ("no_such_module.part:network", 56)
    assert parse_name("no_such_module.part:network") == ("no_such_module.part:network", None)


def test_own_optimizer_is_used(folder):
    config = own_config()
    config.optimizer.name = "own_network:signs"
    runs.override(config, {"optimizer.options.momentum": 0.0})
    config.train.steps, config.train.stop_after, config.optimizer.schedule.warmup_steps = 8, 1, 0
    config.model.name = "plain8"
    training.train(config, "run")
    trained, config = training.load_run("run").state.params, config.copy_and_resolve_references()
    drawn = training.prepare(config).initial[0].params
    steps = jax.tree.map(lambda after, before: np.abs(after - before).max(), trained, drawn)
    np.testing.assert_allclose(jax.tree.leaves(steps), config.optimizer.learning_rate, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_optimizer", "own_network:no_optimizer must return an optax.GradientTransformation, not int"),
        ("searching", "own_network:searching fails with TypeError: .*missing 3 required keyword-only arguments"),
        ("narrow", "own_network:narrow must take 1 positional arguments before its options"),
        ("leaving", "own_network:leaving fails with SystemExit: 3"),
    ],
)
def test_own_optimizer_that_cannot_be_used_costs_a_sentence(folder, name, message):
    config = own_config()
    config.model.name, config.optimizer.name = "plain8", f"own_network:{name}"
    with pytest.raises(UserError, match=message):
        training.train(config, "run")
    assert not Path("run").exists()


def test_run_whose_file_is_gone_costs_a_sentence(folder, capsys):
    config = own_config()
    config.model.name, config.optimizer.name, config.train.stop_after = "plain8", "own_network:signs", 1
    training.train(config, "run")
    sys.modules.pop("own_network")
    (folder / "own_network.py").unlink()
    assert launch.main(["evaluate", "--workdir=run"]) == 2
    assert "the module own_network cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own_network:absent", {}, "model.name is 'own_network:absent', but the module own_network has no function absent"),
        ("absent_network:scaled", {}, "the module absent_network cannot be imported: ModuleNotFoundError"),
        ("own_network", {}, "There is no network 'own_network'"),
        ("own-network:scaled", {}, "model.name must name package.module:function, not 'own-network:scaled'"),
        (NAME, {"dept": 3}, r"own_network:scaled fails with TypeError: .*'dept' \(own_network.py, line \d+\)"),
        ("own_network:picky", {"dept": 3}, "model.options does not fit own_network:picky, which takes depth: .*'dept'"),
        ("own_network:picky", {"depth": 9}, r"fails with ValueError: depth must be 6n \+ 2 \(own_network.py, line"),
        ("own_network:none", {}, "own_network:none must return a Flax module, not NoneType"),
        ("own_network:bare", {}, r"own_network:bare must return plain56.models.Output\(logits\), not"),
        ("own_network:single", {}, "The layer stage1 of own_network:single must hold stacked blocks, or have another name"),
        ("own_network:counting", {}, "must have variables in params and batch_stats, not in memory"),
        (NAME, {"stage": "body"}, r"The layer body of .* must be called one of stage1, .* stacked blocks \(body/conv\)"),
        (NAME, {"logits": "bfloat16"}, "must return logits of shape .* in float32, not .* in bfloat16"),
        (NAME, {"depth": {"a": 1}}, "model.options must be options: names with numbers, texts"),
    ],
)
def test_mistakes_cost_a_sentence_and_leave_nothing(folder, name, options, message):
    config = own_config()
    config.model.name = name
    runs.override(config, {f"model.options.{key}": value for key, value in options.items()})
    with pytest.raises(UserError, match=message):
        training.train(config, "run")
    assert not Path("run").exists()


def test_keys_of_shipped_networks_are_refused(folder):
    config = own_config()
    config.model.shortcut = "B"
    with pytest.raises(UserError, match="model.shortcut is 'B', and own_network:scaled takes only model.options"):
        training.train(config, "run")
    with pytest.raises(UserError, match="model.options is {'depth': 3}, and resnet20 takes only the options"):
        create_model("resnet20", 10, options={"depth": 3})


def test_network_without_a_head_is_trained_and_not_exported(folder, capsys):
    config = own_config()
    config.model.name = "own_network:headless"
    training.train(config, "run")
    assert launch.main(["evaluate", "--workdir=run"]) == 0
    assert launch.main(["export", "--workdir=run", "--weights=own.safetensors"]) == 2
    assert "own_network:headless must call its last layer head" in capsys.readouterr().err


def test_flags_add_literals_to_open_sections(folder):
    from plain56.cli import flags

    (folder / "mine.py").write_text("from configs import digits\nget_config = digits.get_config\n")
    given = {"depth": "6", "scale": "0.25", "name": "text", "shape": "(1, 2)", "on": "True", "off": "None"}
    argv = [f"--config=mine.py:{NAME}", *(f"--config.model.options.{key}={value}" for key, value in given.items())]
    options, _ = flags.parse([*argv, "--config.optimizer.options.b2", "0.5"], "train")
    config = options.config
    assert config.model.options.to_dict() == {"depth": 6, "scale": 0.25, "name": "text", "shape": (1, 2), "on": True, "off": None}
    assert config.optimizer.options.to_dict() == {"b2": 0.5}
    assert {"model.options.depth", "optimizer.options.b2"} <= set(flags.overridden(options))
    with pytest.raises(UserError, match="There is no key 'model.option.depth' in the config"):
        flags.parse(["--config=mine.py", "--config.model.option.depth=6"], "train")


def start(*arguments):
    """Starts a command in the user's folder, as a process of its own with one CPU device."""
    environment = one_device() | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT)))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, ROOT / "launch.py", *arguments], env=environment, text=True, **pipes)


def result_of(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


SWEEP = f"""
from plain56.configs import digits


def get_config():
    config = digits.get_config()
    config.train.stop_after = 2
    return config


def sweep(config):
    for depth in (4, 5):
        yield {{"model.name": {NAME!r}, "model.options.depth": depth}}
"""


@pytest.mark.slow
def test_workers_import_the_file(folder):
    (folder / "sweep.py").write_text(SWEEP)
    rows = result_of(start("sweep", "--config=sweep.py", "--workdir=sweep", "--workers=2"))["runs"]
    assert [(row["depth"], row["steps"], row["state"]) for row in rows] == [(4, 2, "stopped"), (5, 2, "stopped")]


@pytest.mark.slow
def test_several_processes_import_the_file(folder):
    several = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    flags = [f"--config=configs/digits.py:{NAME}", "--config.train.stop_after=2", "--workdir=run"]
    first, second = (start("train", *several, f"--process_id={process}", *flags) for process in range(2))
    assert result_of(first)["step"] == 2
    second.communicate(timeout=60)
    assert second.returncode == 0
    assert runs.read_run("run").environment()["own_sources"].keys() == {NAME}
