"""Convolutions on a CPU by `convolution.cc`, compiled by the machine's own C++ compiler at the first use."""

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

import jax
import numpy as np

from plain56.machine import cache_folder

SOURCE = Path(__file__).with_name("convolution.cc")
COMPILE = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-w")
# Names of the functions in the source.
FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT = "Convolution", "ConvolutionInputGradient", "ConvolutionKernelGradient"
CHANNEL_SUMS = "ChannelSums"

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


@functools.cache
def load():
    """Compiles the source where that is new, makes its functions known to XLA, and returns the number of floats in a register.

    Returns 0, and warns, where there is no compiler or it fails.
    """
    try:
        library = ctypes.CDLL(str(_compile()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()[:300]
        logger.warning("Training is slow on this CPU, since the C++ convolution could not be compiled: %s", reason)
        return 0
    for name in (FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT, CHANNEL_SUMS):
        jax.ffi.register_ffi_target(_target(name), jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library.Lanes()


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


def _compile():
    """The path of the compiled source, made anew for another source, compiler, jaxlib or processor."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = (SOURCE.read_text(), *COMPILE, version, importlib.metadata.version("jaxlib"), _processor())
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    path = cache_folder() / f"convolution-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may do so at a time, and each may be killed.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            command = [*compiler, *COMPILE, "-I", jax.ffi.include_dir(), str(SOURCE), "-o", str(part)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            part.replace(path)
    return path


def _processor():
    """What -march=native depends on: a home directory may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return [next((line for line in lines if line.startswith(key)), "") for key in ("flags", "Features", "model name")]
    except OSError:
        return [platform.machine(), platform.processor()]
