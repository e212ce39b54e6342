"""{plain, resnet} × depths × seeds: does training error grow with depth, and do the additions repair it? (Fig. 1 and 6)

plain56 sweep --config=configs/sweeps/degradation.py --workdir=runs/degradation
plain56 sweep --config=configs/sweeps/degradation.py:cifar10_short --workdir=runs/cifar10_short
plain56 sweep --config=configs/sweeps/degradation.py:cifar10 --workdir=runs/cifar10
plain56 sweep --config=configs/sweeps/degradation.py:imagenet --workdir=runs/imagenet

Other depths and seeds: --config.sweep.depths='(20,32,44,56,110)' --config.sweep.seeds='(0,1,2)'.
"""

import itertools

from ml_collections import ConfigDict

from plain56.configs import base, cifar10, digits, imagenet

RECIPES = {"digits": digits, "cifar10_short": cifar10, "cifar10": cifar10, "imagenet": imagenet}


def get_config(recipe="digits"):
    """`recipe`: "digits"; "cifar10", the paper's, or "cifar10_short" for two cores; or "imagenet", with networks of that form."""
    if recipe not in RECIPES:
        raise ValueError(f"The recipe must be one of {', '.join(RECIPES)}, not {recipe!r}.")
    config = RECIPES[recipe].get_config()
    if recipe == "cifar10_short":
        _shorten(config)
    config.sweep = ConfigDict()
    config.sweep.depths = {"digits": (20, 56), "imagenet": (18, 34)}.get(recipe, (20, 56, 110, 152))
    # imagenet: 18, 34, 50, 101 or 152 layers; cifar: 6n + 2 layers, including 50 and 152
    config.sweep.form = "imagenet" if recipe == "imagenet" else "cifar"
    config.sweep.seeds = (0,)
    return config


def _shorten(config):
    """The paper's recipe in few steps: the rate rises from zero over 400 steps, and then falls along a cosine."""
    config.train.steps = 3_900  # ten epochs of 50,000 images
    config.train.log_every = config.train.steps_per_call = 65
    config.train.evaluate_every = config.train.gradients_every = 390
    config.train.checkpoint_every = 195
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 400


def sweep(config):
    """Yields the flat overrides of each run: the networks of the first seed, in the order of the depths, then of the next one."""
    schedule = config.optimizer.schedule
    for seed, depth, family in itertools.product(config.sweep.seeds, config.sweep.depths, ("plain", "resnet")):
        deep = config.sweep.form == "cifar" and depth >= cifar10.DEEP  # the ImageNet form has no warm-up (section 3.4)
        needs_warmup = deep and schedule.name == "step" and schedule.warmup_steps == 0
        name = f"{family}{depth}"
        overrides = {"model.name": base.cifar_form(name) if config.sweep.form == "cifar" else name, "seed": seed}
        yield overrides | (cifar10.DEEP_WARMUP if needs_warmup else {})
