"""No key is accepted and ignored: changed, it is refused or does something, in training and in a probe."""

import json

import jax
import numpy as np
import pytest

from configs import base, digits
from plain56 import runs, training
from plain56.config import UNUSED
from plain56.errors import UserError
from plain56.training import load_run

KEYS = sorted(runs.flatten(base.get_config().to_dict()))
# Another value for every key, which a run of a few steps could notice.
CHANGED = {
    "seed": 1,
    "parallelism": "pmap",
    "model.name": "plain8",
    "model.dtype": "bfloat16",
    "model.shortcut": "B",
    "model.widths": (4, 4, 6),
    "model.bottleneck_stride": "3x3",
    "model.pre_activation": True,
    "model.activation": "tanh",
    "model.negative_slope": 0.5,
    "model.normalization": "none",
    "model.initializer": "dirac",
    "model.kernel": "dirac",
    "model.branch_scale": 0.5,
    "model.shortcut_scale": 0.5,
    "model.fixup": True,
    "model.survival": 0.5,
    "model.zero_init": True,
    "model.remat": True,
    "model.form": "small",
    "model.dropout": 0.3,
    "model.auxiliary": False,
    "model.options": {"depth": 8},
    "batch_norm.momentum": 0.5,
    "batch_norm.sync": False,
    "batch_norm.epsilon": 0.1,
    "data.name": "folder:nowhere",
    "data.dir": "elsewhere",
    "data.train_split": "test",
    "data.test_split": "train",
    "data.test_share": 0.3,
    "data.classes": ("0", "1", "2"),
    "data.validation_examples": 40,
    "data.examples_per_class": 20,
    "data.split_seed": 1,
    "data.mode": "stream",
    "data.workers": 1,
    "data.image_size": 10,
    "data.mean": (0.1,),
    "data.std": (0.9,),
    "data.augment.pad": 2,
    "data.augment.enlarge": (1.0, 1.5),
    "data.augment.area": (0.5, 1.0),
    "data.augment.flip": True,
    "data.augment.color": 0.1,
    "train.steps": 5,
    "train.batch_size": 64,
    "train.accumulate": 2,
    "train.label_smoothing": 0.1,
    "train.warm_start": "nowhere",
    "train.stop_after": 2,
    "train.steps_per_call": 1,
    "train.log_every": 1,
    "train.evaluate_every": 1,
    "train.evaluate_train_every": 2,
    "train.gradients_every": 2,
    "train.checkpoint_every": 1,
    "train.loggers": (),
    "transfer.weights": "nowhere",
    "transfer.freeze": ("stem",),
    "transfer.probe": True,
    "transfer.freeze_scales": True,
    "transfer.freeze_statistics": True,
    "transfer.rate_factor": 0.5,
    "optimizer.name": "adam",
    "optimizer.options": {"nesterov": True},
    "optimizer.clip_norm": 0.01,
    "optimizer.learning_rate": 0.05,
    "optimizer.momentum": 0.5,
    "optimizer.weight_decay": 0.1,
    "optimizer.decay_all": True,
    "optimizer.schedule.name": "cosine",
    "optimizer.schedule.boundaries": (3,),
    "optimizer.schedule.factor": 0.5,
    "optimizer.schedule.warmup_steps": 2,
    "optimizer.schedule.warmup_learning_rate": 0.02,
}
# What shows nothing here, and why.
SAME_RESULT = {
    "model.bottleneck_stride": "for sweeps over networks of which some have bottlenecks",
    "train.steps_per_call": "the same bits, by design",
}
# The same result by other programs, whose sums may be rounded otherwise: whether it has the same bits depends on the processor.
SAME_UP_TO_ROUNDING = ("parallelism", "model.remat", "data.mode")
# A probe is fitted at once, to features in evaluation mode: `configs/base.py` says that the keys of SGD are of no use to it. What
# it would leave out, though somebody asked for it, is refused.
NOT_IN_A_PROBE = {
    **SAME_RESULT,
    **dict.fromkeys(("parallelism", "data.mode"), "another way to the same result"),
    **dict.fromkeys(("seed", "batch_norm.momentum"), "nothing is drawn or averaged"),
    **dict.fromkeys(("transfer.freeze_scales", "transfer.freeze_statistics", "transfer.probe"), "as it does anyway"),
    **dict.fromkeys((f"train.{key}" for key in ("log_every", "evaluate_every", "checkpoint_every")), "there is one record"),
    **dict.fromkeys((f"optimizer.{key}" for key in ("learning_rate", "momentum")), "of SGD"),
    **dict.fromkeys((f"optimizer.schedule.{key}" for key in ("name", "boundaries", "factor", "warmup_steps")), "of SGD"),
    "model.remat": "there is no backward pass",
    "train.batch_size": "of passes over the data",
}


