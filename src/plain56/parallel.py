"""Data parallelism over all devices of one process or many: where arrays are, who computes what, what processes agree on."""

import contextlib
import json
import re
import socket
import time
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plain56 import machine
from plain56.errors import UserError, first_line

DATA_AXIS = "data"
WAIT_SECONDS = 300
# Messages of JAX's errors about a broken connection: their kinds, and the names of what exchanges arrays.
BROKEN = re.compile(
    r"(?!.*(RESOURCE_EXHAUSTED|out of memory))"
    r"((UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|CANCELLED)\b|.*(gloo|nccl|coordination|heartbeat))",
    re.IGNORECASE | re.DOTALL,
)
MESSAGE_BYTES = 4096  # messages between processes are padded to a multiple, so that few programs are compiled


class Lost(UserError):
    """Another process that trains the same run is gone."""


@contextlib.contextmanager
def explaining_lost_processes():
    """Turns JAX's error for a connection that broke into `Lost`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not BROKEN.match(str(error)):
            raise
        told = first_line(error)
        raise Lost(f"Another process of this run is gone or has failed ({told}); start all again to go on.") from error


def join(coordinator=None, num_processes=None, process_id=None):
    """Makes this process one of several that train a run together; must be called before JAX is used for anything else.

    Args:
        coordinator: HOST:PORT, free on the host of process 0. Without it, JAX asks what started the processes: Slurm, Open MPI,
            Kubernetes or a TPU pod.

    Raises:
        UserError: process 0 is not there or cannot listen, the processes were told different numbers, or nothing started
            several. (If too few come, JAX ends those that wait after five minutes.)
    """
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process_id must be from 0 to {num_processes - 1} (--num_processes less one), not {process_id}.")
        if not (host and port.isdecimal()):
            raise UserError(f"--coordinator must be HOST:PORT of process 0, not {coordinator!r}.")
        if process_id:
            _wait_for(host, port)
    # JAX's preemption notifier would take SIGTERM away from Python.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, shutdown_timeout_seconds=30)
    except ValueError as error:  # nothing that JAX knows started this process
        raise UserError(
            "--distributed finds no Slurm, Open MPI, Kubernetes or TPU pod around this process; give --coordinator=HOST:PORT, "
            "--num_processes=N and --process_id=K."
        ) from error
    except RuntimeError as error:
        told = first_line(error)
        raise UserError(f"The processes cannot be connected ({told}); the port must be free on the host of process 0.") from error
    check_same({"--num_processes": num_processes})


def _wait_for(host, port):
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                told = error.strerror or error
                raise UserError(f"There is no process 0 at --coordinator={host}:{port} ({told}); start it first.") from error
            time.sleep(0.5)


def is_first():
    """Whether this is process 0, the only one that writes and shows what all share."""
    return jax.process_index() == 0


def gather(value):
    """The JSON values of all processes, in order; every process must call this at the same place."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    most = int(multihost_utils.process_allgather(np.int32(len(text))).max())
    text = text.ljust(-(-most // MESSAGE_BYTES) * MESSAGE_BYTES)
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(np.frombuffer(text, np.uint8))]


def on_all(function, *arguments):
    """Calls `function` in every process and returns its result; if it fails in one of them, it fails in all.

    Raises UserError if it raised one in some process, and RuntimeError for any other exception in another process.
    """
    if jax.process_count() == 1:
        return function(*arguments)
    result, failure, told = None, None, None
    try:
        result = function(*arguments)
    except Exception as error:
        failure, told = error, [isinstance(error, UserError), str(error)]
    for process, (of_user, reason) in enumerate(failure or (None, None) for failure in gather(told)):
        if of_user:
            raise UserError(reason)
        if reason is not None:
            raise failure or RuntimeError(f"process {process} failed: {reason}")
    return result


def on_first(function, *arguments):
    """Calls `function` only in process 0 and returns its result, a JSON value, in all; fails in all as `on_all`."""
    return gather(on_all(lambda: function(*arguments) if is_first() else None))[0]


def check_same(values):
    """Raises UserError unless the values, by name, are the same in all processes."""
    everywhere = gather(values)
    for process, there in enumerate(everywhere[1:], start=1):
        keys = sorted(key for key in everywhere[0].keys() | there.keys() if there.get(key) != everywhere[0].get(key))
        if keys:
            differences = ", ".join(f"{key} ({everywhere[0].get(key)} and {there.get(key)})" for key in keys)
            raise UserError(f"Process 0 and process {process} differ in {differences}; they must be the same in all processes.")


class Layout(NamedTuple):
    """How the devices share the work of a run: decided once, from its config and the devices.

    The devices form a `mesh` with the single axis "data". If `axis_name` is None, a program sees whole batches, and the compiler
    divides its work. If it names that axis, every device runs the program on its own share and exchanges sums along the axis, by
    `jax.shard_map` or, with `by_pmap`, by `jax.pmap`.
    """

    mesh: Mesh
    axis_name: str | None = None
    by_pmap: bool = False

    @property
    def whole(self):
        """The placement of what every device holds in full: parameters, statistics, the resident data set."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def shared(self):
        """The placement of what is divided among the devices along its first axis."""
        return NamedSharding(self.mesh, PartitionSpec(DATA_AXIS))

    @property
    def process_part(self):
        """Which part of a batch this process reads, and how many parts there are."""
        return {"part": jax.process_index(), "parts": jax.process_count()}

    def check_batch_size(self, batch_size, accumulate):
        """Raises UserError unless every device gets the same number of examples of each part of a batch."""
        multiple = accumulate * self.mesh.size
        if batch_size % multiple:
            parts = f" in train.accumulate = {accumulate} parts" if accumulate > 1 else ""
            raise UserError(
                f"train.batch_size must be a multiple of {multiple}, not {batch_size}, to divide among the {self.mesh.size} "
                f"devices{parts}."
            )

    def hold(self, tree):
        """Puts arrays, which every process has, on every device in full."""
        # With `device_put`, the processes would compare their arrays, in several times the memory.
        return jax.tree.map(lambda array: jax.make_array_from_callback(array.shape, self.whole, lambda index: array[index]), tree)

    def place(self, batch):
        """Divides a batch among the devices; every process has its part in NumPy arrays."""
        return jax.tree.map(lambda part: jax.make_array_from_process_local_data(self.shared, part), batch)

    def split(self, batch):
        """Divides a batch among the devices, inside a compiled function that sees whole batches."""
        return jax.lax.with_sharding_constraint(batch, self.shared)

    def compile(self, function, runs_once=False, **options):
        """`jax.jit` of a function that sees whole batches; every device holds its results in full."""
        compiler_options = machine.quick_compiler_options() if runs_once else machine.compiler_options()
        return jax.jit(function, out_shardings=self.whole, compiler_options=compiler_options, **options)

    def compile_update(self, function, batch_is_shared):
        """Compiles `function(state, totals, batch, *others)`, which donates `state`; every device holds its results in full.

        Args:
            batch_is_shared: whether each device gets its share of `batch`, which is as `place` returns it, or with `by_pmap` as
                `place` takes it.
        """
        if self.axis_name is None:
            return self.compile(function, donate_argnums=0)
        if self.by_pmap:
            return self._pmap(function, batch_is_shared)
        everywhere, one_each = PartitionSpec(), PartitionSpec(DATA_AXIS)
        in_specs = (everywhere, everywhere, one_each if batch_is_shared else everywhere, everywhere)
        shares = {"mesh": self.mesh, "in_specs": in_specs, "out_specs": everywhere, "check_vma": False}
        mapped = jax.shard_map(lambda state, totals, batch, others: function(state, totals, batch, *others), **shares)
        return self.compile(lambda state, totals, batch, *others: mapped(state, totals, batch, others), donate_argnums=0)

    def _pmap(self, function, batch_is_shared):
        devices = jax.local_device_count()
        mapped = jax.pmap(
            lambda _, state, totals, batch, others: function(state, totals, batch, *others),
            DATA_AXIS,
            in_axes=(0, None, None, 0 if batch_is_shared else None, None),
            out_axes=None,
            donate_argnums=1,
            devices=list(self.mesh.devices.flat),
        )

        def run(state, totals, batch, *others):
            if batch_is_shared:
                batch = jax.tree.map(lambda part: part.reshape(devices, -1, *part.shape[1:]), batch)
            # The device numbers, because `pmap` must map at least one argument.
            return jax.tree.map(self._joined, mapped(np.arange(devices), state, totals, batch, others))

        return run

    def _joined(self, array):
        """An array over all devices, of what the devices of each process hold in full."""
        pieces = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, self.whole, pieces)


def layout(config=None):
    """The `Layout` of a config on all devices; without a config, that of a program that sees whole batches."""
    mesh = Mesh(np.array(jax.devices()), (DATA_AXIS,))
    # A program that sees whole batches cannot compute statistics of each device's own share.
    if config is None or (config.parallelism != "pmap" and config.batch_norm.sync):
        return Layout(mesh)
    return Layout(mesh, DATA_AXIS, config.parallelism == "pmap")
