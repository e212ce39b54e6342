"""{ways to begin a residual network} × depths: how far does one epoch of CIFAR-10 get? (Zhang, Dauphin & Ma 2019, Fig. 3)

python -m plain56.experiments.fixup_figure3

Each network trains for one epoch at the rate of 0.1 that networks with batch norm have by default.
"""

import itertools
import math
import re

from ml_collections import ConfigDict

from plain56.configs import base, cifar10
from plain56.configs.sweeps.repairs import NO_NORM

METHODS = {
    "batch norm": {},
    "Fixup": {"model.fixup": True, **NO_NORM},
    "learned zero": {"model.branch_scale": "learned_zero", **NO_NORM},
    "1/√blocks": {"model.branch_scale": "inverse_sqrt_blocks", **NO_NORM},
    "He's initialization alone": NO_NORM,
}
IMAGES = 50_000


def get_config():
    config = cifar10.get_config()
    config.train.steps = math.ceil(IMAGES / config.train.batch_size)
    config.train.evaluate_every = config.train.checkpoint_every = config.train.steps
    config.sweep = ConfigDict()
    config.sweep.depths = (20, 56, 110)
    config.sweep.methods = tuple(METHODS)
    config.sweep.seeds = (0,)
    return config


def runs_of(config):
    """`{run's name: (method, depth, seed)}`, the shallowest networks first."""
    sections = itertools.product(config.sweep.depths, config.sweep.methods, config.sweep.seeds)
    return {
        re.sub(r"[^\w-]+", "_", f"resnet{depth}-{method}-seed{seed}"): (method, depth, seed) for depth, method, seed in sections
    }


def sweep(config):
    """Yields the flat overrides of each run."""
    for name, (method, depth, seed) in runs_of(config).items():
        yield {"name": name, "model.name": base.cifar_form(f"resnet{depth}"), "seed": seed, **METHODS[method]}
