"""{from scratch, linear probe, fine-tuning} × examples per class × seeds: does it help to know other classes?

python -m plain56.experiments.transfer
python -m plain56.experiments.transfer --config=configs/sweeps/transfer.py:cifar10 --workdir=runs/transfer

The experiment trains a network on half of the classes, and then runs this sweep on the other half. The seed also chooses the
examples. The rates are the usual ones for random and for trained values, not tuned.
"""

from ml_collections import ConfigDict

from plain56.configs import cifar10, digits

# The best of 1e-4, 1e-3, 1e-2, 3e-2 and 1e-1 on 2,000 validation images of CIFAR-10, with 50 and 250 examples per class.
PROBE_DECAY = 1e-3
RECIPES = {"digits": digits, "cifar10": cifar10}


def get_config(recipe="digits"):
    """`recipe`: "digits" or "cifar10"."""
    if recipe not in RECIPES:
        raise ValueError(f"The recipe must be one of {', '.join(RECIPES)}, not {recipe!r}.")
    config = RECIPES[recipe].get_config("resnet20")
    config.sweep = ConfigDict()
    config.sweep.seeds = (0, 1, 2)
    config.sweep.weights = ""  # of the network that knows the other classes, set by the experiment
    config.sweep.scratch_learning_rate = 0.1
    if recipe == "digits":
        config.sweep.source_classes, config.data.classes = ("0", "1", "2", "3", "4"), ("5", "6", "7", "8", "9")
        config.sweep.source_steps, config.train.steps = 300, 100
        config.sweep.examples_per_class = (2, 10, 50)
    else:
        config.sweep.source_classes = ("airplane", "automobile", "bird", "cat", "deer")
        config.data.classes = ("dog", "frog", "horse", "ship", "truck")
        config.sweep.source_steps, config.train.steps = 6_000, 1_000
        config.sweep.examples_per_class = (10, 50, 250)
    config.train.batch_size = 64
    config.train.evaluate_every = config.train.checkpoint_every = config.train.steps
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = config.train.steps // 20
    return config


def source(config):
    """Flat overrides that turn the sweep's config into that of the network which knows the other classes."""
    return {
        "data.classes": config.sweep.source_classes,
        "train.steps": config.sweep.source_steps,
        "train.batch_size": 128,
        "train.evaluate_every": config.sweep.source_steps,
        "train.checkpoint_every": max(1, config.sweep.source_steps // 10),
        "optimizer.learning_rate": config.sweep.scratch_learning_rate,
    }


def sweep(config):
    """Yields the flat overrides of each run."""
    approaches = {
        "scratch": {"optimizer.learning_rate": config.sweep.scratch_learning_rate},
        "probe": {"transfer.weights": config.sweep.weights, "transfer.probe": True, "optimizer.weight_decay": PROBE_DECAY}
        | {"data.augment.pad": 0, "data.augment.flip": False},  # it sees each picture once
        "finetune": {"transfer.weights": config.sweep.weights},
    }
    for examples in config.sweep.examples_per_class:
        for approach, overrides in approaches.items():
            for seed in config.sweep.seeds:
                few = {"data.examples_per_class": examples, "data.split_seed": seed, "seed": seed}
                yield {"name": f"{approach}-{examples}-seed{seed}", **few, **overrides}
