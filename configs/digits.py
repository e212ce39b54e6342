"""scikit-learn's 8×8 digits: the degradation result in minutes on two cores. Trains on all 1,348 training images.

plain56 train --config=configs/digits.py:resnet20 --workdir=runs/resnet20
"""

from plain56.configs import base


def get_config(name="resnet20"):
    """`name`: plainN or resnetN with N = 6n + 2, in the CIFAR form, or a VGG or GoogLeNet, in the form for small images."""
    config = base.get_config()
    base.use_small_form(config, name)
    config.data.name = "digits"
    config.data.mean = (0.3057,)
    config.data.std = (0.3762,)
    config.data.augment.pad = 1
    config.data.augment.flip = False  # a mirrored digit is not that digit
    config.train.steps = 400
    config.train.steps_per_call = 20
    config.train.log_every = 20
    config.train.evaluate_every = 20
    config.train.checkpoint_every = 100
    config.optimizer.learning_rate = 0.03
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 40
    return config
