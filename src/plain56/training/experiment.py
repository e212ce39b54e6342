"""A config brought to life: data on the devices, a network, and the compiled functions that train and test it."""

import copy
import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plain56 import machine, parallel
from plain56.analysis import gradients
from plain56.config import build_model, check, last_step, most_steps
from plain56.data import (
    Pictures,
    Split,
    evaluation_batch,
    evaluation_stream,
    image_shape,
    load_dataset,
    normalise,
    train_stream,
)
from plain56.errors import UserError
from plain56.training.evaluate import evaluate, evaluate_batch, measure_moments
from plain56.training.probe import features
from plain56.training.schedules import make_schedule
from plain56.training.state import create_train_state, make_optimizer
from plain56.training.step import Totals, minimised_losses, streamed_step, train_step, train_steps
from plain56.training.transfer import describe, is_trained


class Experiment(NamedTuple):
    """A config brought to life: the data set and the initial state on the devices, and the compiled functions."""

    data: dict  # the size of each split, the names of the classes and checksums of it all
    train: Split | Pictures
    validation: Split | Pictures | None
    test: Split | Pictures
    initial: Any  # (state, totals) before the first step
    schedule: Any
    stages: Any  # what of the network is trained, and how fast: `transfer.Stage`s
    train_steps: Any  # (state, totals, step, steps) -> (state, totals)
    evaluate: Any  # (params, batch_stats, split) -> totals
    measure_moments: Any  # (params, batch_stats, split) -> batch_stats
    features: Any  # (params, batch_stats, split) -> batches, on the host, of what the last layer gets
    gradients: Any  # (params, batch_stats) -> `analysis.gradients.Flow`; None where the config asks for none


def load(config):
    """Loads a config's data set, and checks that config, data and devices fit.

    Raises:
        UserError: whatever in the config does not fit the data, the devices or itself.
    """
    check(config)
    parallel.check_batch_size(config.train.batch_size, config.train.accumulate, parallel.data_mesh())
    return load_dataset(config.data)


def prepare(config):
    """Loads the data, builds the network and wraps its functions for the mesh of all devices.

    Raises:
        UserError: as `load`, or images too small for the network.
    """
    dataset = load(config)
    mesh = parallel.data_mesh()
    shape = image_shape(dataset.train, config.data)
    data = _describe(dataset, shape)
    parallel.check_same({key: value for key, value in data.items() if key != "times_crc32"})  # machines may have copies
    model = build_model(config, len(dataset.class_names))
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule, config.transfer.rate_factor)
    everywhere = parallel.replicated(mesh)
    compile_ = functools.partial(jax.jit, out_shardings=everywhere, compiler_options=machine.compiler_options())
    functions = _streamed if isinstance(dataset.train, Pictures) else _resident
    if functions is _resident:
        dataset = dataset._replace(**parallel.hold_everywhere(_splits(dataset), mesh))
    train_steps, evaluate, measure_moments = functions(config, dataset, model, optimizer, mesh, compile_)
    initial = compile_(lambda: initial_state(model, optimizer, config, shape))()
    return Experiment(
        data=data,
        train=dataset.train,
        validation=dataset.validation,
        test=dataset.test,
        initial=initial,
        schedule=schedule,
        stages=describe(initial[0].params, config.transfer),
        train_steps=train_steps,
        evaluate=evaluate,
        measure_moments=measure_moments,
        features=_features(config, model, mesh, compile_),
        gradients=_gradients(config, model, dataset.train, shape, mesh, compile_) if config.train.gradients_every else None,
    )


