"""Every key with its default: the CIFAR recipe of He et al. 2015, section 4.2. Recipes import this and override a few lines.

All durations are in steps (one step is one update).
"""

import re

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# 50 and 152 layers exist in the ImageNet form too (6·8 + 2 and 6·25 + 2); the suffix asks for the CIFAR form.
SHARED_DEPTHS = ("plain50", "plain152", "resnet50", "resnet152")


def cifar_form(name):
    """The name that asks for the CIFAR form: "resnet56" stays, "resnet152" becomes "resnet152_cifar"."""
    return f"{name}_cifar" if name in SHARED_DEPTHS else name


def family(name):
    """ "plain", "resnet", "vgg" or "googlenet"; "" of a user's own network, whose name has a ":"."""
    return "" if ":" in name else re.match("[a-z]*", name)[0]


def use_small_form(config, name):
    """Sets a config's network to `name`, in the form for small images."""
    config.model.name = cifar_form(name)
    if family(name) in ("vgg", "googlenet"):
        config.model.form = "small"


def get_config():
    config = ConfigDict()
    config.seed = 0  # of initialization, order of examples and augmentation

    # jit | pmap: how the devices share a batch. Results differ only in dropout, which each device draws for itself by pmap.
    config.parallelism = "jit"

    _add_model(config)
    _add_data(config)
    _add_training(config)
    return config


def _add_model(config):
    config.model = ConfigDict()
    # A published network, or a function of your own, "package.module:function", which takes (num_classes, numerics, **options).
    config.model.name = "resnet20"
    config.model.dtype = "float32"  # of activations: float32 | bfloat16
    config.model.options = ConfigDict()  # of a network of your own: any names with numbers, texts, True, False, None or tuples
    # None: as published. Most keys are for plain and residual networks, the last three for VGG and GoogLeNet.
    # A: identity with zero padding; B: projection where the shape changes; C: projection everywhere
    config.model.shortcut = placeholder(str)  # A in the CIFAR form, B in the ImageNet form
    config.model.widths = placeholder(tuple)  # filters of the stages: (16, 32, 64), or (64, 128, 256, 512) in the ImageNet form
    config.model.bottleneck_stride = placeholder(str)  # 1x1 (the paper's) | 3x3 (torchvision's, "v1.5")
    config.model.pre_activation = placeholder(bool)
    config.model.zero_init = placeholder(bool)  # the last scale of residual blocks begins at zero
    config.model.remat = placeholder(bool)  # keep less for the backward pass and recompute the rest: less memory, more time
    # Repairs, of which src/plain56/models/repairs.py has the definitions and sources; the first value is the published one.
    config.model.activation = placeholder(str)  # relu | leaky_relu | tanh | tat (plain networks)
    config.model.negative_slope = placeholder(float)  # of leaky_relu: 0.01
    config.model.normalization = placeholder(str)  # batch | group | layer | none
    config.model.initializer = placeholder(str)  # he_normal | orthogonal | delta_orthogonal | dirac
    config.model.kernel = placeholder(str)  # free | dirac
    # The next four are for residual networks. A branch is multiplied by 1 | a number | "inverse_sqrt_blocks" | "learned_zero".
    config.model.branch_scale = placeholder(object)
    config.model.shortcut_scale = placeholder(float)  # shortcuts are multiplied by this
    config.model.fixup = placeholder(bool)  # needs normalization "none"
    config.model.survival = placeholder(float)  # stochastic depth: the probability that the last block is not left out
    config.model.form = placeholder(str)  # imagenet | small; VGG: also dense
    config.model.dropout = placeholder(float)  # 0.5 in VGG, 0.4 in googlenet, 0.2 in googlenet_bn
    config.model.auxiliary = placeholder(bool)  # GoogLeNet's heads in the middle of the network

    config.batch_norm = ConfigDict()
    config.batch_norm.momentum = 0.9  # running = momentum · running + (1 − momentum) · batch
    # True: statistics of the whole batch; False: of each device's share, as of the 64 images on each GPU in He et al. 2015.
    config.batch_norm.sync = True
    config.batch_norm.epsilon = placeholder(float)  # None: 1e-5, in googlenet_bn 1e-3


