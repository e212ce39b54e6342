"""What a program needs from the machine: right sums, a place for compiled programs, and memory that is kept between steps."""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import sys
import tempfile
import time
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from plain56.errors import UserError, first_line

CACHE_BYTES = 2 << 30
WRITING_SECONDS = 60  # after which no other process can still be writing an entry
RIGHT_JAX = "jax>=0.10,!=0.10.2,<0.12"  # as in pyproject.toml
MOST_RESERVED = 32 << 30
HUGE_PAGE = 2 << 20
# malloc.h and sys/mman.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX, MADV_HUGEPAGE = -1, -4, -8, 14


def cores():
    """The numbers of the CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))


def cache_folder():
    """`$XDG_CACHE_HOME/plain56`, or `~/.cache/plain56`; without a home directory, a folder for only this process."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plain56"
    except RuntimeError:
        return _process_folder()


@functools.cache
def _process_folder():
    folder = tempfile.TemporaryDirectory(prefix="plain56-")
    atexit.register(folder.cleanup)  # left to the garbage collector, it would warn
    return Path(folder.name)


def can_keep(folder):
    """Whether files can be put into a folder, which is created if there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def processor():
    """What distinguishes this processor: machines of different kinds may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return [next((line for line in lines if line.startswith(key)), "") for key in ("flags", "Features", "model name")]
    except OSError:
        return [platform.machine(), platform.processor()]


@functools.cache
def set_up():
    """Makes a process ready to train; must be called before JAX looks for its devices.

    Compiled programs are kept in the cache folder, or where JAX_COMPILATION_CACHE_DIR says. Raises as `check_sums`.
    """
    if not jax.config.jax_compilation_cache_dir:
        _keep_programs()
    # Asking JAX for its devices would take a GPU's memory, which a sweep's workers need.
    only_cpu = jax.config.jax_platforms == "cpu" or not (entry_points(group="jax_plugins") or find_spec("libtpu"))
    if only_cpu and sys.platform == "linux":
        _keep_memory()
    if only_cpu:
        check_sums()


def check_sums():
    """Checks a sum on the CPU, once for each version of jaxlib, its flags, and processor.

    Raises UserError if the sum is wrong, as in jaxlib 0.10.2 (JAX's issue 39103).
    """
    compiled_for = hashlib.sha256(repr((os.environ.get("XLA_FLAGS"), processor())).encode()).hexdigest()[:16]
    checked = cache_folder() / f"right-sums-{jaxlib.__version__}-{compiled_for}"
    if os.access(checked, os.F_OK):
        return
    rows = np.zeros((32_769, 3), np.float32)  # fewer rows are summed right
    rows[:, 0] = np.arange(len(rows))
    if not np.allclose(squared_lengths(rows), rows[:, 0] ** 2, rtol=1e-4):
        raise UserError(
            f"jaxlib {jaxlib.__version__} computes wrong sums on this CPU (JAX issue 39103); "
            f"install a version that computes them right: pip install '{RIGHT_JAX}'."
        )
    if can_keep(checked.parent):
        with contextlib.suppress(OSError):  # then the next process checks again
            checked.touch()


def squared_lengths(rows):
    """The sum of squares of each row, by a program that jaxlib 0.10.2 compiles wrong."""
    matrix = np.eye(rows.shape[1], dtype=rows.dtype)
    program = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))
    return program.lower(rows).compile()(rows)  # even if JAX_DISABLE_JIT is set


def _keep_programs():
    programs = cache_folder() / "programs"
    if not can_keep(programs):  # JAX would warn about every program
        return
    # JAX writes an entry's time of use after the entry. A kill in between leaves an entry without one, which stops JAX for good.
    for entry in programs.glob("*-cache"):
        used = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
        with contextlib.suppress(OSError):
            if not used.exists() and time.time() - entry.stat().st_mtime > WRITING_SECONDS:
                entry.unlink()
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@functools.cache
def quick_compiler_options():
    """As `compiler_options`, for a program that runs once, for a short time: on a CPU it is compiled in half the time."""
    return _accepted({"xla_backend_optimization_level": 1}) if jax.default_backend() == "cpu" else compiler_options()


def _accepted(options):
    """The options, or None where the compiler does not take them: they are internal, and may change."""
    try:
        jax.jit(lambda x: x, compiler_options=options)(0)
    except jax.errors.JaxRuntimeError:
        return None
    return options


@functools.cache
def compiler_options():
    """Options of the compiler for `jax.jit`, or None.

    On a GPU: CUDA graphs that include convolutions. By default XLA leaves these out, which cuts the graph of a step into short
    pieces and makes the host start hundreds of kernels one by one.

    cuDNN cannot start while a graph is recorded ("No DNN support for stream"), and a program from the cache, which tries no
    algorithms, would be the first to use it: so every device convolves something first.
    """
    if jax.default_backend() != "gpu":
        return None
    options = {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONVOLUTION"}
    for device in jax.local_devices():
        image, kernel = (jax.device_put(np.ones(shape, np.float32), device) for shape in ((1, 8, 8, 8), (8, 8, 3, 3)))
        jax.lax.conv(image, kernel, (1, 1), "SAME").block_until_ready()
    return _accepted(options)


@contextlib.contextmanager
def explaining_memory_errors(advice="use a device with more memory, or one that no other program uses"):
    """Turns a lack of memory, of a device or here, into a UserError that ends in the advice."""
    try:
        yield
    except (ImportError, MemoryError, jax.errors.JaxRuntimeError) as error:
        # A late import may find no room for its library.
        if not isinstance(error, MemoryError) and not re.search("RESOURCE_EXHAUSTED|failed to map segment", str(error)):
            raise
        raise UserError(f"There is not enough memory ({first_line(error)}); {advice}.") from error


def _keep_memory():
    """Makes the C library keep the hundreds of megabytes that a step takes and frees, on huge pages.

    By default it maps fresh pages for each step, and the system clears 4 KiB at a time: a fifth of the time of a small network.
    Threads that already run are not affected. Does nothing without glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for option, value in ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1)):
        libc.mallopt(option, value)
    # The range where the heap will grow: allocated but not touched, then freed, it is what malloc hands out next.
    size = min(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2, MOST_RESERVED)
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":  # such a system denies what is reserved to all others
        return
    heap = libc.malloc(size)
    if heap:
        begin = -(-heap // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(begin, size - HUGE_PAGE, MADV_HUGEPAGE)
        libc.free(heap)
