"""Training a network further on a small data set: `plain56 finetune`.

    plain56 finetune --config=configs/finetune.py --weights=timm/resnet50.tv_in1k --model=resnet50 \\
        --config.data.name=folder:PATH --workdir=runs/finetuned

The last layer is new and random, with as many outputs as the data set has classes. --config.transfer.freeze="('*',)" trains only
that layer, "('stem','stage[12]')" all but the first stages, and --config.transfer.rate_factor=0.5 halves the learning rate from
each stage to the one before it. configs/finetune.py:probe fits the last layer to features that are computed once. The rest is
common practice, not a paper's: a small rate that falls as a cosine, and crops that keep most of a picture.
"""

from plain56.configs import base


def get_config(approach="all"):
    """`approach`: "all" trains all layers further, "probe" only the last one, on pictures as they are."""
    config = base.get_config()
    config.model.name = "resnet50"
    config.data.name = ""
    config.data.augment.pad = 0
    config.data.augment.area = (0.35, 1.0)
    if approach == "probe":
        config.transfer.probe = True
        config.data.augment.area, config.data.augment.flip = (), False
    elif approach != "all":
        raise ValueError(f"The approach must be all or probe, not {approach!r}.")
    config.train.steps = 1_000
    config.train.batch_size = 32
    config.train.evaluate_every = config.train.checkpoint_every = 250
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 50
    return config