def _resident(config, dataset, model, optimizer, mesh, compile_):
    """The functions of an `Experiment` whose data set lies on the devices."""
    batch_size = config.train.batch_size
    shared = {"batch_size": batch_size, "data": config.data}
    place_batch = functools.partial(parallel.split_batch, mesh=mesh)
    axis_name, step_options = _step_options(config, model, optimizer)
    many_steps = functools.partial(
        train_steps,
        most_steps=most_steps(config),
        step_fn=functools.partial(train_step, seed=config.seed, **step_options),
        seed=config.seed,
        place_batch=(lambda batch: batch) if axis_name else place_batch,
        axis_name=axis_name,
        **shared,
    )
    compiled = _compile(many_steps, config, mesh, compile_, axis_name, batch_is_shared=False)

    def run_steps(state, totals, step, steps):
        first_epoch, first_position = divmod(step * batch_size, dataset.train.labels.shape[0])
        return compiled(state, totals, dataset.train, step, first_epoch, first_position, steps)

    def over_split(function):
        return compile_(functools.partial(function, model=model, place_batch=place_batch, **shared))

    return run_steps, over_split(evaluate), over_split(measure_moments)


def _streamed(config, dataset, model, optimizer, mesh, compile_):
    """The functions of an `Experiment` whose data set is read batch by batch."""
    axis_name, step_options = _step_options(config, model, optimizer)
    part = {"part": jax.process_index(), "parts": jax.process_count()}
    by_pmap = axis_name and config.parallelism == "pmap"
    place = (lambda batch: batch) if by_pmap else functools.partial(parallel.place, mesh=mesh)
    on_devices = copy.deepcopy(config.data).unlock()
    on_devices.augment.enlarge = on_devices.augment.area = ()  # the stream has cropped already
    step_fn = functools.partial(train_step, seed=config.seed, **step_options)
    one_step = functools.partial(streamed_step, step_fn=step_fn, seed=config.seed, data=on_devices, axis_name=axis_name)
    compiled = _compile(one_step, config, mesh, compile_, axis_name, batch_is_shared=True)
    stream, position = iter(()), None

    def run_steps(state, totals, step, steps):
        nonlocal stream, position
        if position != step:
            left = last_step(config) - step
            stream = train_stream(dataset.train, config.data, config.seed, step, left, config.train.batch_size, **part)
        for number in range(step, step + steps):
            batch = place(next(stream))
            # The next batch goes to the devices while they compute, and no more than that, since each one takes their memory.
            jax.block_until_ready(totals)
            state, totals = compiled(state, totals, batch, number)
        position = step + steps
        return state, totals

    @compile_
    def count_batch(params, batch_stats, totals, batch):
        normalised = batch._replace(images=normalise(batch.images, config.data.mean, config.data.std))
        return evaluate_batch(params, batch_stats, totals, normalised, model=model)

    zero = compile_(Totals.zero)

    def count_all(params, batch_stats, pictures):
        totals = zero()
        for read in evaluation_stream(pictures, config.data, config.train.batch_size, **part):
            batch = parallel.place(read, mesh)
            jax.block_until_ready(totals)
            totals = count_batch(params, batch_stats, totals, batch)
        return totals

    def refuse(*arguments, **named):
        raise UserError("--exact_statistics passes over the training split many times; allowed is one that is not streamed.")

    return run_steps, count_all, refuse


