"""Networks with repairs: all train, resume and are written, and what has no meaning is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import digits
from plain56 import config, load_pretrained, pretrained, runs, training
from plain56.analysis import lesions
from plain56.cli import flags
from plain56.errors import UserError
from plain56.models import create_model, repairs
from tests.fixtures.updates import IMAGES, a_batch, updated

# Each value of each key that is not the published one, with what it needs. The family is that of the network.
VALUES = [
    ("plain", {"activation": "leaky_relu", "negative_slope": 0.5}),
    ("plain", {"activation": "tanh", "initializer": "delta_orthogonal", "normalization": "none"}),
    ("plain", {"activation": "tat", "initializer": "delta_orthogonal", "normalization": "none"}),
    ("plain", {"normalization": "group"}),
    ("plain", {"normalization": "layer"}),
    ("plain", {"normalization": "none"}),
    ("plain", {"initializer": "orthogonal"}),
    ("plain", {"initializer": "dirac"}),
    ("plain", {"kernel": "dirac"}),
    ("resnet", {"branch_scale": 0.5, "shortcut_scale": 0.5}),
    ("resnet", {"branch_scale": "inverse_sqrt_blocks", "normalization": "none"}),
    ("resnet", {"branch_scale": "learned_zero", "normalization": "none"}),
    ("resnet", {"fixup": True, "normalization": "none"}),
    ("resnet", {"survival": 0.8}),
    ("resnet", {"activation": "tanh", "kernel": "dirac", "normalization": "layer", "pre_activation": True}),
]


def names_of(networks):
    return ["-".join(f"{key}={value}" for key, value in options.items()) for _, options in networks]


@pytest.mark.parametrize(("family", "options"), VALUES, ids=names_of(VALUES))
def test_each_moves_every_parameter(family, options):
    model = create_model(f"{family}8", 3, widths=(8, 8, 16), **options)
    # Fixup's last layer begins at zero, and so do its branches' last kernels: the third gradient reaches the others.
    start, end = updated(model, a_batch(), steps=3)
    for path, leaf in traverse_util.flatten_dict(end.params).items():
        assert jnp.all(jnp.isfinite(leaf)), path
        assert jnp.any(leaf != traverse_util.flatten_dict(start.params)[path]), path


def test_published_values_are_the_network_as_it_is():
    published = {"activation": "relu", "normalization": "batch", "initializer": "he_normal", "kernel": "free"}
    published |= {"branch_scale": 1.0, "shortcut_scale": 1.0, "fixup": False, "survival": 1.0}
    one, other = (create_model("resnet8", 3, widths=(8, 8, 8), **options) for options in ({}, published))
    batch = a_batch()
    for a, b in zip(*(jax.tree.leaves(updated(model, batch, steps=1)) for model in (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("family", ["plain", "resnet"])
def test_all_combinations_are_networks_or_refused(family):
    """Activations, normalizations, initializers and kernels combine freely; TAT is for plain networks."""
    images, refused = jax.ShapeDtypeStruct((1, *IMAGES), jnp.bfloat16), 0
    for activation in repairs.CHOICES["activation"]:
        for normalization in repairs.CHOICES["normalization"]:
            for initializer, kernel in (("orthogonal", "dirac"), ("dirac", "free"), ("delta_orthogonal", "free")):
                options = {"activation": activation, "normalization": normalization, "initializer": initializer, "kernel": kernel}
                try:
                    model = create_model(f"{family}8", 10, dtype="bfloat16", remat=True, **options)
                except UserError:
                    assert (family, activation) == ("resnet", "tat")
                    refused += 1
                    continue
                output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
                assert (output.logits.shape, output.logits.dtype) == ((1, 10), jnp.float32)
                assert bool(variables.get("batch_stats")) == (normalization == "batch")
    assert refused == (12 if family == "resnet" else 0)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("resnet20", {"activation": "gelu"}, "model.activation must be one of relu, leaky_relu, tanh, tat, not 'gelu'"),
        (
            "resnet20",
            {"branch_scale": "small"},
            "model.branch_scale must be a number or one of inverse_sqrt_blocks, learned_zero",
        ),
        ("plain20", {"negative_slope": 0.5}, "model.negative_slope must be None with model.activation='relu'"),
        ("resnet20", {"activation": "tat"}, "model.activation must not be 'tat' in a residual network"),
        ("plain20", {"normalization": "group", "widths": (8, 12, 16)}, "needs channels in multiples of 8, not 12"),
        ("plain20", {"branch_scale": 0.5}, "model.branch_scale must be 1 in a plain network"),
        ("plain20", {"shortcut_scale": 0.5}, "model.shortcut_scale must be 1 in a plain network"),
        ("plain20", {"survival": 0.5}, "model.survival must be 1 in a plain network"),
        ("plain20", {"fixup": True, "normalization": "none"}, "model.fixup must be False in a plain network"),
        ("resnet20", {"fixup": True}, "model.normalization must be 'none' with model.fixup=True, not 'batch'"),
        (
            "resnet20",
            {"fixup": True, "normalization": "none", "kernel": "dirac"},
            "model.kernel must be 'free' with model.fixup=True",
        ),
        (
            "resnet20",
            {"zero_init": True, "normalization": "none"},
            "model.zero_init must be False with model.normalization='none'",
        ),
        ("resnet20", {"zero_init": True, "branch_scale": "learned_zero"}, "two zeros in a row have no gradient"),
        ("plain20", {"kernel": "dirac", "initializer": "dirac"}, "which has an identity of its own"),
        ("vgg16_bn", {"activation": "tanh"}, "vgg16_bn takes only the options form, dropout"),
    ],
)
def test_what_has_no_meaning_is_refused(name, options, sentence):
    with pytest.raises(UserError, match=sentence):
        create_model(name, 10, **options)


def test_delta_orthogonal_kernels_need_as_many_channels_out_as_in():
    model = create_model("plain50", 10, initializer="delta_orthogonal", widths=(8, 8, 8, 8))
    with pytest.raises(UserError, match="not 8 out of 32"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.slow
def test_blocks_survive_alike_on_all_devices():
    """By `pmap` every device draws dropout for itself, but leaves out the same blocks."""
    states = []
    for parallelism in ("jit", "pmap"):
        c = digits.get_config("resnet20")
        c.model.survival, c.model.widths, c.parallelism = 0.3, (4, 4, 8), parallelism
        c.train.batch_size, c.train.steps_per_call = 32, 1
        program = training.prepare(c)
        states.append(program.train_steps(*program.initial, None, 0, 1)[0])
    one, other = (jax.device_get((state.params, state.batch_stats)) for state in states)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), one, other)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "options"), [VALUES[8], VALUES[12]])
def test_weights_are_written_and_read(tmp_path, tiny_config, family, options):
    tiny_config.model.name = f"{family}8"
    tiny_config.model.update(options | {"widths": (8, 8, 8)})
    tiny_config.train.steps = 4
    training.train(tiny_config, tmp_path / "run")
    pretrained.save_pretrained(tmp_path / "file.safetensors", tmp_path / "run")
    images = np.asarray(a_batch().images)
    (one, found, _), (other, read, _) = (load_pretrained(tmp_path / source) for source in ("run", "file.safetensors"))
    np.testing.assert_array_equal(one.apply(found, images).logits, other.apply(read, images).logits)


def test_a_plain_network_without_a_block_keeps_its_activation():
    model = create_model("plain56", 3, widths=(4, 4, 4), activation="tat")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *IMAGES)))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    shorter, _ = lesions.without(model, variables, (1, 3))
    assert shorter.options == model.options


def test_a_run_from_before_has_its_normalization(tmp_path, tiny_config):
    """`model.normalise` was True, False or None."""
    for old, new in ((True, "batch"), (False, "none"), (None, None)):
        stored = tiny_config.to_dict()
        del stored["model"]["normalization"]
        stored["model"]["normalise"] = old
        assert runs.upgraded(stored, "it")["model"]["normalization"] == new


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("learned_zero", "learned_zero")])
def test_a_scale_is_a_number_or_a_name(text, value):
    options, _ = flags.parse(["--config=configs/digits.py:resnet8", f"--config.model.branch_scale={text}"])
    config.check(options.config)
    assert options.config.model.branch_scale == value


# Every value at least once, in as few networks as they combine to.
COMBINED = [
    ("plain", {"activation": "leaky_relu", "negative_slope": 0.5, "normalization": "group", "initializer": "orthogonal"}),
    ("plain", {"activation": "tat", "initializer": "delta_orthogonal", "normalization": "none"}),
    ("plain", {"initializer": "dirac"}),
    ("resnet", {"branch_scale": 0.5, "shortcut_scale": 0.5, "survival": 0.8}),
    ("resnet", {"branch_scale": "inverse_sqrt_blocks", "normalization": "none"}),
    ("resnet", {"branch_scale": "learned_zero", "normalization": "none"}),
    ("resnet", {"fixup": True, "normalization": "none"}),
    ("resnet", {"activation": "tanh", "kernel": "dirac", "normalization": "layer", "pre_activation": True}),
]


def test_the_combined_networks_have_every_value():
    def values(networks):
        return {(key, value) for _, options in networks for key, value in options.items()}

    assert values(COMBINED) == values(VALUES)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "options"), COMBINED, ids=names_of(COMBINED))
def test_each_trains_and_resumes_at_56_layers(tmp_path, family, options):
    c = digits.get_config(f"{family}56")
    c.model.update(options | {"widths": (8, 8, 8)})
    c.train.steps, c.optimizer.schedule.warmup_steps = 20, 2
    c.train.steps_per_call = c.train.log_every = c.train.checkpoint_every = 10
    c.train.gradients_every, c.train.batch_size = 20, 32
    assert training.train(c, tmp_path / "whole").state == "finished"
    c.train.stop_after = 10
    training.train(c, tmp_path / "parts")
    c.train.stop_after = 0
    training.train(c, tmp_path / "parts")
    whole, parts = (jax.device_get(training.load_run(tmp_path / name).state) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    measured = [record for record in runs.Run(tmp_path / "whole").metrics() if record["split"] == "gradients"]
    assert [record["step"] for record in measured] == [0, 20]
    assert all(len(record["outputs"]) == 28 and all(norm > 0 for norm in record["outputs"].values()) for record in measured[1:])
