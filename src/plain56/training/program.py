"""A run's program: its data, its network, and the compiled functions that train and test it, all from its config."""

import copy
import dataclasses
import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plain56 import parallel
from plain56.analysis import gradients
from plain56.config import build_model, check
from plain56.data import Pictures, Split, evaluation_batch, evaluation_stream, image_shape, load_dataset, normalize, train_stream
from plain56.errors import UserError
from plain56.models import own
from plain56.references import explaining, is_reference
from plain56.training import cadence, transfer
from plain56.training.metrics import Totals, add_batch, minimized_losses, split_totals
from plain56.training.optimizer import make_optimizer, make_schedule
from plain56.training.probe import features
from plain56.training.state import create_train_state
from plain56.training.statistics import measure_moments
from plain56.training.step import Feed, Start, Update, streamed_step, train_steps


def load(config):
    """Loads a config's data set; raises UserError where the config does not fit the data, the devices or itself."""
    check(config)
    make_optimizer(config.optimizer, make_schedule(config.optimizer, config.train.steps))  # raises where its options are wrong
    parallel.layout(config).check_batch_size(config.train.batch_size, config.train.accumulate)
    return load_dataset(config.data)


def prepare(config):
    """The `Program` of a config; loads its data, with the errors of `load` in all processes. Nothing is compiled yet."""
    dataset, layout = parallel.on_all(load, config), parallel.layout(config)
    shape = image_shape(dataset.train, config.data)
    found = _describe(dataset, shape)
    parallel.check_same({key: value for key, value in found.items() if key != "times_crc32"})  # machines may have copies
    if isinstance(dataset.train, Split):
        dataset = dataset._replace(**layout.hold(dataset.splits))
    model = build_model(config, len(dataset.class_names))
    own.check(config.model.name, model, len(dataset.class_names), shape)
    program = Program(config, layout, dataset, found, shape, model)
    if is_reference(config.optimizer.name):
        with explaining(config.optimizer.name):
            jax.eval_shape(program.try_optimizer)
    return program


def _compiled(method, runs_once=False):
    """Compiles a method of `Program` when it is first called."""
    return functools.cached_property(lambda program: program.layout.compile(method.__get__(program), runs_once))