def _batches(config, split, batch_size, mesh):
    """The normalised batches of a split in its own order, on the devices."""

    @jax.jit
    def resident(split, number):
        return parallel.split_batch(evaluation_batch(split, number, batch_size, config.data), mesh)

    @jax.jit
    def streamed(batch):
        return batch._replace(images=normalise(batch.images, config.data.mean, config.data.std))

    if isinstance(split, Pictures):
        part = {"part": jax.process_index(), "parts": jax.process_count()}
        for read in evaluation_stream(split, config.data, batch_size, **part):
            yield streamed(parallel.place(read, mesh))
    else:
        for number in range(-(-split.labels.shape[0] // batch_size)):
            yield resident(split, number)


def _features(config, model, mesh, compile_):
    """The function of an `Experiment` that gives a split batch by batch, with features for images."""

    @compile_
    def of_batch(params, batch_stats, batch):
        return batch._replace(images=features(model, {"params": params, "batch_stats": batch_stats}, batch.images))

    def of_split(params, batch_stats, split):
        for batch in _batches(config, split, config.train.batch_size, mesh):
            yield jax.device_get(of_batch(params, batch_stats, batch))

    return of_split


def _gradients(config, model, split, shape, mesh, compile_):
    """The function of an `Experiment` that measures the gradient's way, always on the same random examples of a split."""
    # Whole ones alone: in training mode, batch norm would see what fills a batch up.
    size = min(config.train.batch_size, _count(split)) // mesh.size * mesh.size
    chosen = np.sort(np.random.default_rng(0).permutation(_count(split))[:size])
    few = split.take(chosen) if isinstance(split, Pictures) else Split(split.images[chosen], split.labels[chosen])
    batch = next(_batches(config, few, size, mesh))
    model = model.clone(numerics=model.numerics._replace(fixed_statistics=config.transfer.freeze_statistics))

    @compile_
    def of_batch(params, batch_stats, batch):
        def loss(output):
            losses = minimised_losses(output, batch.labels, config.train.label_smoothing)
            return jnp.sum(jnp.where(batch.mask, losses, 0)) / jnp.sum(batch.mask)

        return gradients.measure(model, {"params": params, "batch_stats": batch_stats}, batch.images, loss)

    return lambda params, batch_stats: gradients.flow(model, of_batch(params, batch_stats, batch), shape)


def _step_options(config, model, optimizer):
    """The axis of devices that compute each for itself, None where the compiler shares out the work, and `train_step`'s options.

    The compiler's way sees the whole batch; where a device is to see its own share alone, it computes for itself.
    """
    axis_name = parallel.DATA_AXIS if config.parallelism == "pmap" or not config.batch_norm.sync else None
    statistics = {
        "axis_name": axis_name if config.batch_norm.sync else None,
        "fixed_statistics": config.transfer.freeze_statistics,
    }
    numerics = model.numerics._replace(**statistics)
    return axis_name, {
        "model": model.clone(numerics=numerics),
        "is_trained": is_trained(config.transfer),
        "optimizer": optimizer,
        "label_smoothing": config.train.label_smoothing,
        "accumulate": config.train.accumulate,
        "axis_name": axis_name,
    }


def _compile(function, config, mesh, compile_, axis_name, batch_is_shared):
    """Compiles `function(state, totals, batch, *others)` for the devices."""
    if axis_name:
        return parallel.on_every_device(function, mesh, config.parallelism, compile_, batch_is_shared)
    return compile_(function, donate_argnums=0)


def initial_state(model, optimizer, config, image_shape):
    """State and totals before the first step."""
    options = {"image_shape": image_shape, "is_trained": is_trained(config.transfer)}
    return create_train_state(model, optimizer, config.seed, **options), Totals.zero()


def _describe(dataset, shape):
    splits = _splits(dataset).values()
    streamed = isinstance(dataset.train, Pictures)
    # A streamed set is too large to read it all at each start.
    arrays = [array for split in splits for array in ([split.labels] if streamed else split) if array is not None]
    fingerprint = dataset.train.fingerprint if streamed else None
    of_files = {f"{key}_crc32": value for key, value in fingerprint._asdict().items()} if fingerprint else {}
    return {
        **{name: _count(split) for name, split in _splits(dataset).items()},
        "streamed": streamed,
        "image_shape": list(shape),
        "class_names": list(dataset.class_names),
        "crc32": functools.reduce(lambda checksum, array: zlib.crc32(np.ascontiguousarray(array), checksum), arrays, 0),
        **of_files,
    }


def _splits(dataset):
    return {name: split for name in ("train", "validation", "test") if (split := getattr(dataset, name))}


def _count(split):
    return split.count if isinstance(split, Pictures) else split.labels.shape[0]
