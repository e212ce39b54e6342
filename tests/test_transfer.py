"""What is frozen stays, and has neither gradient nor optimizer state; what is not learns at its stage's rate."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression

import launch
from configs import base, finetune
from plain56 import pretrained, runs, training
from plain56.config import from_json
from plain56.data import Batch, load_dataset, normalize
from plain56.errors import UserError
from plain56.models import create_model, list_models
from plain56.training import initial_weights, load_run, probe, transfer
from plain56.training.optimizer import make_optimizer
from plain56.training.state import create_train_state
from plain56.training.step import Update, train_step
from tests.fixtures.sets import write_folder
from tests.killed import last_line

ROOT = Path(__file__).parent.parent


def options(**changes):
    return ConfigDict(base.get_config().transfer.to_dict() | changes)


def described(name, chosen, side=224):
    """The stages of a network, and the shapes of its parameters."""
    model = create_model(name, 10)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]
    return transfer.describe(params, chosen, model, (side, side, 3)), params


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["stem", "stage1", "stage2", "stage3", "stage4", "head"]),
        ("plain20", ["stem", "stage1", "stage2", "stage3", "head"]),
        ("vgg16_bn", ["block1", "block2", "block3", "block4", "block5", "fc6", "fc7", "head"]),
        ("googlenet", ["stem", "inception3", "inception4", "inception5", "head"]),
    ],
)
def test_stages_hold_every_parameter_once(name, expected):
    rows, params = described(name, options(rate_factor=0.5))
    assert [row.name for row in rows] == expected
    assert sum(row.parameters for row in rows) == sum(row.trained for row in rows) == sum(x.size for x in jax.tree.leaves(params))
    assert [row.rate for row in rows] == [0.5**i for i in reversed(range(len(rows)))]


@pytest.mark.slow
def test_every_network_has_stages():
    for name in list_models("*"):
        assert described(name, options())[0][-1].name == "head"


def step_with(chosen, momentum=0.9, **choices):
    """State before and after one step of a small network, whose statistics and gradients matter."""
    model = create_model("resnet8", 10, widths=(4, 4, 8), **choices)
    model = model.clone(numerics=model.numerics._replace(fixed_statistics=chosen.freeze_statistics))
    settings = base.get_config().optimizer
    settings.update(momentum=momentum, weight_decay=0.01, decay_all=True)
    decide, multiples = transfer.plan(chosen, model, (8, 8, 1))
    optimizer = make_optimizer(settings, lambda step: 0.1, multiples)
    state = jax.jit(lambda: create_train_state(model, optimizer, 0, (8, 8, 1), decide))()
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 1)) * 2 + 1
    batch = Batch(images, jnp.arange(8, dtype=jnp.int32), jnp.ones(8, bool))
    step = jax.jit(functools.partial(train_step, update=Update(model, optimizer, seed=0, is_trained=decide)))
    return state, step(state, batch)[0], step.lower(state, batch).cost_analysis()["flops"]


def changed(before, after):
    """The paths of the parameters that are not the same."""
    before, after = (traverse_util.flatten_dict(state.params) for state in (before, after))
    return {path for path in before if not np.array_equal(before[path], after[path])}


def test_what_is_frozen_stays():
    before, after, flops = step_with(options(freeze=("stem", "stage[12]*")))
    assert {path[0] for path in changed(before, after)} == {"stage3_first", "head"}
    traced = [leaf.size for leaf in jax.tree.leaves(after.optimizer_state) if leaf.ndim]
    trained = [leaf.size for layer in ("stage3_first", "head") for leaf in jax.tree.leaves(before.params[layer])]
    assert sum(traced) == sum(trained)
    everything = step_with(options())
    assert {path[0] for path in changed(*everything[:2])} == set(before.params)
    # Decay acts on nothing that is frozen, and no gradient of it is computed.
    assert flops < 0.7 * everything[2]
    assert {path[0] for path in changed(*step_with(options(freeze=("*",)))[:2])} == {"head"}
    assert {path[0] for path in changed(*step_with(options(freeze=("head",)))[:2])} == set(before.params)  # always trained


@pytest.mark.slow
def test_scales_and_statistics_are_frozen_apart():
    before, after, _ = step_with(options(freeze_scales=True))
    assert not any("norm" in path[-2] for path in changed(before, after))
    assert {path[-1] for path in changed(before, after)} == {"kernel", "bias"}  # the last layer's bias
    assert not jax.tree.all(jax.tree.map(np.array_equal, before.batch_stats, after.batch_stats))
    before, after, _ = step_with(options(freeze_statistics=True))
    assert jax.tree.all(jax.tree.map(np.array_equal, before.batch_stats, after.batch_stats))
    assert any("norm" in path[-2] for path in changed(before, after))


def test_stages_learn_at_their_rates():
    (start, one, _), (_, other, _) = step_with(options()), step_with(options(rate_factor=0.5))
    multiples = {"stem": 1 / 16, "stage1": 1 / 8, "stage2": 1 / 4, "stage3": 1 / 2, "head": 1}
    start, one, other = (traverse_util.flatten_dict(state.params) for state in (start, one, other))
    for path in start:
        expected = (one[path] - start[path]) * multiples[path[0].partition("_")[0]]
        np.testing.assert_allclose(other[path] - start[path], expected, rtol=1e-3, atol=1e-6)
    # Where one in the middle is frozen, the others keep theirs.
    _, frozen, _ = step_with(options(rate_factor=0.5, freeze=("stage2*",)))
    for path, leaf in traverse_util.flatten_dict(frozen.params).items():
        expected = start[path] if path[0].startswith("stage2") else other[path]
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-6)


def test_patterns_have_to_fit():
    with pytest.raises(UserError, match="transfer.freeze has 'stage9', which fits no stage or layer .* its stages are stem, "):
        described("resnet18", options(freeze=("stem", "stage9")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that knows the digits, as weights."""
    folder = tmp_path_factory.mktemp("pretrained")
    steps = (f"--config.{key}=120" for key in ("train.steps", "train.evaluate_every", "train.checkpoint_every"))
    flags = ("--config=configs/digits.py:resnet8", "--config.optimizer.schedule.warmup_steps=12", *steps)
    last_line("train", *flags, f"--workdir={folder / 'run'}")
    pretrained.save_pretrained(folder / "digits.safetensors", folder / "run")
    return folder


