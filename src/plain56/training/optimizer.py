"""The optimizer and its learning rate by step. The update made at step k (after k updates) uses `schedule(k)`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from plain56.errors import UserError
from plain56.models.stack import is_stacked
from plain56.references import call, check_options, is_reference
from plain56.training.transfer import scale_rates


def make_schedule(options, steps):
    """Builds `step -> learning rate` from the config's `optimizer` section.

    "step": the rate is multiplied by `factor` at each boundary and held at `warmup_learning_rate` during warm-up (He et al. 2015,
    section 4.2). "cosine": a linear rise from `warmup_learning_rate` during warm-up, then half a cosine to zero at `steps`.
    """
    schedule, peak, warmup_steps = options.schedule, options.learning_rate, options.schedule.warmup_steps
    if schedule.name == "cosine":
        return optax.warmup_cosine_decay_schedule(schedule.warmup_learning_rate, peak, warmup_steps, steps)
    decayed = optax.piecewise_constant_schedule(peak, dict.fromkeys(schedule.boundaries, schedule.factor))
    return lambda step: jnp.where(step < warmup_steps, schedule.warmup_learning_rate, decayed(step))


def make_optimizer(config, schedule, rate_multiple=None):
    """The optax transformation of a config's `optimizer` section: the gradient is clipped first, then the optimizer takes it.

    Args:
        config: the section. Its own section `options` goes to the optimizer as keywords.
        rate_multiple: of `transfer.Plan`; None for one rate.

    Raises UserError where the optimizer does not take these options, or is a user's own and is not there or fails.
    """
    options = config.options.to_dict()
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    scale = [scale_rates(rate_multiple)] if rate_multiple else []
    return optax.chain(*clip, *_parts(config, schedule, options), *scale)


def _parts(config, schedule, options):
    if is_reference(config.name):
        optimizer = call(config.name, "optimizer.name", (schedule,), options, "optimizer.options")
        if not isinstance(optimizer, optax.GradientTransformation):
            raise UserError(f"{config.name} must return an optax.GradientTransformation, not {type(optimizer).__name__}.")
        return (optimizer,)
    arguments = schedule, Decay(config.weight_decay, None if config.decay_all else _are_kernels), config.momentum
    check_options(OPTIMIZERS[config.name], config.name, arguments, options, "optimizer.options")
    return OPTIMIZERS[config.name](*arguments, **options)


class Decay(NamedTuple):
    """Weight decay: its strength, and `parameters -> which of them decay`, or None for all of them, as in Caffe."""

    strength: float
    mask: Callable | None


def _are_kernels(params):
    # By name, since stacked blocks give biases and scales a second axis.
    return traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", params)


def sgd(schedule, decay, momentum, *, nesterov=False):
    """v ← momentum · v + (gradient + decay · w), w ← w − rate · v: weight decay is L2 inside the gradient, before momentum."""
    return optax.add_decayed_weights(*decay), optax.sgd(schedule, momentum, nesterov)


def adam(schedule, decay, _, *, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, with weight decay inside the gradient."""
    return optax.add_decayed_weights(*decay), optax.adam(schedule, b1, b2, eps)


def adamw(schedule, decay, _, *, b1=0.9, b2=0.999, eps=1e-8):
    """Loshchilov & Hutter 2019: w ← w − rate · (Adam's direction + decay · w)."""
    return (optax.adamw(schedule, b1, b2, eps, weight_decay=decay.strength, mask=decay.mask),)


def lars(schedule, decay, momentum, *, trust_coefficient=0.001, eps=0.0, nesterov=False):
    """You et al. 2017: the rate of each kernel is proportional to |w| / |gradient + decay · w|; of the others it is as in SGD."""
    trust = _trust_ratio(trust_coefficient, eps)
    return optax.add_decayed_weights(*decay), trust, optax.scale_by_learning_rate(schedule), optax.trace(momentum, nesterov)


def _trust_ratio(coefficient, eps):
    """Layer-wise scaling, by block where blocks are stacked."""
    rule = optax.scale_by_trust_ratio(trust_coefficient=coefficient, eps=eps)

    def scaled(update, parameter):
        return rule.update(update, rule.init(parameter), parameter)[0]

    def scale(updates, params):
        flat, scaled_by_block = traverse_util.flatten_dict(params), jax.vmap(scaled)

        def of(path, update):
            if path[-1] != "kernel":
                return update
            return (scaled_by_block if is_stacked(path) else scaled)(update, flat[path])

        return traverse_util.path_aware_map(of, updates)

    return optax.stateless(scale)


def muon(schedule, decay, momentum, *, ns_steps=5, nesterov=True, adam_b1=0.9, adam_b2=0.999, eps=1e-8):
    """Jordan et al. 2024: the momentum of each convolution's kernel, as a matrix (height · width · in, out), is orthogonalized.

    Other parameters are trained by Adam at the same rate. Weight decay is decoupled, as in `adamw`.
    """
    adams = {"adam_b1": adam_b1, "adam_b2": adam_b2, "eps": eps}
    # With rate -1 it gives a direction, to which the decay is added.
    direction = optax.contrib.muon(
        -1.0, ns_steps=ns_steps, beta=momentum, nesterov=nesterov, muon_weight_dimension_numbers=_as_matrices, **adams
    )
    return direction, optax.add_decayed_weights(*decay), optax.scale_by_learning_rate(schedule)


def _as_matrices(params):
    """The axes of each convolution's kernel that are a matrix's rows and columns, without a block axis; None for the rest."""

    def axes(path, leaf):
        is_kernel = path[-1] == "kernel" and getattr(leaf, "ndim", 0) - is_stacked(path) == 4
        return optax.contrib.MuonDimensionNumbers((-4, -3, -2), -1) if is_kernel else None

    return traverse_util.path_aware_map(axes, params)


OPTIMIZERS = {"sgd": sgd, "adam": adam, "adamw": adamw, "lars": lars, "muon": muon}
