"""CIFAR-10 as in He et al. 2015, section 4.2. Trains on all 50,000 images; the result is the test error of the last step.

To make choices, train on 45,000 images and compare on the other 5,000: --config.data.validation_examples=5000.

    TFDS_DATA_DIR=FOLDER plain56 train --config=configs/cifar10.py:resnet56 --workdir=runs/resnet56

FOLDER holds cifar10 prepared for TFDS. Test error in the paper (Table 6): ResNet-20 8.75 %, -32 7.51 %, -44 7.17 %, -56 6.97 %,
-110 6.43 %; plain networks get worse with depth, and plain-110 stays above 60 % (section 4.2).
"""

import re

from plain56.configs import base

# "0.1 is slightly too large to start converging" at 110 layers: 0.01 for about 400 iterations (section 4.2).
DEEP = 110
DEEP_WARMUP = {"optimizer.schedule.warmup_steps": 400, "optimizer.schedule.warmup_learning_rate": 0.01}


def get_config(name="resnet20"):
    """`name`: plainN or resnetN with N = 6n + 2, in the CIFAR form, or a VGG or GoogLeNet, in the form for small images."""
    config = base.get_config()
    base.use_small_form(config, name)
    depth = re.search(r"\d+", name)
    if depth and base.family(name) in ("plain", "resnet") and int(depth[0]) >= DEEP:
        config.update_from_flattened_dict(DEEP_WARMUP)
    if config.model.form == "small":
        # Rate and weight decay of these networks on ImageNet, as in configs/imagenet.py; without batch norm they begin slowly.
        config.optimizer.learning_rate = 0.01
        config.optimizer.weight_decay = 5e-4 if name.startswith("vgg") else 2e-4
        if not name.endswith("_bn"):
            config.optimizer.schedule.warmup_steps = 400
            config.optimizer.schedule.warmup_learning_rate = 0.001
    return config
