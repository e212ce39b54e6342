"""The mathematics of one update, and many updates in one compiled call."""

import operator

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util

from plain56.data import DROPOUT_STREAM, augmented, stream_key, train_batch, visiting_order
from plain56.training.state import TrainState
from plain56.training.transfer import split

# Szegedy et al. 2014, section 5: "the losses of the auxiliary classifiers were weighted by 0.3".
AUXILIARY_WEIGHT = 0.3


class Totals(struct.PyTreeNode):
    """Sums over examples: the loss, the wrong first and first five guesses, and their number. Divided once, on the host."""

    loss: jax.Array
    top1_errors: jax.Array
    top5_errors: jax.Array
    examples: jax.Array

    @classmethod
    def zero(cls):
        integer = jnp.zeros((), jnp.int32)
        return cls(jnp.zeros(()), integer, integer, integer)

    def means(self):
        """Mean loss and errors as fractions in [0, 1], as Python numbers."""
        loss, top1_errors, top5_errors, examples = (value.item() for value in jax.device_get(jax.tree.leaves(self)))
        return {"loss": loss / examples, "top1_error": top1_errors / examples, "top5_error": top5_errors / examples}


def example_losses(logits, labels, label_smoothing=0.0):
    """Cross entropy of each example [B], against (1 − smoothing) on the label plus smoothing spread over all classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def minimised_losses(output, labels, label_smoothing=0.0):
    """What training minimises, of each example [B]: the last layer's loss, plus 0.3 times that of each auxiliary head."""
    auxiliary = [example_losses(logits, labels, label_smoothing) for logits in output.auxiliary_logits]
    return example_losses(output.logits, labels, label_smoothing) + AUXILIARY_WEIGHT * sum(auxiliary)