def config_for(probe):
    config = digits.get_config("resnet8")
    config.model.widths = (4, 4, 8)
    config.train.steps = config.train.steps_per_call = config.train.log_every = 4
    config.train.evaluate_every = config.train.checkpoint_every = 4
    config.train.batch_size = 32
    config.optimizer.schedule.name, config.optimizer.schedule.boundaries = "step", (2,)
    config.optimizer.schedule.warmup_steps, config.optimizer.schedule.warmup_learning_rate = 1, 0.01
    if probe:
        config.transfer.probe, config.data.augment.pad = True, 0
        config.optimizer.schedule.warmup_learning_rate, config.optimizer.schedule.warmup_steps = 0.0, 0
        config.train.steps = 30
    return config


def outcome(config, workdir):
    """What a run has come to, as far as a user can see: parameters, records, and which checkpoints and event files there are."""
    training.train(config, workdir)
    clock = ("seconds", "images_per_second")
    records = [{key: record[key] for key in record if key not in clock} for record in runs.Run(workdir).metrics()]
    saved = sorted(folder.name for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit())
    state = load_run(workdir).state
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.batch_stats))]
    return leaves, json.dumps(records), saved, (workdir / "tensorboard").exists()


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unchanged")
    return {probe: outcome(config_for(probe), folder / str(probe)) for probe in (False, True)}


def test_every_key_has_another_value_and_unused_ones_their_defaults():
    assert sorted(CHANGED) == KEYS
    defaults = runs.flatten(base.get_config().to_dict())
    for _, _, values in UNUSED:
        for key, value in values.items():
            # Recipes augment by default, and a probe takes no part of it.
            assert defaults[key] == value or key in ("data.augment.pad", "data.augment.flip")


@pytest.mark.slow
@pytest.mark.parametrize("probe", [False, True], ids=["train", "probe"])
@pytest.mark.parametrize("key", KEYS)
def test_no_key_is_accepted_and_ignored(tmp_path, unchanged, key, probe):
    if probe and key in NOT_IN_A_PROBE:
        return
    config = config_for(probe)
    changed = CHANGED[key]
    runs.override(
        config, {f"{key}.{name}": value for name, value in changed.items()} if type(changed) is dict else {key: changed}
    )
    if key == "data.workers":
        config.data.mode = "resident"  # where there is nothing for workers to do
    try:
        found = outcome(config, tmp_path / "run")
    except UserError:
        assert not (tmp_path / "run").exists()
        return
    (leaves, *shown), (expected, *expected_shown) = found, unchanged[probe]
    if key in SAME_UP_TO_ROUNDING:
        for leaf, other in zip(leaves, expected, strict=True):
            np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-5)
        assert shown[1:] == expected_shown[1:]  # what is saved and logged; the records have the numbers
        return
    shows_nothing = shown == expected_shown and [leaf.tobytes() for leaf in leaves] == [leaf.tobytes() for leaf in expected]
    assert shows_nothing == (not probe and key in SAME_RESULT)
