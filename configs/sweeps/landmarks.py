"""The landmark networks in their forms for small images, by one recipe: what does an error cost?

plain56 sweep --config=configs/sweeps/landmarks.py --workdir=runs/landmarks
plain56 sweep --config=configs/sweeps/landmarks.py:cifar10 --workdir=runs/landmarks
"""

from ml_collections import ConfigDict

from plain56.configs import cifar10, digits

RECIPES = {"digits": digits, "cifar10": cifar10}


def get_config(recipe="digits"):
    """`recipe`: "digits" or "cifar10"."""
    if recipe not in RECIPES:
        raise ValueError(f"The recipe must be one of {', '.join(RECIPES)}, not {recipe!r}.")
    config = RECIPES[recipe].get_config()
    config.sweep = ConfigDict()
    config.sweep.networks = ("vgg16_bn", "googlenet_bn", "resnet20", "resnet56")
    config.sweep.seeds = (0,)
    config.sweep.recipe = recipe
    return config


def sweep(config):
    """Yields the flat overrides of each run, with the network's rate, decay and warm-up in the recipe."""
    recipe = RECIPES[config.sweep.recipe]
    for name in config.sweep.networks:
        own, common = recipe.get_config(name), recipe.get_config()
        keys = ("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.schedule.warmup_steps")
        keys += ("optimizer.schedule.warmup_learning_rate", "model.form")
        overrides = {key: _value(own, key) for key in keys if _value(own, key) != _value(common, key)}
        for seed in config.sweep.seeds:
            yield {"name": f"{own.model.name}-seed{seed}", "model.name": own.model.name, "seed": seed, **overrides}


def _value(config, key):
    for part in key.split("."):
        config = config[part]
    return config
