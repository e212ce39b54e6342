"""{plain, resnet} × depths × seeds: does training error grow with depth, and do the additions repair it? (Fig. 1 and 6)

plain56 sweep --config=configs/sweeps/degradation.py --workdir=runs/degradation
plain56 sweep --config=configs/sweeps/degradation.py:cifar10 --workdir=runs/cifar10
plain56 sweep --config=configs/sweeps/degradation.py:imagenet --workdir=runs/imagenet

Other depths and seeds: --config.sweep.depths='(20,32,44,56,110)' --config.sweep.seeds='(0,1,2)'.
"""

from ml_collections import ConfigDict

from plain56.configs import base, cifar10, digits, imagenet

RECIPES = {"digits": digits, "cifar10": cifar10, "imagenet": imagenet}


def get_config(recipe="digits"):
    """`recipe`: "digits", "cifar10", or "imagenet", the last with networks in the ImageNet form."""
    if recipe not in RECIPES:
        raise ValueError(f"The recipe must be one of {', '.join(RECIPES)}, not {recipe!r}.")
    config = RECIPES[recipe].get_config()
    config.sweep = ConfigDict()
    config.sweep.depths = (18, 34) if recipe == "imagenet" else (20, 56)
    # imagenet: 18, 34, 50, 101 or 152 layers; cifar: 6n + 2 layers, including 50 and 152
    config.sweep.form = "imagenet" if recipe == "imagenet" else "cifar"
    config.sweep.seeds = (0,)
    return config


def sweep(config):
    """Yields the flat overrides of each run."""
    schedule = config.optimizer.schedule
    for family in ("plain", "resnet"):
        for depth in config.sweep.depths:
            deep = config.sweep.form == "cifar" and depth >= cifar10.DEEP  # the ImageNet form has no warm-up (section 3.4)
            needs_warmup = deep and schedule.name == "step" and schedule.warmup_steps == 0
            for seed in config.sweep.seeds:
                name = f"{family}{depth}"
                overrides = {"model.name": base.cifar_form(name) if config.sweep.form == "cifar" else name, "seed": seed}
                yield overrides | (cifar10.DEEP_WARMUP if needs_warmup else {})
