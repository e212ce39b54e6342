"""Lesions, landscapes and layer responses, against what is worked out by hand."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from configs import digits
from experiments import landscape as landscape_experiment
from experiments import lesions as lesions_experiment
from experiments import responses as responses_experiment
from plain56 import cli, pretrained, runs, sweeps
from plain56.analysis import landscape, lesions
from plain56.analysis.responses import layer_responses
from plain56.data import Split
from plain56.errors import UserError
from plain56.models import create_model
from plain56.training.statistics import measure_moments

NARROW = {"widths": (3, 4, 6)}


def network(name, **options):
    """A network whose batch norms have scales, biases and statistics that matter."""
    model = create_model(name, 5, **NARROW, **options)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    flat = traverse_util.flatten_dict(variables)
    keys = dict(zip(flat, jax.random.split(jax.random.key(2), len(flat)), strict=True))

    def varied(path, leaf):
        drawn = jax.random.uniform(keys[path], leaf.shape)
        return {"scale": 0.5 + drawn, "bias": drawn - 0.5, "mean": drawn - 0.5, "var": 0.5 + drawn}.get(path[-1], leaf)

    return model, traverse_util.unflatten_dict({path: varied(path, leaf) for path, leaf in flat.items()}), images


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, variables, images):
    return model.apply(variables, images).logits


def logits(model, variables, images):
    """The network's, compiled once for each shape of it."""
    return np.asarray(_apply(model, variables, images))


SHORTCUTS = [
    {},
    *(pytest.param(o, marks=pytest.mark.slow) for o in ({"shortcut": "B"}, {"shortcut": "C"}, {"normalization": "none"})),
]


