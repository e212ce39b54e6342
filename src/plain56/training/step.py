"""The mathematics of one update, and many updates in one compiled call."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from plain56.data import DROPOUT_STREAM, SURVIVAL_STREAM, augmented, stream_key, train_batch, visiting_order
from plain56.training.metrics import batch_totals, example_losses, minimized_losses
from plain56.training.state import TrainState
from plain56.training.transfer import split


class Update(NamedTuple):
    """What every update of a run is made of.

    accumulate: the batch goes through the network in so many parts, one after another, in as much less memory. The update is by
        the gradient of the whole batch, but batch norm normalizes each part by its own statistics, and running statistics take
        the mean of the parts'. Part k has the slots k, k + accumulate, …
    is_trained: of `transfer.Plan`; other parameters have no gradient, and stay.
    axis_name: of the devices that each compute an update with a share of the batch. All make the same update, by the gradient of
        the whole batch; running statistics take the mean of the devices'. A device draws its own dropout.
    """

    model: Any
    optimizer: Any
    seed: int
    label_smoothing: float = 0.0
    accumulate: int = 1
    is_trained: Any = None
    axis_name: str | None = None


class Start(NamedTuple):
    """Where a call of `train_steps` begins: a step, and the place of its first batch, in whole epochs and examples of the next.

    As one number, that place would outgrow 32 bits in long runs.
    """

    step: Any
    epoch: Any
    position: Any


class Feed(NamedTuple):
    """How `train_steps` makes batches of a resident split.

    `data` is the config's section; a call makes at most `most_steps` updates; `split_batch` shares a batch out among the devices
    where the program sees whole batches.
    """

    data: Any
    batch_size: int
    most_steps: int
    split_batch: Any


def train_step(state, batch, update):
    """One update: `(state, batch) -> (state, totals)`. The totals describe the state before the update, in training mode.

    Auxiliary heads add 0.3 times their loss to what is minimized; the totals are those of the last layer only. Dropout and
    stochastic depth are pure functions of the seed and the state's step. The same function serves one device and many: over a
    batch that is shared out by the compiler, sums and batch statistics are global.
    """
    is_trained, axis_name = update.is_trained, update.axis_name
    moving, fixed = (state.params, {}) if is_trained is None else split(state.params, is_trained)
    moving = moving if is_trained is None else traverse_util.unflatten_dict(moving)
    examples = jnp.sum(batch.mask)
    key, survival = (stream_key(update.seed, stream, state.step) for stream in (DROPOUT_STREAM, SURVIVAL_STREAM))
    if axis_name:
        examples = jax.lax.psum(examples, axis_name)
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def whole(moving):
        return moving if is_trained is None else traverse_util.unflatten_dict(fixed | traverse_util.flatten_dict(moving))

    def loss_fn(moving, part, key):
        variables = {"params": whole(moving), "batch_stats": state.batch_stats}
        rngs = {"dropout": key, "survival": survival}  # a block is left out for the whole batch, on all devices
        output, changes = update.model.apply(variables, part.images, train=True, mutable=["batch_stats"], rngs=rngs)
        losses = example_losses(output.logits, part.labels, update.label_smoothing)
        minimized = minimized_losses(output, part.labels, update.label_smoothing)
        loss = jnp.sum(jnp.where(part.mask, minimized, 0)) / examples
        return loss, (changes.get("batch_stats", {}), batch_totals(losses, output.logits, part.labels, part.mask))

    gradient_fn, parts = jax.grad(loss_fn, has_aux=True), update.accumulate
    sums = gradient_fn(moving, batch, key) if parts == 1 else _sum_over_parts(gradient_fn, moving, batch, key, parts)
    gradients, (batch_stats, totals) = sums
    batch_stats = jax.tree.map(lambda total: total / parts, batch_stats)
    if axis_name:
        gradients, totals = jax.lax.psum((gradients, totals), axis_name)
        batch_stats = jax.lax.pmean(batch_stats, axis_name)
    updates, optimizer_state = update.optimizer.update(gradients, state.optimizer_state, moving)
    params = whole(optax.apply_updates(moving, updates))
    return TrainState(state.step + 1, params, batch_stats, optimizer_state), totals


def _sum_over_parts(function, params, batch, key, parts):
    """The sum of `function(params, part, key)` over the parts of a batch."""
    # Strided, so that every device has an equal share of each part.
    batches = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.random.split(key, parts)

    def add(total, part_and_key):
        return jax.tree.map(jnp.add, total, function(params, *part_and_key)), None

    shapes = jax.eval_shape(function, params, *jax.tree.map(operator.itemgetter(0), (batches, keys)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (batches, keys))[0]


def train_steps(state, totals, split, start, steps, *, update, feed):
    """Many updates in one compiled loop, with the batches made on the devices.

    The number of updates is an argument of the program: it is compiled once, and a run gives the same bits however it is cut
    into calls.

    Args:
        totals: added to.
        split: the resident train split.
        start: its step is the state's, unless an earlier call stopped short.
        steps: the number of updates, int32, at most `feed.most_steps`.
    """
    part, parts = _part(update.axis_name)
    examples = feed.batch_size // parts

    def body(i, carry):
        state, totals = carry
        first = start.position + i * feed.batch_size + part * examples
        indices = jax.lax.dynamic_slice(order, (first,), (examples,))
        batch = train_batch(split, indices, update.seed, state.step, feed.data, part, parts)
        batch = batch if update.axis_name else feed.split_batch(batch)
        return _kept_finite(state, totals, start.step + i, *train_step(state, batch, update))

    order = visiting_order(update.seed, start.epoch, split.labels.shape[0], feed.most_steps * feed.batch_size)
    return jax.lax.fori_loop(0, steps, body, (state, totals))


def streamed_step(state, totals, batch, step, *, update, data):
    """One update, number `step`, with a batch of `train_stream`, or a device's share of it; as `train_steps`."""
    batch = augmented(batch, update.seed, step, data, *_part(update.axis_name))
    return _kept_finite(state, totals, step, *train_step(state, batch, update))


def _part(axis_name):
    """Which part of a batch this device makes, and how many there are."""
    return (jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)) if axis_name else (0, 1)


def _kept_finite(state, totals, step, new_state, new_totals):
    """State and totals after update number `step`, from those before it and what the update gives.

    When it would leave anything non-finite, the state stays as it was before that update, for good: `state.step` is
    then behind the number of steps asked for, and names the step.
    """
    changed = jax.tree.leaves((new_totals.loss, new_state.params, new_state.batch_stats))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in changed]))
    goes_on = (state.step == step) & finite
    new = new_state, jax.tree.map(jnp.add, totals, new_totals)
    # On a CPU, a branch compiles in less time. On a GPU, it would wait for the host.
    return jax.lax.platform_dependent(goes_on, new, (state, totals), cpu=_branch, default=_select)


def _branch(condition, new, old):
    return jax.lax.cond(condition, lambda new, old: new, lambda new, old: old, new, old)


def _select(condition, new, old):
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)
