"""Shortcuts that are not the identity, in deep residual networks: He et al. 2016, "Identity Mappings", Table 1.

plain56 sweep --config=configs/sweeps/shortcuts.py --workdir=runs/shortcuts
plain56 sweep --config=configs/sweeps/shortcuts.py:cifar10 --workdir=runs/shortcuts_cifar10

Test errors of ResNet-110 on CIFAR-10 in the paper: identity 6.61 %, shortcut · 0.5 "fail", both · 0.5 12.35 %, 1×1 convolution
12.22 %, and "fail" for the plain network. Its gates and its dropout need a network of your own (docs/guide.md).
"""

from ml_collections import ConfigDict

from plain56.configs import base
from plain56.configs.sweeps.degradation import RECIPES

SHORTCUTS = {
    "identity": ("resnet", {}),
    "shortcut_halved": ("resnet", {"model.shortcut_scale": 0.5}),
    "both_halved": ("resnet", {"model.shortcut_scale": 0.5, "model.branch_scale": 0.5}),
    "convolution": ("resnet", {"model.shortcut": "C"}),
    "none": ("plain", {}),
}


def get_config(recipe="digits"):
    """`recipe`: "digits" or "cifar10"."""
    if recipe not in ("digits", "cifar10"):
        raise ValueError(f"The recipe must be digits or cifar10, not {recipe!r}.")
    config = RECIPES[recipe].get_config("resnet110")
    config.sweep = ConfigDict()
    config.sweep.depth = 110
    config.sweep.shortcuts = tuple(SHORTCUTS)
    config.sweep.seeds = (0, 1, 2)
    return config


def sweep(config):
    """Yields the flat overrides of each run."""
    for shortcut in config.sweep.shortcuts:
        family, own = SHORTCUTS[shortcut]
        name = f"{family}{config.sweep.depth}"
        for seed in config.sweep.seeds:
            yield {"name": f"{name}-{shortcut}-seed{seed}", "model.name": base.cifar_form(name), "seed": seed, **own}
