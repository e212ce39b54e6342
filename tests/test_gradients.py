"""The gradient's way through a network: its norms are those of finite differences, and its parts are the whole."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import digits
from plain56 import runs, training
from plain56.analysis import gradients
from plain56.figures import gradient_flow
from plain56.models import create_model

LABELS = jnp.arange(8) % 3


def loss(output):
    auxiliary = sum(optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean() for logits in output.auxiliary_logits)
    return optax.softmax_cross_entropy_with_integer_labels(output.logits, LABELS).mean() + 0.3 * auxiliary


def network(name, side=8, dtype="float32", **options):
    model = create_model(name, 3, dtype=dtype, **options)
    images = jax.random.normal(jax.random.key(1), (8, side, side, 3), dtype)
    return model, jax.jit(model.init)(jax.random.key(0), images), images


def measured(model, variables, images, loss=loss):
    measure = jax.jit(functools.partial(gradients.measure, model, loss=loss))
    return gradients.flow(model, measure(variables, images), images.shape[1:])


# Where a pool follows a ReLU, equal zeros are a kink: there is no derivative to compare with.
POOLED = {"block1_tap1", "block2_tap1", "block3_tap2"}
NARROW = {"widths": (3, 4, 6)}


def unit(tree, path, block):
    """A tree of zeros, but for one leaf or one block of it, which has the direction and the length 1 that it has in `tree`."""
    step = {other: np.zeros_like(leaf) for other, leaf in traverse_util.flatten_dict(tree).items()}
    at = ... if block is None else block
    step[path][at] = traverse_util.flatten_dict(tree)[path][at]
    step[path] /= np.linalg.norm(step[path])
    return traverse_util.unflatten_dict(step)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet14", NARROW),
        pytest.param("plain14", NARROW | {"normalization": "none"}, marks=pytest.mark.slow),
        pytest.param("resnet14", NARROW | {"pre_activation": True, "shortcut": "B"}, marks=pytest.mark.slow),
        pytest.param("plain14", NARROW | {"activation": "tanh", "kernel": "dirac"}, marks=pytest.mark.slow),
        pytest.param("resnet14", NARROW | {"normalization": "layer", "branch_scale": 0.5}, marks=pytest.mark.slow),
        pytest.param("vgg11", {"form": "small"}, marks=pytest.mark.slow),
    ],
)
def test_norms_are_those_of_finite_differences(name, options):
    with jax.enable_x64(True):
        model, variables, images = network(name, dtype="float64", **options)
        found = jax.device_get(jax.jit(functools.partial(gradients.gradients, model, loss=loss))(variables, images))
        start = jax.device_get((variables["params"], gradients.zero_taps(model, variables, images)))

        @jax.jit
        def value(params, taps):
            moved = {**variables, "params": params, "taps": taps}
            return loss(model.apply(moved, images, train=True, mutable=["batch_stats"])[0])

        def slope(which, path, block=None):
            """The loss's, along its own gradient: that is the gradient's norm."""
            step = unit(found[which], path, block)
            ends = [jax.tree.map(lambda a, b, s=size: a + s * b, start[which], step) for size in (1e-5, -1e-5)]
            values = [value(*(end if i == which else start[i] for i in range(2))) for end in ends]
            return (values[0] - values[1]) / 2e-5

        flow = measured(model, variables, images)
        checked = 0
        for path in traverse_util.flatten_dict(found[1]):
            first, place = path[0], path[-2]
            stacked = first.startswith("stage") and not first.endswith("_first")
            for block in range(start[1][first][place]["added"].shape[0]) if stacked else [None]:
                number = (block or 0) + (stacked and f"{first}_first" in found[1])
                where = f"{first.removesuffix('_first')}.{number}" if first.startswith("stage") else first
                norms = {"shortcut": flow.shortcuts, "branch": flow.branches}.get(place, flow.outputs)
                if first not in POOLED and (place != "branch" or name.startswith("resnet")):
                    np.testing.assert_allclose(norms[where], slope(1, path, block), rtol=1e-6)
                    checked += 1
        checked += len(POOLED & flow.outputs.keys())
        assert checked == len(flow.outputs) + len(flow.shortcuts) + len(flow.branches)
        last = list(flow.kernels)[-1]
        assert last == "head"
        np.testing.assert_allclose(flow.kernels[last], slope(0, ("head", "kernel")), rtol=1e-6)
        if name.startswith(("plain", "resnet")):
            np.testing.assert_allclose(flow.kernels["stage2.1.conv2"], slope(0, ("stage2", "conv2", "kernel"), 0), rtol=1e-6)
            np.testing.assert_allclose(flow.kernels["stage3.0.conv1"], slope(0, ("stage3_first", "conv1", "kernel")), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["batch", "none"])
def test_the_parts_make_up_the_whole(normalization):
    with jax.enable_x64(True):
        model, variables, images = network("resnet20", dtype="float64", normalization=normalization)
        _, taps = jax.jit(functools.partial(gradients.gradients, model, loss=loss))(variables, images)
        flow = measured(model, variables, images)
        # What comes out of a block goes into the next one, and nowhere else.
        outputs = [taps["stem"]["added"]]
        parts = []
        for stage in (1, 2, 3):
            blocks = [taps[f"stage{stage}_first"]] if stage > 1 else []
            blocks += [jax.tree.map(lambda leaf, i=i: leaf[i], taps[f"stage{stage}"]) for i in range(3 - len(blocks))]
            outputs += [block["output"]["added"] for block in blocks]
            parts += [(block["shortcut"]["added"], block["branch"]["added"]) for block in blocks]
        assert len(parts) == 9
        for i, (shortcut, branch) in enumerate(parts):
            np.testing.assert_allclose(shortcut + branch, outputs[i], rtol=1e-9, atol=1e-15)
            share = np.vdot(shortcut, outputs[i]) / np.vdot(outputs[i], outputs[i])
            np.testing.assert_allclose(list(flow.shortcut_shares.values())[i], share, rtol=1e-9)
            np.testing.assert_allclose(list(flow.outputs.values())[i], np.linalg.norm(outputs[i]), rtol=1e-9)
        # An identity passes on what it gets, where the ReLU behind the addition lets it through: whole or not at all, by element.
        for i in (1, 2, 4, 5, 7, 8):
            passed = parts[i][0] == outputs[i + 1]
            assert np.all(passed | (parts[i][0] == 0)) and 0.3 < passed.mean() < 1


@pytest.mark.slow
def test_an_identity_with_pre_activation_passes_the_gradient_on_unchanged():
    model, variables, images = network("resnet20", pre_activation=True)
    flow = measured(model, variables, images)
    for block in ("stage1.1", "stage1.2", "stage2.1", "stage3.2"):
        assert flow.shortcuts[block] == pytest.approx(flow.outputs[block], rel=1e-5)


@pytest.mark.slow
def test_norms_whose_squares_are_out_of_range():
    model, variables, images = network("resnet8", **NARROW)
    flows = [measured(model, variables, images, lambda output, s=scale: s * loss(output)) for scale in (1.0, 1e-25, 1e25)]
    for scale, flow in zip((1e-25, 1e25), flows[1:], strict=True):
        for key in ("outputs", "kernels", "branches"):
            for place, norm in getattr(flows[0], key).items():
                assert getattr(flow, key)[place] == pytest.approx(scale * norm, rel=1e-3)
        assert flow.shortcut_shares == pytest.approx(flows[0].shortcut_shares, rel=1e-3)


def test_growth_is_the_factor_of_a_geometric_series():
    network = gradient_flow.Network("plain20", False, 20, "batch", 0, 3.0 * 1.25 ** -np.arange(9.0), *[np.array([])] * 3)
    assert network.growth == pytest.approx(1.25)


def test_a_plain_network_logs_the_flow(tmp_path, caplog):
    config = digits.get_config("plain8")
    config.model.widths = (4, 4, 8)
    config.train.gradients_every, config.train.stop_after = 2, 2
    training.train(config, tmp_path / "run")
    records = runs.Run(tmp_path / "run").metrics("gradients")
    assert [record["step"] for record in records] == [0, 2]
    assert records[0]["shortcuts"] == {} and len(records[0]["outputs"]) == 4
    config.train.stop_after = 4
    assert training.train(config, tmp_path / "run").step == 4
    assert "logger" not in caplog.text


def test_a_run_logs_the_flow_and_nothing_else_changes(tmp_path):
    def trained(name, every, steps=12, stop_after=0):
        config = digits.get_config("resnet8")
        config.model.widths = (4, 4, 8)
        config.train.steps, config.train.gradients_every, config.train.stop_after = steps, every, stop_after
        config.train.log_every = config.train.evaluate_every = 12
        config.train.checkpoint_every, config.optimizer.schedule.warmup_steps = 6, 2
        training.train(config, tmp_path / name)
        return runs.Run(tmp_path / name)

    without, run = trained("without", 0), trained("with", 4, stop_after=6)
    run = trained("with", 4)
    records = run.metrics("gradients")
    assert [record["step"] for record in records] == [0, 4, 6, 8, 12]
    for record in records:
        assert list(record["outputs"]) == ["stem", "stage1.0", "stage2.0", "stage3.0"]
        assert list(record["shortcut_shares"]) == ["stage1.0", "stage2.0", "stage3.0"]
        assert len(record["kernels"]) == 8 and all(norm > 0 for norm in record["kernels"].values())
    assert without.metrics("test")[-1]["loss"] == run.metrics("test")[-1]["loss"]
    config = json.loads((tmp_path / "with" / "config.json").read_text())
    assert config["train"]["gradients_every"] == 4