def _add_data(config):
    config.data = ConfigDict()
    # "digits"; a TFDS name; or "folder:PATH", with a sub-folder of JPEG, PNG or WebP files per class, or such a folder per split
    config.data.name = "cifar10"
    config.data.dir = ""  # folder of TFDS sets or of PATH; empty: TFDS_DATA_DIR or TFDS's default, or the current folder
    config.data.train_split = "train"  # TFDS: may be a part such as "train[:80%]"; folder: the name of the split's folder
    config.data.test_split = "test"
    config.data.test_share = 0.2  # of each class to test on, in a folder without split folders
    config.data.classes = ()  # names of the classes to keep, at least two; (): all
    config.data.validation_examples = 0  # taken out of the training split, for choices
    config.data.examples_per_class = 0  # to train on; 0: all
    config.data.split_seed = 0  # draws the test share, validation and training examples, whatever `seed`
    # auto: resident if the resized pictures fit into half of a device's memory (each device holds them all), otherwise stream
    config.data.mode = "auto"  # auto | resident | stream
    config.data.workers = 0  # stream: number of processes that read pictures; 0: threads of this process
    config.data.image_size = 0  # resize the shorter side to this and crop the center; 0: images stay as they are
    config.data.mean = (0.4914, 0.4822, 0.4465)  # per channel, of values in [0, 1]; one number makes images gray, three RGB
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.data.augment = ConfigDict()
    # At most one of the first three may be set, since each takes a random crop; unset, pad is 0 and the others are ().
    config.data.augment.pad = 4  # zeros on every side, then a random crop of the original size
    config.data.augment.enlarge = ()  # (least, most): enlarge by a random factor, then a random crop of the original size
    config.data.augment.area = ()  # (least, most): crop a random share of the area, 3:4 to 4:3, resize to the original size
    config.data.augment.flip = True  # mirror every second image on average
    config.data.augment.color = 0.0  # deviation of random shifts of RGB along ImageNet's principal components


def _add_training(config):
    config.train = ConfigDict()
    config.train.steps = 64_000
    config.train.batch_size = 128  # over all devices
    config.train.accumulate = 1  # parts that a batch is divided into, each normalized by itself: more take less memory
    config.train.label_smoothing = 0.0
    config.train.warm_start = ""  # a run: the layers that have the same name and shape in its network begin with its values
    config.train.stop_after = 0  # end early without rescaling the schedule; 0: never
    config.train.steps_per_call = 100  # steps per compiled call
    config.train.log_every = 100
    config.train.evaluate_every = 1_000  # test and validation error
    config.train.evaluate_train_every = 0  # error on the whole training split without augmentation, also at the end; 0: never
    config.train.gradients_every = 0  # gradient norms at every block and of every kernel, on one batch; 0: never
    config.train.checkpoint_every = 1_000
    # What shows the records besides metrics.jsonl: "tensorboard", "wandb", functions of your own as "package.module:function".
    config.train.loggers = ("tensorboard",)

    config.transfer = ConfigDict()  # for fine-tuning
    config.transfer.weights = ""  # what the run begins with: a file, a run, or a Hugging Face repository; `finetune` sets it
    # Names of stages and layers that stay as they are, such as ("stem", "stage[12]"); ("*",) is all but the last layer.
    config.transfer.freeze = ()
    # Fit only the last layer, by L-BFGS, to features that are computed once, without augmentation. Of the optimizer's keys, only
    # the weight decay is used, and train.steps is the maximum number of updates.
    config.transfer.probe = False
    config.transfer.freeze_scales = False  # keep batch norm's scales and biases
    config.transfer.freeze_statistics = False  # normalize by batch norm's running statistics, and keep them
    config.transfer.rate_factor = 1.0  # the learning rate of each stage, as a multiple of that of the next stage

    config.optimizer = ConfigDict()
    # sgd | adam | adamw | lars | muon, or a function of your own, "package.module:function", which takes (schedule, **options)
    config.optimizer.name = "sgd"
    config.optimizer.options = ConfigDict()  # such as nesterov=True of sgd, b2 of adam, trust_coefficient of lars
    config.optimizer.clip_norm = placeholder(float)  # the largest norm of the whole gradient (Pascanu et al. 2013)
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9  # of sgd, lars and muon
    # sgd, adam, lars: L2, weight_decay · kernel is added to the gradient, before momentum; adamw, muon: decoupled, times the rate
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_all = False  # also decay biases and batch norm's parameters, as Caffe did
    config.optimizer.schedule = ConfigDict()
    config.optimizer.schedule.name = "step"  # step | cosine (to zero at train.steps)
    config.optimizer.schedule.boundaries = (32_000, 48_000)  # step: the steps at which the rate falls
    config.optimizer.schedule.factor = 0.1  # step: each multiplies the rate by this
    config.optimizer.schedule.warmup_steps = 0
    # step: the rate during warm-up, as for ResNet-110; cosine: the rate rises linearly from this to learning_rate.
    config.optimizer.schedule.warmup_learning_rate = 0.0