@pytest.mark.parametrize("options", SHORTCUTS)
def test_without_a_block_a_residual_network_passes_its_input_on(options):
    model, variables, images = network("resnet14", **options)
    assert lesions.blocks(model) == lesions.removable(model, variables)
    assert lesions.blocks(model) == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]

    def forward(left_out):
        """The network by hand, from its parts."""

        def norm(x, *path):
            if model.block_options.normalization == "none":
                return x
            statistics = variables["batch_stats"]
            for part in path[:-1]:
                statistics = statistics[part] if isinstance(part, str) else jax.tree.map(lambda leaf, i=part: leaf[i], statistics)
            own, scale = statistics[path[-1]], values(*path)
            return (x - own["mean"]) / jnp.sqrt(own["var"] + model.numerics.epsilon) * scale["scale"] + scale["bias"]

        def values(*path):
            tree = variables["params"]
            for part in path:
                tree = tree[part] if isinstance(part, str) else jax.tree.map(lambda leaf, i=part: leaf[i], tree)
            return tree

        def convolve(x, kernel, strides=1):
            pad = kernel.shape[0] // 2
            return jax.lax.conv_general_dilated(
                x, kernel, (strides,) * 2, [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        x = nn.relu(norm(convolve(images, values("stem_conv")["kernel"]), "stem_norm"))
        for stage, number in lesions.blocks(model):
            alone = f"stage{stage}_first" in variables["params"]
            path = (f"stage{stage}_first",) if alone and number == 0 else (f"stage{stage}", number - alone)
            strides = 2 if stage > 1 and number == 0 else 1
            y = nn.relu(norm(convolve(x, values(*path, "conv1")["kernel"], strides), *path, "norm1"))
            y = norm(convolve(y, values(*path, "conv2")["kernel"]), *path, "norm2")
            if "shortcut_conv" in values(*path):
                shortcut = norm(convolve(x, values(*path, "shortcut_conv")["kernel"], strides), *path, "shortcut_norm")
            else:
                added = y.shape[-1] - x.shape[-1]
                shortcut = jnp.pad(x[:, ::strides, ::strides], [(0, 0)] * 3 + [(added // 2, added - added // 2)])
            x = nn.relu(shortcut if (stage, number) in left_out else y + shortcut)
        return jnp.mean(x, (1, 2)) @ values("head")["kernel"] + values("head")["bias"]

    with jax.numpy_rank_promotion("allow"):
        for left_out in [[], *([block] for block in lesions.blocks(model)), [(1, 0), (2, 0), (3, 1)]]:
            silenced = logits(model, lesions.silence(model, variables, left_out), images)
            np.testing.assert_allclose(silenced, forward(left_out), rtol=1e-3, atol=1e-4)


def test_a_plain_network_without_a_block_is_one_in_which_it_does_nothing():
    model, variables, images = network("plain14")
    assert lesions.removable(model, variables) == [(1, 0), (1, 1), (2, 1), (3, 1)]
    flat = traverse_util.flatten_dict(variables)
    identity = np.zeros((3, 3, 3, 3), np.float32)
    identity[1, 1] = np.eye(3)
    values = {"kernel": identity, "scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0 - model.numerics.epsilon}
    for path, leaf in flat.items():
        if path[1] == "stage1":
            flat[path] = leaf.at[1].set(values[path[-1]])
    passing = logits(model, traverse_util.unflatten_dict(flat), images)
    fewer, rest = lesions.without(model, variables, (1, 1))
    np.testing.assert_allclose(logits(fewer, rest, images), passing, rtol=1e-4, atol=1e-5)
    # The last one that keeps the shape leaves the first one of the stage alone.
    assert logits(*lesions.without(model, variables, (3, 1)), images).shape == (4, 5)
    with pytest.raises(UserError, match="Block 0 of stage 2 changes the shape; a plain network cannot be without it"):
        lesions.without(model, variables, (2, 0))


@pytest.mark.slow
def test_swapped_blocks():
    model, variables, images = network("resnet20")
    assert lesions.neighbors(model, variables) == [((1, 0), (1, 1)), ((1, 1), (1, 2)), ((2, 1), (2, 2)), ((3, 1), (3, 2))]
    for pair in lesions.neighbors(model, variables):
        once = lesions.swapped(model, variables, *pair)
        stage = f"stage{pair[0][0]}"
        places = [number - (f"{stage}_first" in variables["params"]) for _, number in pair]
        kernel, moved = (np.asarray(v["params"][stage]["conv1"]["kernel"]) for v in (variables, once))
        np.testing.assert_array_equal(moved[places], kernel[places[::-1]])
        assert np.abs(logits(model, once, images) - logits(model, variables, images)).max() > 1e-3
        jax.tree.map(np.testing.assert_array_equal, lesions.swapped(model, once, *pair), variables)


def test_directions_have_filters_of_the_networks_length():
    _, variables, _ = network("resnet14")
    params = variables["params"]
    direction = landscape.random_direction(params, jax.random.key(0))
    flat = traverse_util.flatten_dict(direction)
    for path, leaf in traverse_util.flatten_dict(params).items():
        own, other = np.asarray(leaf), np.asarray(flat[path])
        if path[-1] != "kernel":
            assert not other.any()
            continue
        stacked = path[0] in ("stage1", "stage2", "stage3")
        for a, b in zip(own, other, strict=True) if stacked else [(own, other)]:
            for f in range(a.shape[-1]):
                assert np.linalg.norm(b[..., f]) == pytest.approx(np.linalg.norm(a[..., f]), rel=1e-5)
                assert abs(np.vdot(a[..., f], b[..., f])) < 0.99 * np.vdot(a[..., f], a[..., f])


@pytest.mark.parametrize("at_a_time", [1, 4])
def test_losses_are_those_at_their_places(at_a_time):
    params, directions = {"w": jnp.array([1.0, 2.0])}, [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([1.0, -1.0])}]
    places = [(x, y) for x in (-1.0, 0.0, 0.5) for y in (0.0, 2.0)]
    found = landscape.losses_around(lambda p: jnp.sum(p["w"] ** 2), params, directions, places, at_a_time)
    np.testing.assert_allclose(found, [(1 + x + y) ** 2 + (2 - y) ** 2 for x, y in places])


def test_responses_are_the_deviations_of_what_batch_norm_gives():
    model, variables, _ = network("resnet14")
    data = digits.get_config().data
    data.mean, data.std = (0.2, 0.3), (0.5, 0.4)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 2)).astype(np.uint8)
    split = Split(jnp.asarray(pixels), jnp.zeros(20, jnp.int32))
    options = {"model": model, "batch_size": 8, "data": data, "split_batch": lambda batch: batch}
    moments = measure_moments(variables["params"], variables["batch_stats"], split, **options)
    found = layer_responses(model, variables["params"], variables["batch_stats"], moments, (8, 8, 2))
    assert list(found) == ["stem_conv", *(f"stage{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1) for c in (1, 2))]
    seen = {}

    def watch(call, arguments, named, context):
        module = context.module
        if "norm" in (module.name or "") and not isinstance(arguments[0], jax.core.Tracer):
            of = jax.device_get({**module.variables["params"], **module.variables["batch_stats"]})
            y = (np.asarray(arguments[0]) - of["mean"]) / np.sqrt(of["var"] + 1e-5) * of["scale"] + of["bias"]  # before the ReLU
            seen[".".join(module.path).replace("_first", ".0").replace("norm", "conv")] = float(np.std(y))
        return call(*arguments, **named)

    inputs = (pixels / np.float32(255) - np.array(data.mean)) / np.array(data.std)
    with nn.intercept_methods(watch):
        model.apply(variables, jnp.asarray(inputs, jnp.float32))
    assert len(seen) == 5  # the stem's, and those of the blocks that are not in a loop
    for layer, deviation in seen.items():
        assert found[layer] == pytest.approx(deviation, rel=1e-4)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A finished sweep of two small networks."""
    workdir = tmp_path_factory.mktemp("sweep")
    config = digits.get_config()
    config.train.steps = config.train.evaluate_every = config.train.checkpoint_every = 10
    config.optimizer.schedule.warmup_steps = 2
    config.model.widths = (4, 4, 8)
    names = ("plain14", "resnet14")
    sweeps.run_sweep(sweeps.expand(config, lambda config: [{"model.name": name, "seed": 0} for name in names]), workdir)
    return workdir


EXPERIMENTS = {
    "lesions": (lesions_experiment, lesions_experiment.damage, "loss"),
    "responses": (responses_experiment, responses_experiment.measure, "response"),
    "landscape": (landscape_experiment, landscape_experiment.look_around, "loss"),
}


@pytest.mark.slow
def test_experiments_on_a_sweep_and_on_files_of_its_weights(sweep, tmp_path, capsys):
    """They say of a run's weights in a file what they say of the run, and of those in float16 nearly that."""
    for name, (experiment, function, _) in EXPERIMENTS.items():
        assert experiment.WORKDIR == "runs/degradation"
        assert cli.run(function, [f"--workdir={sweep}"]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["figure"] == str(sweep / f"{name}.png") and (sweep / f"{name}.svg").exists()
    undamaged = [row for row in runs.read_table(sweep, "lesions") if row["lesion"] == "none"]
    errors = {row["run"]: row["test_error"] for row in runs.read_summary(sweep)}
    assert {row["run"]: float(row["top1_error"]) for row in undamaged} == pytest.approx(errors, rel=1e-4)
    centers = {float(row["loss"]) for row in runs.read_table(sweep, "landscape") if row["x"] == row["y"] == "0"}
    assert len(centers) == 2
    assert cli.run(lesions_experiment.damage, [f"--workdir={sweep / 'nothing'}"]) == 2

    for name, dtype in (("resnet14", "float32"), ("plain14", "float16")):
        pretrained.save_pretrained(tmp_path / f"{name}.safetensors", sweep / f"{name}-seed0", dtype=dtype)
    flags = [f"--weights={tmp_path}/resnet14.safetensors,{tmp_path}/plain14.safetensors", f"--workdir={tmp_path}"]
    for table, (_, function, value) in EXPERIMENTS.items():
        assert cli.run(function, [*flags, "--config=configs/digits.py"], mode=cli.WEIGHTS_EXPERIMENT) == 0
        found = {}
        for row in runs.read_table(sweep, table) + runs.read_table(tmp_path, table):
            found.setdefault(row["run"], []).append(float(row[value]))
        assert found["resnet14"] == pytest.approx(found["resnet14-seed0"], rel=1e-4), table
        assert found["plain14"] == pytest.approx(found["plain14-seed0"], rel=0.05), table
    capsys.readouterr()
    weights, config = flags[0], "--config=configs/digits.py"
    for wrong, reason in (
        (flags, "--weights needs --config, whose data the networks are shown"),
        ([f"{weights},{tmp_path}/resnet14.safetensors", flags[1], config], "must have different names"),
        ([*flags, config, "--config.model.widths=(4,4,8)"], "--config.model.widths changes nothing here"),
        ([weights, config], "--workdir is missing"),
    ):
        assert cli.run(lesions_experiment.damage, wrong, mode=cli.WEIGHTS_EXPERIMENT) == 2
        assert reason in capsys.readouterr().err
