"""A linear probe: only the last layer is trained, by fitting it to features that are computed once."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from plain56.training import checkpoints, loop
from plain56.training.journal import Journal
from plain56.training.metrics import batch_totals, example_losses

FEATURES_SHARE = 0.9  # of the work; the rest is the fit
# The largest component of the gradient at which a fit counts as converged: what float32 resolves of a loss near 1.
TOLERANCE = 1e-6


def features(model, variables, images):
    """What a network's last layer gets of normalized images in evaluation mode: [N, D]."""
    seen = []

    def watch(call, arguments, named, context):
        if context.module.name == "head":
            seen.append(arguments[0])
        return call(*arguments, **named)

    with nn.intercept_methods(watch):
        model.apply(variables, images, train=False)
    return seen[0]


def fit(inputs, labels, num_classes, *, steps, weight_decay=0.0, decay_all=False, label_smoothing=0.0):
    """The last layer that minimizes the mean loss over all examples plus weight_decay / 2 · |kernel|², by L-BFGS from zero.

    With a positive `weight_decay` there is one such kernel. Without, classes that planes separate have none: the weights grow
    until the gradient is gone.

    Args:
        inputs, labels: features [N, D] and int32 [N].
        steps: updates at most.
        decay_all: the bias, too.

    Returns:
        `{"kernel": [D, num_classes], "bias": [num_classes]}`, the number of updates, and the `Totals` over the examples.
    """
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
    layer = {"kernel": jnp.zeros((inputs.shape[1], num_classes), inputs.dtype), "bias": jnp.zeros(num_classes, inputs.dtype)}
    solver = optax.lbfgs()

    def unfinished(carry):
        _, _, done, slope = carry
        return (done < steps) & (slope > TOLERANCE)

    @jax.jit
    def run(layer, inputs, labels):
        def logits_of(layer):
            return jnp.dot(inputs, layer["kernel"], precision="highest") + layer["bias"][None]

        def objective(layer):
            decayed = layer if decay_all else layer["kernel"]
            squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(decayed))
            return jnp.mean(example_losses(logits_of(layer), labels, label_smoothing)) + weight_decay / 2 * squares

        value_and_grad = optax.value_and_grad_from_state(objective)

        def update(carry):
            layer, state, done, _ = carry
            value, gradient = value_and_grad(layer, state=state)
            updates, state = solver.update(gradient, state, layer, value=value, grad=gradient, value_fn=objective)
            slope = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(optax.tree.get(state, "grad"))]))
            return optax.apply_updates(layer, updates), state, done + 1, slope

        layer, _, done, _ = jax.lax.while_loop(unfinished, update, (layer, solver.init(layer), 0, jnp.inf))
        logits = logits_of(layer)
        mask = jnp.ones(labels.shape, bool)
        return layer, done, batch_totals(example_losses(logits, labels, label_smoothing), logits, labels, mask)

    return run(layer, inputs, labels)


def train(program, run, manager, initial, on_progress):
    """Fits the last layer, and returns the run's `Status`; arguments as of `loop.train`."""
    config, examples = program.config, program.found["train"]
    state, totals = checkpoints.restore(manager, initial, set_aside=True)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # An update sees every example once: it is an epoch.
    with Journal(run, config, 0, parameters, examples, examples) as journal:

        def show(share, images_per_second):
            on_progress(journal.progress(FEATURES_SHARE * share, images_per_second))

        inputs, labels = _computed_features(program, state, show)
        loop.check_readable("train", examples - len(labels), examples)
        decay = {"weight_decay": config.optimizer.weight_decay, "decay_all": config.optimizer.decay_all}
        how = {"steps": config.train.steps, "label_smoothing": config.train.label_smoothing, **decay}
        layer, step, fitted = jax.device_get(fit(inputs, labels, len(program.dataset.class_names), **how))
        fitted_state = {"step": np.int32(step), "params": state.params | {"head": layer}}
        places = {key: jax.tree.map(lambda leaf: leaf.sharding, getattr(state, key)) for key in fitted_state}
        state = state.replace(**jax.device_put(fitted_state, places))
        journal.advance(int(step))
        journal.record("train", fitted.means())
        for split in (["train_clean"] if config.train.evaluate_train_every else []) + ["validation", "test"]:
            loop.measure(program, journal, state, split)
        journal.flush(sync=True)
        checkpoints.save(manager, int(step), (state, totals))
        journal.advance(int(step), "finished")
        journal.write_status()
        on_progress(journal.progress(1.0))
        return journal.read_status()


def _computed_features(program, state, show):
    """What the last layer gets of every readable training example, [N, D], and the labels [N], on the host."""
    computed, batch_size, begin = [], program.config.train.batch_size, time.perf_counter()
    for batch in program.features(state.params, state.batch_stats, program.dataset.train):
        computed.append((batch.images[batch.mask], batch.labels[batch.mask]))
        done = len(computed) * batch_size
        show(min(1.0, done / program.found["train"]), done / (time.perf_counter() - begin))
    return map(np.concatenate, zip(*computed, strict=True))
