"""{repairs of deep networks} × depths × learning rates: which of them make a plain network trainable? (docs/atlas.md)

python -m plain56.experiments.repairs
plain56 sweep --config=configs/sweeps/repairs.py:full --workdir=runs/repairs_grid

The experiment runs this sweep twice: the grid, from which it chooses each repair's learning rate at each depth, by the loss of
200 validation digits with a seed that no result has; and then the results, with the chosen rates, on all training digits.
"""

import itertools
import re

from ml_collections import ConfigDict

from plain56.configs import base, cifar10, digits

PLAIN, RESIDUAL = "plain", "resnet"
NO_NORM = {"model.normalization": "none"}
ISOMETRIC = {"model.initializer": "delta_orthogonal", **NO_NORM}
# Each with its family and what it overrides; `src/plain56/models/repairs.py` and `training/optimizer.py` have the sources.
REPAIRS = {
    "nothing": (PLAIN, {}),
    "leaky ReLU, slope 0.5": (PLAIN, {"model.activation": "leaky_relu", "model.negative_slope": 0.5}),
    "leaky ReLU, slope 0.8": (PLAIN, {"model.activation": "leaky_relu", "model.negative_slope": 0.8}),
    "group norm": (PLAIN, {"model.normalization": "group"}),
    "layer norm": (PLAIN, {"model.normalization": "layer"}),
    "orthogonal initializer": (PLAIN, {"model.initializer": "orthogonal"}),
    "Dirac initializer": (PLAIN, {"model.initializer": "dirac"}),
    "DiracNet kernels": (PLAIN, {"model.kernel": "dirac"}),
    "tanh, delta-orthogonal, no norm": (PLAIN, {"model.activation": "tanh", **ISOMETRIC}),
    "TAT, delta-orthogonal, no norm": (PLAIN, {"model.activation": "tat", **ISOMETRIC}),
    "gradient clipped at 1": (PLAIN, {"optimizer.clip_norm": 1.0}),
    "Adam": (PLAIN, {"optimizer.name": "adam"}),
    "LARS": (PLAIN, {"optimizer.name": "lars"}),
    "Muon": (PLAIN, {"optimizer.name": "muon"}),
    "skip connections": (RESIDUAL, {}),
    "skip connections, Fixup, no norm": (RESIDUAL, {"model.fixup": True, **NO_NORM}),
    "skip connections, learned zero, no norm": (RESIDUAL, {"model.branch_scale": "learned_zero", **NO_NORM}),
    "skip connections, 1/√blocks, no norm": (RESIDUAL, {"model.branch_scale": "inverse_sqrt_blocks", **NO_NORM}),
    "skip connections, gradient clipped at 1": (RESIDUAL, {"optimizer.clip_norm": 1.0}),
    "skip connections, Adam": (RESIDUAL, {"optimizer.name": "adam"}),
    "skip connections, LARS": (RESIDUAL, {"optimizer.name": "lars"}),
    "skip connections, Muon": (RESIDUAL, {"optimizer.name": "muon"}),
}
# Of SGD; half a decade apart. The other optimizers' steps are of another size.
RATES = (0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316)
FACTORS = {"adam": 0.1, "muon": 0.1, "lars": 30.0}
CHOOSING_SEED = 100


# The best repairs on digits at 56 layers, and two to compare with.
BEST = (
    "nothing",
    "leaky ReLU, slope 0.5",
    "leaky ReLU, slope 0.8",
    "Dirac initializer",
    "DiracNet kernels",
    "tanh, delta-orthogonal, no norm",
    "LARS",
    "skip connections",
)
FORMS = {
    "small": {"depths": (56,), "seeds": (0,)},
    "full": {"depths": (20, 56, 110), "seeds": (0, 1, 2)},
    "cifar10": {"depths": (56,), "seeds": (0,)},
}


def get_config(form="small"):
    """`form`: "small", 56 layers with one seed; "full", three depths with three seeds; or "cifar10", `BEST` with one seed."""
    if form not in FORMS:
        raise ValueError(f"The form must be one of {', '.join(FORMS)}, not {form!r}.")
    config = digits.get_config("plain56")
    if form == "cifar10":
        schedule = config.optimizer.schedule
        config = cifar10.get_config("plain56")
        config.train.steps = 2_000
        config.train.log_every = config.train.steps_per_call = 50
        config.optimizer.schedule = schedule
        config.optimizer.schedule.warmup_steps = config.train.steps // 10  # as on digits
    config.train.evaluate_every = config.train.checkpoint_every = config.train.steps
    config.sweep = ConfigDict(FORMS[form])  # seeds are of the results
    config.sweep.repairs = BEST if form == "cifar10" else tuple(REPAIRS)
    config.sweep.rates = RATES
    config.sweep.choose = form == "full"  # the rates; otherwise the experiment takes those of the kept table
    config.sweep.runs = ()  # (repair, depth, rate, seed) of each run; (): the grid
    return config


def grid(config):
    """`(repair, depth, rate, seed)` of the runs from which rates are chosen, the shallowest networks first."""
    sections = itertools.product(config.sweep.depths, config.sweep.repairs, config.sweep.rates)
    return [(repair, depth, rate, CHOOSING_SEED) for depth, repair, rate in sections]


def name_of(repair, depth, rate, seed):
    """The name of a run."""
    return re.sub(r"[^\w.,=-]+", "_", f"{REPAIRS[repair][0]}{depth}-{repair}-{rate:g}-seed{seed}")


def sweep(config):
    """Yields the flat overrides of each run. A rate is SGD's; other optimizers take a multiple of it."""
    for repair, depth, rate, seed in config.sweep.runs or grid(config):
        family, own = REPAIRS[repair]
        yield {
            "name": name_of(repair, depth, rate, seed),
            "model.name": base.cifar_form(f"{family}{depth}"),
            "seed": seed,
            "optimizer.learning_rate": float(f"{rate * FACTORS.get(own.get('optimizer.name'), 1.0):.3g}"),
            **({"data.validation_examples": 200} if seed == CHOOSING_SEED else {}),
            **own,
        }
