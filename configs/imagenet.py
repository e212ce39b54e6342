"""ImageNet as in the papers of the three networks: schedules in iterations, batch size, weight decay, crops and dropout.

    TFDS_DATA_DIR=FOLDER plain56 train --config=configs/imagenet.py:resnet50 --workdir=runs/resnet50

FOLDER holds imagenet2012 prepared for TFDS. It has 180 GiB at 224 pixels and is read while the network trains, by threads or by
--config.data.workers=N processes. --config.data.name=folder:PATH takes your own pictures, whose statistics are then to be set by
--config.data.mean and --config.data.std.

All networks begin from He et al. 2015's initialization. VGG's paper drew from N(0, 0.01²) and copied layers of VGG-11 into deeper
networks (--config.train.warm_start=RUN); GoogLeNet's does not say how it began.
"""

from plain56.configs import base


def get_config(name="resnet50"):
    """`name`: a ResNet or plain network in the ImageNet form, a VGG or a GoogLeNet."""
    config = base.get_config()
    config.model.name = name
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"
    config.data.image_size = 224
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.augment.pad = 0
    config.data.augment.color = 0.1  # Krizhevsky et al. 2012, section 4.1
    config.train.evaluate_every = config.train.checkpoint_every = 5_000
    schedule = config.optimizer.schedule
    config.optimizer.learning_rate = 0.01
    if base.family(name) == "vgg":
        # Simonyan & Zisserman 2014, section 3.1: divided by 10 three times, when validation accuracy stopped improving. The paper
        # does not say when that was; these are quarters.
        config.train.steps = 370_000
        config.train.batch_size = 256
        config.optimizer.weight_decay = 5e-4
        schedule.boundaries = (92_500, 185_000, 277_500)
        config.data.augment.enlarge = (256 / 224, 512 / 224)  # the shorter side from [256, 512]
    elif base.family(name) == "googlenet":
        # Szegedy et al. 2014, section 6: 4 % less every 8 epochs. Batch, rate, decay and length are those of the reference model.
        config.train.steps = 10_000_000
        config.train.batch_size = 32
        config.optimizer.weight_decay = 2e-4
        schedule.boundaries = tuple(range(320_000, 10_000_000, 320_000))
        schedule.factor = 0.96
        config.data.augment.area = (0.08, 1.0)
    else:
        # He et al. 2015, section 3.4: divided by 10 when the error plateaus, in Fig. 4 at 15·10⁴ and 30·10⁴ iterations.
        config.train.steps = 600_000
        config.train.batch_size = 256
        config.optimizer.learning_rate = 0.1
        schedule.boundaries = (150_000, 300_000)
        config.data.augment.enlarge = (256 / 224, 480 / 224)  # the shorter side from [256, 480]
    return config