def count(losses, logits, labels, mask):
    """The totals of one batch without its masked slots. Ties go to the lower class, as with argmax; a NaN puts the label last."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    later = jnp.arange(logits.shape[-1])[None] > labels[:, None]
    # Counting the classes that are surely behind, so that a NaN puts the label last and equal logits are ranked by class.
    behind = jnp.sum((logits < own) | ((logits == own) & later), axis=-1)
    rank = logits.shape[-1] - 1 - behind
    return Totals(
        jnp.sum(jnp.where(mask, losses, 0)).astype(jnp.float32),
        jnp.sum(mask & (rank >= 1), dtype=jnp.int32),
        jnp.sum(mask & (rank >= 5), dtype=jnp.int32),
        jnp.sum(mask, dtype=jnp.int32),
    )


def train_step(state, batch, *, model, optimizer, seed, label_smoothing=0.0, accumulate=1, axis_name=None, is_trained=None):
    """One update: `(state, batch) -> (state, totals)`. The totals describe the state before the update, in training mode.

    Auxiliary heads add 0.3 times their loss to what is minimised; the totals are the last layer's alone. Dropout is a pure
    function of the seed and the state's step. The same function for one device and for many: over a batch that is shared out by
    the compiler, sums and batch statistics are global.

    Args:
        accumulate: in so many parts the batch goes through the network, one after another, in as much less memory. The update
            is by the gradient of the whole batch, but batch norm normalises each part by its own statistics, and running
            statistics take the mean of the parts'. Part k has the slots k, k + accumulate, …
        axis_name: of the devices that call this each with a share of the batch. All make the same update, by the gradient of
            the whole batch; running statistics take the mean of the devices'. A device draws its own dropout.
        is_trained: of `transfer.is_trained`: the other parameters have no gradient, and stay.
    """
    moving, fixed = (state.params, {}) if is_trained is None else split(state.params, is_trained)
    moving = moving if is_trained is None else traverse_util.unflatten_dict(moving)
    examples = jnp.sum(batch.mask)
    key = stream_key(seed, DROPOUT_STREAM, state.step)
    if axis_name:
        examples = jax.lax.psum(examples, axis_name)
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def whole(moving):
        return moving if is_trained is None else traverse_util.unflatten_dict(fixed | traverse_util.flatten_dict(moving))

    def loss_fn(moving, part, key):
        variables = {"params": whole(moving), "batch_stats": state.batch_stats}
        output, changes = model.apply(variables, part.images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        losses = example_losses(output.logits, part.labels, label_smoothing)
        minimised = minimised_losses(output, part.labels, label_smoothing)
        loss = jnp.sum(jnp.where(part.mask, minimised, 0)) / examples
        return loss, (changes.get("batch_stats", {}), count(losses, output.logits, part.labels, part.mask))

    gradient_fn = jax.grad(loss_fn, has_aux=True)
    gradients, (batch_stats, totals) = _sum_over_parts(gradient_fn, moving, batch, key, accumulate)
    batch_stats = jax.tree.map(lambda total: total / accumulate, batch_stats)
    if axis_name:
        gradients, totals = jax.lax.psum((gradients, totals), axis_name)
        batch_stats = jax.lax.pmean(batch_stats, axis_name)
    update = optax.with_extra_args_support(optimizer).update
    updates, optimizer_state = update(gradients, state.optimizer_state, moving, layers=tuple(state.params))
    params = whole(optax.apply_updates(moving, updates))
    return TrainState(state.step + 1, params, batch_stats, optimizer_state), totals


def _sum_over_parts(function, params, batch, key, count):
    """The sum of `function(params, part, key)` over the parts of a batch."""
    if count == 1:
        return function(params, batch, key)
    # Strided, so that every device has an equal share of each part.
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.random.split(key, count)

    def add(total, part_and_key):
        return jax.tree.map(jnp.add, total, function(params, *part_and_key)), None

    shapes = jax.eval_shape(function, params, *jax.tree.map(operator.itemgetter(0), (parts, keys)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (parts, keys))[0]


def _all_finite(tree):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def train_steps(
    state,
    totals,
    split,
    first_step,
    first_epoch,
    first_position,
    steps,
    *,
    most_steps,
    step_fn,
    seed,
    batch_size,
    data,
    place_batch,
    axis_name=None,
):
    """Many updates in one compiled loop, with the batches made on the devices.

    The number of updates is no constant of the program: one compilation serves every call, and a run gives the same bits
    however it is cut into calls.

    Args:
        totals: added to.
        split: the resident train split.
        first_step: the state's step, unless an earlier call stopped short.
        first_epoch, first_position: where the first batch begins, in whole epochs and examples of the next one: as one number
            it would outgrow 32 bits in long runs.
        steps: the number of updates, int32, at most `most_steps`.
        step_fn: `(state, batch) -> (state, totals)`.
        place_batch: `batch -> batch`, puts it on the mesh.
        axis_name: of the devices that call this each, and make their shares of the batches.
    """
    part, parts = _part(axis_name)
    examples = batch_size // parts

    def body(i, carry):
        state, totals = carry
        indices = jax.lax.dynamic_slice(order, (first_position + i * batch_size + part * examples,), (examples,))
        batch = place_batch(train_batch(split, indices, seed, state.step, data, part, parts))
        return _update(state, totals, batch, first_step + i, step_fn)

    order = visiting_order(seed, first_epoch, split.labels.shape[0], most_steps * batch_size)
    return jax.lax.fori_loop(0, steps, body, (state, totals))


def streamed_step(state, totals, batch, step, *, step_fn, seed, data, axis_name=None):
    """One update with a batch of `train_stream`, or a device's share of it; arguments as in `train_steps`."""
    return _update(state, totals, augmented(batch, seed, step, data, *_part(axis_name)), step, step_fn)


def _part(axis_name):
    """Which part of a batch this device makes, and how many there are."""
    return (jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)) if axis_name else (0, 1)


def _update(state, totals, batch, step, step_fn):
    """State and totals after update number `step`.

    When an update would leave anything non-finite, the state stays as it was before that update, for good: `state.step` is
    then behind the number of steps asked for, and names the step.
    """
    new_state, new_totals = step_fn(state, batch)
    finite = _all_finite((new_totals.loss, new_state.params, new_state.batch_stats))
    goes_on = (state.step == step) & finite
    new = new_state, jax.tree.map(jnp.add, totals, new_totals)
    return jax.tree.map(lambda old, new: jnp.where(goes_on, new, old), (state, totals), new)
