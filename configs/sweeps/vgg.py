"""VGG's configurations A to E at the training scales of Simonyan & Zisserman 2014, Table 3.

python -m plain56.experiments.vgg_table3
python -m plain56.experiments.vgg_table3 --config=configs/sweeps/vgg.py:imagenet --workdir=runs/vgg
"""

from ml_collections import ConfigDict

from plain56.configs import digits, imagenet

# The paper's letters.
NETWORKS = {"A": "vgg11", "A-LRN": "vgg11_lrn", "B": "vgg13", "C": "vgg16_1x1", "D": "vgg16", "E": "vgg19"}
# The shorter side, fixed or drawn from a range, of the training images from which 224×224 pixels are cropped.
SCALES = {"256": (256, 256), "384": (384, 384), "256-512": (256, 512)}


def get_config(recipe="digits"):
    """`recipe`: "digits", whose 8×8 images take the place of 224×224, or "imagenet"."""
    if recipe not in ("digits", "imagenet"):
        raise ValueError(f"The recipe must be digits or imagenet, not {recipe!r}.")
    config = imagenet.get_config("vgg11") if recipe == "imagenet" else digits.get_config("vgg11")
    config.sweep = ConfigDict()
    config.sweep.scales = {letter: tuple(SCALES) if letter in "CDE" else ("256",) for letter in NETWORKS}
    if recipe == "digits":
        # As in configs/cifar10.py for VGG.
        config.optimizer.learning_rate, config.optimizer.weight_decay = 0.01, 5e-4
        config.data.augment.pad = 0
        config.train.steps, config.train.batch_size = 300, 64
        config.train.evaluate_every = config.train.checkpoint_every = 100
        config.optimizer.schedule.warmup_steps = 30
    return config


def sweep(config):
    """Yields the flat overrides of each run."""
    for letter, scales in config.sweep.scales.items():
        for scale in scales:
            enlarge = tuple(side / 224 for side in SCALES[scale])
            yield {"name": f"{letter}-{scale}", "model.name": NETWORKS[letter], "seed": 0, "data.augment.enlarge": enlarge}