def finetuned(folder, workdir, capsys, *flags):
    arguments = [
        "--config=configs/digits.py",
        "--config.train.steps=30",
        "--config.train.evaluate_every=30",
        "--config.train.checkpoint_every=15",
        "--config.optimizer.schedule.warmup_steps=3",
        "--config.data.examples_per_class=10",
        "--config.train.batch_size=50",
        *flags,
        f"--workdir={workdir}",
    ]
    status = launch.main(["finetune", *arguments, f"--weights={folder / 'digits.safetensors'}"])
    return status, capsys.readouterr()


def test_a_new_last_layer_learns_on_a_trained_network(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    flags = ["--config.transfer.freeze=('*',)", "--config.transfer.freeze_statistics=True"]
    status, captured = finetuned(trained, tmp_path / "run", capsys, *flags)
    assert status == 0 and json.loads(captured.out.splitlines()[-1])["state"] == "finished"
    assert "Statistics of batch norm are frozen" in captured.err
    assert "stage3" in captured.err and "parameters, frozen" in captured.err and "650 trained at 0.03" in captured.err
    before, after = load_run(trained / "run").state, load_run(tmp_path / "run").state
    assert {path[0] for path in changed(before, after)} == {"head"}
    assert jax.tree.all(jax.tree.map(np.array_equal, before.batch_stats, after.batch_stats))
    assert runs.Run(tmp_path / "run").metrics("test")[-1]["top1_error"] < 0.2
    config = runs.Run(tmp_path / "run").config()
    assert config["model"]["name"] == "resnet8" and config["transfer"]["weights"].endswith("digits.safetensors")


@pytest.mark.parametrize("mode", ["resident", "stream"])
def test_a_probe_is_the_logistic_regression_on_the_features(trained, tmp_path, monkeypatch, capsys, mode):
    monkeypatch.chdir(ROOT)
    flags = ["--config.transfer.probe=True", "--config.data.augment.pad=0", "--config.train.evaluate_train_every=1"]
    flags += ["--config.optimizer.weight_decay=1e-2", f"--config.data.mode={mode}"]
    status, captured = finetuned(trained, tmp_path / "run", capsys, *flags, "--config.train.steps=500")
    result = json.loads(captured.out.splitlines()[-1])
    assert status == 0 and result["state"] == "finished" and result["step"] < 500
    assert "650 fitted to the features" in captured.err and "Statistics of batch norm are frozen" in captured.err
    before, after = load_run(trained / "run").state, load_run(tmp_path / "run").state
    assert {path[0] for path in changed(before, after)} == {"head"}
    assert jax.tree.all(jax.tree.map(np.array_equal, before.batch_stats, after.batch_stats))
    config = from_json(runs.Run(tmp_path / "run").config())
    config.data.mode = "resident"
    few = load_dataset(config.data).train
    # The features are what another network with an identity for its last layer would return.
    model = create_model("resnet8", 64)
    params = before.params | {"head": {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}}
    images = normalize(jnp.asarray(few.images), config.data.mean, config.data.std)
    features = np.asarray(model.apply({"params": params, "batch_stats": before.batch_stats}, images).logits, np.float64)
    reference = LogisticRegression(C=1 / (1e-2 * len(features)), tol=1e-8, max_iter=10_000).fit(features, few.labels)
    np.testing.assert_allclose(after.params["head"]["kernel"], reference.coef_.T, atol=2e-3)
    records = runs.Run(tmp_path / "run").metrics()
    assert [record["split"] for record in records] == ["train", "train_clean", "test"]
    assert records[0]["top1_error"] == records[1]["top1_error"] == pytest.approx(1 - reference.score(features, few.labels))
    tested = training.evaluate_run(tmp_path / "run")
    assert tested["top1_error"] == records[2]["top1_error"] < 0.2 and tested["step"] == result["step"]
    # Launched again, it has ended.
    assert finetuned(trained, tmp_path / "run", capsys, *flags, "--config.train.steps=500")[0] == 0
    assert runs.Run(tmp_path / "run").metrics() == records


@pytest.mark.parametrize("name", ["vgg11_bn", pytest.param("googlenet_bn", marks=pytest.mark.slow), "plain8"])
def test_features_are_what_the_last_layer_gets(name):
    small = {} if name == "plain8" else {"form": "small"}
    model = create_model(name, 3, **small)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    found = jax.jit(functools.partial(probe.features, model))(variables, images)
    head = variables["params"]["head"]
    expected = jax.jit(model.apply)(variables, images).logits
    np.testing.assert_allclose(found @ head["kernel"] + head["bias"][None], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_finetuned_run_goes_on_with_the_same_bits(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    flags = ["--config.transfer.freeze=('stem',)", "--config.transfer.rate_factor=0.7"]
    assert finetuned(trained, tmp_path / "whole", capsys, *flags)[0] == 0
    assert finetuned(trained, tmp_path / "cut", capsys, *flags, "--config.train.stop_after=15")[0] == 0
    assert finetuned(trained, tmp_path / "cut", capsys, *flags)[0] == 0
    jax.tree.map(np.testing.assert_array_equal, *(load_run(tmp_path / name).state for name in ("whole", "cut")))


def test_mistakes(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    status, captured = finetuned(trained, tmp_path / "run", capsys, "--config.transfer.freeze=('stage7',)")
    assert status == 2 and "transfer.freeze has 'stage7'" in captured.err
    status, captured = finetuned(trained, tmp_path / "run", capsys, "--model=resnet14")
    assert status == 2 and "holds resnet8; it cannot be resnet14" in captured.err
    assert launch.main(["finetune", "--config=configs/digits.py", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "--weights is missing" in capsys.readouterr().err
    assert launch.main(["train", "--config=configs/digits.py", "--weights=x", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "--weights belongs to evaluate, finetune" in capsys.readouterr().err
    weights_flag = "--config.transfer.weights=digits.safetensors"
    assert launch.main(["train", "--config=configs/digits.py", weights_flag, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "There are no weights digits.safetensors" in capsys.readouterr().err
    status, captured = finetuned(trained, tmp_path / "run", capsys, "--config.transfer.probe=True")
    assert status == 2 and "data.augment.pad must be 0 with a probe, which fits the last layer" in captured.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mean", "channels", "sentence"),
    [
        ((0.5,), 3, "for gray images, and the pictures of {} are in color, so they are made gray; weights for images in color"),
        ((0.5,) * 3, 1, "for images in color, and the pictures of {} are gray; weights for gray images"),
        ((0.5,), 1, None),
        ((0.5,) * 3, 3, None),
    ],
)
def test_weights_and_pictures_that_differ_in_color_are_told(tmp_path, caplog, mean, channels, sentence):
    write_folder(tmp_path / "pets", {"cat": 30, "dog": 30}, (6, 6, channels))
    config = finetune.get_config()
    config.data.name, config.data.mean, config.transfer.weights = f"folder:{tmp_path / 'pets'}", mean, "some/weights"
    initial_weights.warn_of_mismatch(config)
    expected = [f"The weights in some/weights are {sentence.format(config.data.name)} would fit better."] if sentence else []
    assert [record.getMessage() for record in caplog.records] == expected


def test_warm_up_that_is_longer_than_the_run_is_told(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    _, captured = finetuned(trained, tmp_path / "run", capsys, "--config.train.stop_after=3")
    assert (
        "warning: The warm-up takes 3 steps and the run ends after 3, so it never reaches its learning rate; choose fewer "
        "optimizer.schedule.warmup_steps, or more steps.\n" in captured.err
    )
    _, captured = finetuned(trained, tmp_path / "run", capsys, "--config.train.stop_after=4")
    assert "warning" not in captured.err


def test_weights_that_moved_do_not_end_a_run(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "home").mkdir()
    old, new = tmp_path / "home" / "digits.safetensors", tmp_path / "moved.safetensors"
    shutil.copy(trained / "digits.safetensors", old)
    command = ["finetune", "--config=configs/digits.py", "--config.train.steps=30", "--config.optimizer.schedule.warmup_steps=1"]
    command += ["--config.train.checkpoint_every=10", "--config.train.evaluate_every=30", "--config.train.batch_size=8"]
    command += [f"--workdir={tmp_path / 'run'}"]
    for stop, file in ((10, old), (20, old), (0, new)):
        if stop == 20:
            old.rename(new)
        assert launch.main([*command, f"--config.train.stop_after={stop}", f"--weights={file}"]) == 0
        assert runs.Run(tmp_path / "run").status().step == (stop or 30)
    assert f"The run began with {old}, which is gone; it goes on without {new}." in capsys.readouterr().err
    # A run that has not begun needs its weights.
    assert launch.main([*command[:-1], f"--workdir={tmp_path / 'other'}", f"--weights={old}"]) == 2