@dataclasses.dataclass(eq=False)
class Program:
    """What a run computes. Every function is compiled when it is first called.

    `found` is what the run directory keeps of the data set: the size of each split, the names of the classes and checksums.
    `image_shape` is `(H, W, C)`. A state and totals are as they were returned, and a split is one of the dataset's.
    """

    config: Any
    layout: parallel.Layout
    dataset: Any
    found: dict
    image_shape: tuple[int, int, int]
    model: Any

    @functools.cached_property
    def schedule(self):
        return make_schedule(self.config.optimizer, self.config.train.steps)

    @functools.cached_property
    def initial(self):
        """State and totals before the first step, as drawn by the seed."""
        return self._draw()

    @functools.cached_property
    def parameters(self):
        """The shapes of all parameters, without compiling anything."""
        return jax.eval_shape(self._draw)[0].params

    @property
    def parameter_count(self):
        return sum(leaf.size for leaf in jax.tree.leaves(self.parameters))

    @functools.partial(_compiled, runs_once=True)
    def _draw(self):
        return initial_state(self.config, self.model, self.image_shape, self._plan)

    def try_optimizer(self):
        """An update by zeros, which only shows whether a user's own optimizer takes the network's parameters."""
        params = self.model.init(jax.random.key(0), jnp.zeros((1, *self.image_shape)))["params"]
        optimizer = make_optimizer(self.config.optimizer, self.schedule)
        return optimizer.update(params, optimizer.init(params), params)

    def stream(self, step):
        """The batches of all steps from `step` on, for `train_steps`; None where these are made on the devices."""
        if isinstance(self.dataset.train, Split):
            return None
        config, part = self.config, self.layout.process_part
        left = cadence.last_step(config) - step
        return train_stream(self.dataset.train, config.data, config.seed, step, left, config.train.batch_size, **part)

    def train_steps(self, state, totals, stream, step, steps):
        """State and totals after the updates number `step` to `step + steps`; stops before one that is not finite."""
        if stream is None:
            start = Start(step, *divmod(step * self.config.train.batch_size, self.found["train"]))
            return self._update(state, totals, self.dataset.train, start, steps)
        for number in range(step, step + steps):
            batch = next(stream)
            batch = batch if self.layout.by_pmap else self.layout.place(batch)
            # Only the next batch goes to the devices while they compute, since each one takes their memory.
            jax.block_until_ready(totals)
            state, totals = self._update(state, totals, batch, number)
        return state, totals

    def evaluate(self, params, batch_stats, split):
        """`Totals` over every example of a split, without augmentation."""
        if isinstance(split, Split):
            return self._split_totals(params, batch_stats, split)
        totals = self._zero_totals()
        for batch in self._placed(split, self.config.train.batch_size):
            jax.block_until_ready(totals)
            totals = self._add_batch(params, batch_stats, totals, batch)
        return totals

    def measure_moments(self, params, batch_stats, split):
        """As `statistics.measure_moments`; raises UserError where the split is streamed."""
        if isinstance(split, Pictures):
            raise UserError("--exact_statistics passes over the training split many times; it must not be streamed.")
        return self._moments(params, batch_stats, split)

    def features(self, params, batch_stats, split):
        """Gives a split batch by batch, on the host, with what the last layer gets in place of images."""
        for batch in self._batches(split, self.config.train.batch_size):
            yield jax.device_get(self._features(params, batch_stats, batch))

    def gradients(self, params, batch_stats):
        """The `analysis.gradients.Flow` of a training loss, always on the same random examples."""
        measured = self._gradients(params, batch_stats, self._gradient_batch)
        return gradients.flow(self.model, measured, self.image_shape)

    @functools.cached_property
    def _plan(self):
        return transfer.plan(self.config.transfer, self.model, self.image_shape)

    @functools.cached_property
    def _update(self):
        config, layout, streamed = self.config, self.layout, isinstance(self.dataset.train, Pictures)
        shared_by = layout.axis_name if config.batch_norm.sync else None
        update = Update(
            model=self._with_numerics(axis_name=shared_by, fixed_statistics=config.transfer.freeze_statistics),
            optimizer=make_optimizer(config.optimizer, self.schedule, self._plan.rate_multiple),
            seed=config.seed,
            label_smoothing=config.train.label_smoothing,
            accumulate=config.train.accumulate,
            is_trained=self._plan.is_trained,
            axis_name=layout.axis_name,
        )
        if streamed:
            on_devices = copy.deepcopy(config.data).unlock()
            on_devices.augment.enlarge = on_devices.augment.area = ()  # the stream has cropped already
            function = functools.partial(streamed_step, update=update, data=on_devices)
        else:
            feed = Feed(config.data, config.train.batch_size, cadence.most_steps(config.train), layout.split)
            function = functools.partial(train_steps, update=update, feed=feed)
        return layout.compile_update(function, batch_is_shared=streamed)

    @_compiled
    def _split_totals(self, params, batch_stats, split):
        return split_totals(params, batch_stats, split, **self._of_batches)

    @_compiled
    def _moments(self, params, batch_stats, split):
        return measure_moments(params, batch_stats, split, **self._of_batches)

    @property
    def _of_batches(self):
        sizes = {"batch_size": self.config.train.batch_size, "data": self.config.data, "split_batch": self.layout.split}
        return {"model": self.model, **sizes}

    @_compiled
    def _zero_totals(self):
        return Totals.zero()

    @_compiled
    def _add_batch(self, params, batch_stats, totals, batch):
        return add_batch(params, batch_stats, totals, self._normalized(batch), model=self.model)

    @_compiled
    def _features(self, params, batch_stats, batch):
        return batch._replace(images=features(self.model, {"params": params, "batch_stats": batch_stats}, batch.images))

    @_compiled
    def _gradients(self, params, batch_stats, batch):
        def loss(output):
            losses = minimized_losses(output, batch.labels, self.config.train.label_smoothing)
            return jnp.sum(jnp.where(batch.mask, losses, 0)) / jnp.sum(batch.mask)

        model = self._with_numerics(fixed_statistics=self.config.transfer.freeze_statistics)
        return gradients.measure(model, {"params": params, "batch_stats": batch_stats}, batch.images, loss)

    @functools.cached_property
    def _gradient_batch(self):
        split, devices = self.dataset.train, self.layout.mesh.size
        # Only whole batches: in training mode, batch norm would see what fills a batch up.
        size = min(self.config.train.batch_size, self.found["train"]) // devices * devices
        chosen = np.sort(np.random.default_rng(0).permutation(self.found["train"])[:size])
        few = split.take(chosen) if isinstance(split, Pictures) else Split(split.images[chosen], split.labels[chosen])
        return next(self._batches(few, size))

    def _with_numerics(self, **changed):
        return build_model(self.config, len(self.dataset.class_names), **changed)

    def _placed(self, pictures, batch_size):
        """The batches of a streamed split in its own order, on the devices, with images as uint8."""
        for batch in evaluation_stream(pictures, self.config.data, batch_size, **self.layout.process_part):
            yield self.layout.place(batch)

    def _normalized(self, batch):
        return batch._replace(images=normalize(batch.images, self.config.data.mean, self.config.data.std))

    def _batches(self, split, batch_size):
        """The normalized batches of a split in its own order, on the devices."""
        if isinstance(split, Pictures):
            yield from map(jax.jit(self._normalized), self._placed(split, batch_size))
            return
        batch = jax.jit(lambda split, number: self.layout.split(evaluation_batch(split, number, batch_size, self.config.data)))
        for number in range(-(-split.labels.shape[0] // batch_size)):
            yield batch(split, number)


def initial_state(config, model, image_shape, plan):
    """State and totals before the first step; `plan` is of `transfer.plan`."""
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, config.train.steps), plan.rate_multiple)
    return create_train_state(model, optimizer, config.seed, image_shape, plan.is_trained), Totals.zero()


def _describe(dataset, shape):
    splits, streamed = dataset.splits, isinstance(dataset.train, Pictures)
    # A streamed set is too large to read it all at each start.
    arrays = [array for split in splits.values() for array in ([split.labels] if streamed else split) if array is not None]
    fingerprint = dataset.train.fingerprint if streamed else None
    of_files = {f"{key}_crc32": value for key, value in fingerprint._asdict().items()} if fingerprint else {}
    return {
        **{name: split.count if streamed else split.labels.shape[0] for name, split in splits.items()},
        "streamed": streamed,
        "image_shape": list(shape),
        "class_names": list(dataset.class_names),
        "crc32": functools.reduce(lambda checksum, array: zlib.crc32(np.ascontiguousarray(array), checksum), arrays, 0),
        **of_files,
    }
