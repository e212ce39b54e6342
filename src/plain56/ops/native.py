"""Convolutions on a CPU by `convolution.cc`, compiled by the machine's own C++ compiler at the first use.

The compiled library is kept in the cache folder as `convolution-KEY-CHECKSUM.so`: KEY stands for what it was made from, CHECKSUM
for what it holds. A library that is not whole is never loaded, since that may end the process without a word.
"""

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib
import numpy as np

from plain56.machine import cache_folder, can_keep, processor

SOURCE = Path(__file__).with_name("convolution.cc")
COMPILE = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-w")
# Names of the functions in the source.
FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT = "Convolution", "ConvolutionInputGradient", "ConvolutionKernelGradient"
CHANNEL_SUMS = "ChannelSums"
FUNCTIONS = (FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT, CHANNEL_SUMS)
COMPILE_SECONDS = 300  # it takes a few; so long, the compiler hangs

logger = logging.getLogger(__name__)
_is_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable():
    """Inside, what is traced needs nothing of ours to run: not the functions of the source."""
    token = _is_portable.set(True)
    try:
        yield
    finally:
        _is_portable.reset(token)


def lanes():
    """The number of floats in a register, of which output channels must be a multiple; 0 where there is no native convolution.

    That is so off the CPU; where a process has several devices, since XLA would gather what is shared out among them; where the
    source cannot be compiled; and where programs are to be `portable`.
    """
    if _is_portable.get():
        return 0
    return load() if jax.default_backend() == "cpu" and jax.device_count() == 1 else 0


def describe():
    """What float32 convolutions are computed by, as JSON values."""
    count = lanes()
    on_cpu = "native" if count else "portable"
    return {"convolution": on_cpu if jax.default_backend() == "cpu" else "xla", "lanes": count}


@functools.cache
def load():
    """Makes the functions of the source known to XLA, and returns the number of floats in a register.

    Returns 0, and warns, where the source cannot be compiled.
    """
    try:
        functions = library()
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
        logger.warning("Training is slow on this CPU, since the C++ convolution could not be compiled: %s", _reason(error))
        return 0
    for name in FUNCTIONS:
        jax.ffi.register_ffi_target(_target(name), jax.ffi.pycapsule(getattr(functions, name)), platform="cpu")
    return functions.Lanes()


def library():
    """The compiled source as a library with all its functions: what an earlier process has kept, or compiled now."""
    return _kept() or _compiled()


def takes(array, channels):
    """Whether the functions of the source make results with so many channels from images like these."""
    return array.dtype == np.float32 and lanes() > 0 and channels % lanes() == 0


def call(name, a, b, shape, strides=(), padding=()):
    """Calls a function of the source on two float32 arrays; `shape` is that of the result."""
    low = np.array([low for low, _ in padding], np.int64)
    result = jax.ShapeDtypeStruct(shape, np.float32)
    function = jax.ffi.ffi_call(_target(name), result, vmap_method="broadcast_all")
    return function(a, b, strides=np.array(strides, np.int64), padding=low)


def _target(name):
    return f"plain56.{name}"


def _kept():
    """The library that an earlier process has compiled, or None; for that, no compiler is needed."""
    with contextlib.suppress(OSError):  # a folder that cannot be read
        for path in sorted(cache_folder().glob(f"convolution-{_key()}-*.so")):
            with contextlib.suppress(OSError, AttributeError):  # not whole, or made for another system
                if path.stem.endswith(_digest(path.read_bytes())):
                    return _open(path)
    return None


def _compiled():
    """The library, compiled for this process, and kept for others where that is possible."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    # Several processes may do so at a time, and each may be killed.
    with tempfile.TemporaryDirectory(dir=cache_folder() if can_keep(cache_folder()) else None) as folder:
        part = Path(folder) / "convolution.so"
        command = [*compiler, *COMPILE, "-I", jax.ffi.include_dir(), str(SOURCE), "-o", str(part)]
        subprocess.run(command, check=True, timeout=COMPILE_SECONDS, **quiet)
        compiled = _open(part)
        with contextlib.suppress(OSError):  # it is compiled again then
            with part.open("rb") as file:
                os.fsync(file.fileno())
            path = cache_folder() / f"convolution-{_key()}-{_digest(part.read_bytes())}.so"
            shutil.rmtree(path, ignore_errors=True)  # a directory, which a file cannot replace
            part.replace(path)
    return compiled


def _open(path):
    """Loads a library that has all functions.

    Raises:
        AttributeError: one is missing.
        OSError: it cannot be loaded.
    """
    opened = ctypes.CDLL(str(path))
    for name in ("Lanes", *FUNCTIONS):
        getattr(opened, name)
    return opened


def _key():
    """What the compiled source depends on. The compiler is named, not asked: it may be gone when the library is still there."""
    parts = (SOURCE.read_bytes(), *COMPILE, os.environ.get("CXX", ""), jaxlib.__version__, processor())
    return _digest(repr(parts).encode())


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def _reason(error):
    """Why there is no library, in one line."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0]} has taken more than {COMPILE_SECONDS} seconds"
    if isinstance(error, subprocess.CalledProcessError):
        said = error.stderr.strip() or f"{error.cmd[0]} ended with status {error.returncode}"
    else:
        said = str(error)
    return " ".join(said.split())[:300]
