"""Every key with its default: the CIFAR recipe of He et al. 2015, section 4.2. Recipes import this and override a few lines.

All durations are in steps (one step is one update).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# 50 and 152 layers exist in the ImageNet form too (6·8 + 2 and 6·25 + 2); the suffix asks for the CIFAR form.
SHARED_DEPTHS = ("plain50", "plain152", "resnet50", "resnet152")


def cifar_form(name):
    """The name that asks for the CIFAR form: "resnet56" stays, "resnet152" becomes "resnet152_cifar"."""
    return f"{name}_cifar" if name in SHARED_DEPTHS else name


def use_small_form(config, name):
    """Makes a config's network `name`, in the form for small images."""
    config.model.name = cifar_form(name)
    if name.startswith(("vgg", "googlenet")):
        config.model.form = "small"


def get_config():
    config = ConfigDict()
    config.seed = 0  # of initialisation, order of examples and augmentation

    # jit | pmap: how the devices share out a batch. The result is the same, but for dropout: by pmap each device draws its own.
    config.parallelism = "jit"

    config.model = ConfigDict()
    config.model.name = "resnet20"
    config.model.dtype = "float32"  # of activations: float32 | bfloat16
    # None: as published. The next seven are plain and residual networks', the last three VGG's and GoogLeNet's.
    # A: identity with zero padding; B: projection where the shape changes; C: projection everywhere
    config.model.shortcut = placeholder(str)  # A in the CIFAR form, B in the ImageNet form
    config.model.widths = placeholder(tuple)  # filters of the stages: (16, 32, 64), or (64, 128, 256, 512) in the ImageNet form
    config.model.bottleneck_stride = placeholder(str)  # 1x1 (the paper's) | 3x3 (torchvision's, "v1.5")
    config.model.pre_activation = placeholder(bool)
    config.model.normalise = placeholder(bool)  # False: without batch norm
    config.model.zero_init = placeholder(bool)  # the last scale of residual blocks begins at zero
    config.model.remat = placeholder(bool)  # keep less for the backward pass and compute it anew: less memory, more time
    config.model.form = placeholder(str)  # imagenet | small; VGG: dense, too
    config.model.dropout = placeholder(float)  # 0.5 in VGG, 0.4 in googlenet, 0.2 in googlenet_bn
    config.model.auxiliary = placeholder(bool)  # GoogLeNet's heads in the middle

    config.batch_norm = ConfigDict()
    config.batch_norm.momentum = 0.9  # running = momentum · running + (1 − momentum) · batch
    # By the whole batch; False: every device by its own share, as in He et al. 2015, section 4.2, two GPUs by 64 images each.
    config.batch_norm.sync = True
    config.batch_norm.epsilon = placeholder(float)  # None: 1e-5, in googlenet_bn 1e-3

    config.data = ConfigDict()
    # "digits"; a TFDS name; or "folder:PATH": one sub-folder of JPEG, PNG or WebP files per class, or one such folder per split
    config.data.name = "cifar10"
    config.data.dir = ""  # where TFDS sets lie and PATH begins; empty: TFDS_DATA_DIR or TFDS's default, and the current folder
    config.data.train_split = "train"  # TFDS: also a part such as "train[:80%]"; folder: the name of the split's folder
    config.data.test_split = "test"
    config.data.test_share = 0.2  # folder without split folders: the share of each class to test on
    config.data.classes = ()  # names of those to keep, at least two; (): all
    config.data.validation_examples = 0  # taken out of the training split, to choose by
    config.data.examples_per_class = 0  # train on so few; 0: on all
    config.data.split_seed = 0  # of these three choices, which are the same for every `seed`
    # auto: resident where it fits into half of a device's memory (resized pictures, whole on each device), else stream
    config.data.mode = "auto"  # auto | resident | stream
    config.data.workers = 0  # stream: processes that read pictures; 0: threads of this one
    config.data.image_size = 0  # resize the shorter side to this and cut out the middle; 0: images stay as they are
    config.data.mean = (0.4914, 0.4822, 0.4465)  # by channel, of values in [0, 1]; one number makes images grey, three RGB
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.data.augment = ConfigDict()
    # One of the first three, which all cut out a random part; none where pad is 0 and the others are ().
    config.data.augment.pad = 4  # zeros on every side, then a random crop of the original size
    config.data.augment.enlarge = ()  # (least, most): enlarged by a random factor, then a random crop of the original size
    config.data.augment.area = ()  # (least, most): a random share of the area, 3:4 to 4:3, resized to the original size
    config.data.augment.flip = True  # mirror every second image on average
    config.data.augment.color = 0.0  # RGB moves along ImageNet's principal components by normal multiples of this size

    config.train = ConfigDict()
    config.train.steps = 64_000
    config.train.batch_size = 128  # over all devices
    config.train.accumulate = 1  # in so many parts, one after another, each normalised by itself: less memory
    config.train.label_smoothing = 0.0
    config.train.warm_start = ""  # a run: layers of its network that have the same name and shape here begin as they are there
    config.train.stop_after = 0  # end early without rescaling the schedule; 0: never
    config.train.steps_per_call = 100  # steps in one compiled call
    config.train.log_every = 100
    config.train.evaluate_every = 1_000  # test and validation error
    config.train.evaluate_train_every = 0  # error on the whole training split without augmentation, also at the end; 0: never
    config.train.gradients_every = 0  # norms of the gradient at every block and of every kernel, on one batch; 0: never
    config.train.checkpoint_every = 1_000

    config.transfer = ConfigDict()  # what fine-tuning chooses
    config.transfer.weights = ""  # what the run begins with: a file, a run, or a Hugging Face repository; `finetune` sets it
    # Names of stages and layers that stay as they are, such as ("stem", "stage[12]"); ("*",) is all but the last layer.
    config.transfer.freeze = ()
    # Only the last layer is fitted, by L-BFGS, to features that are computed once, without augmentation: of the optimizer's keys
    # the weight decay counts, and train.steps is the most updates.
    config.transfer.probe = False
    config.transfer.freeze_scales = False  # batch norm's scales and biases stay
    config.transfer.freeze_statistics = False  # batch norm normalises by its running statistics, which stay
    config.transfer.rate_factor = 1.0  # each stage's learning rate is this times that of the stage after it

    config.optimizer = ConfigDict()  # SGD
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4  # added to the gradient: weight_decay · kernel (L2, before momentum)
    config.optimizer.decay_all = False  # decay biases and batch norm's parameters too, as Caffe did
    config.optimizer.schedule = ConfigDict()
    config.optimizer.schedule.name = "step"  # step | cosine (to zero at train.steps)
    config.optimizer.schedule.boundaries = (32_000, 48_000)  # step: from each of these steps on, …
    config.optimizer.schedule.factor = 0.1  # … multiplied by this
    config.optimizer.schedule.warmup_steps = 0
    # step: held during warm-up, as for ResNet-110; cosine: rises linearly from here to learning_rate.
    config.optimizer.schedule.warmup_learning_rate = 0.0
    return config
