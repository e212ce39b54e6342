"""{plain, resnet} × depths × seeds: does training error grow with depth, and do the additions repair it? (Fig. 1 and 6)

python launch.py sweep --config=configs/sweeps/degradation.py --workdir=runs/degradation
python launch.py sweep --config=configs/sweeps/degradation.py:cifar10 --workdir=runs/cifar10

Other depths and seeds: --config.sweep.depths='(20,32,44,56,110)' --config.sweep.seeds='(0,1,2)'.
"""

from ml_collections import ConfigDict

from configs import base, cifar10, digits

RECIPES = {"digits": digits, "cifar10": cifar10}


def get_config(recipe="digits"):
    """`recipe`: "digits" or "cifar10"."""
    if recipe not in RECIPES:
        raise ValueError(f"There is no recipe {recipe!r} for this sweep; allowed are {', '.join(RECIPES)}.")
    config = RECIPES[recipe].get_config()
    config.sweep = ConfigDict()
    config.sweep.depths = (20, 56)  # 6n + 2 layers
    config.sweep.seeds = (0,)
    return config


def sweep(config):
    """Yields the flat overrides of each run."""
    schedule = config.optimizer.schedule
    for family in ("plain", "resnet"):
        for depth in config.sweep.depths:
            needs_warmup = schedule.name == "step" and schedule.warmup_steps == 0 and depth >= cifar10.DEEP
            for seed in config.sweep.seeds:
                overrides = {"model.name": base.cifar_form(f"{family}{depth}"), "seed": seed}
                yield overrides | (cifar10.DEEP_WARMUP if needs_warmup else {})
