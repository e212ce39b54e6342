"""Convolutions on a CPU by `convolution.cc`, compiled by the machine's own C++ compiler on first use, for each dtype by itself.

A compiled library is kept in the cache folder as `convolution-KEY-CHECKSUM.so`: KEY stands for what it was made from, CHECKSUM
for what it contains. An incomplete library is never loaded, since that may end the process without a word.
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
CHANNEL_SUMS, PASSED_CHANNEL_SUMS = "ChannelSums", "PassedChannelSums"
FUNCTIONS = (FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT, CHANNEL_SUMS, PASSED_CHANNEL_SUMS)
DTYPES = {"float32": "float", "bfloat16": "Bfloat16"}  # and what the source calls their numbers
COMPILE_SECONDS = 300  # compiling takes a few; after so many, the compiler hangs

logger = logging.getLogger(__name__)
_is_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable():
    """Programs that are traced inside run without this package: they call no functions of the source."""
    token = _is_portable.set(True)
    try:
        yield
    finally:
        _is_portable.reset(token)


def lanes(dtype="float32"):
    """The number of floats in a register, of which output channels must be a multiple; 0 if there is no native convolution.

    There is none off the CPU; with several devices, since XLA would gather what is divided among them; if the source cannot be
    compiled; and for `portable` programs.
    """
    if _is_portable.get():
        return 0
    return load(dtype) if jax.default_backend() == "cpu" and jax.device_count() == 1 else 0


def why_not(dtype):
    """Why no function of the source computes with images of this dtype on this CPU; None if they do."""
    if dtype not in DTYPES:
        return f"{dtype} is not {' or '.join(DTYPES)}"
    if jax.device_count() > 1:
        return "there are several devices"
    return None if lanes(dtype) else "the C++ could not be compiled"


def describe(dtype="float32"):
    """What computes convolutions of images of this dtype, as JSON values.

    Native ones in bfloat16 also have the instructions that multiply: "amx_bf16", "avx512_bf16", or those of "float32".
    """
    count = lanes(dtype) if dtype in DTYPES else 0
    on_cpu = "native" if count else "portable"
    products = {"products": library(dtype).Products().decode()} if count and dtype == "bfloat16" else {}
    return {"convolution": on_cpu if jax.default_backend() == "cpu" else "xla", "lanes": count} | products


@functools.cache
def load(dtype="float32"):
    """Registers the functions of the source for a dtype with XLA, and returns the number of floats in a register.

    Returns 0, and warns, if the source cannot be compiled.
    """
    try:
        functions = library(dtype)
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
        logger.warning("Training is slow on this CPU, since the C++ convolution could not be compiled: %s", reason(error))
        return 0
    for name in FUNCTIONS:
        jax.ffi.register_ffi_target(_target(name, dtype), jax.ffi.pycapsule(getattr(functions, name)), platform="cpu")
    return functions.Lanes()


def _target(name, dtype):
    return f"plain56.{name}.{dtype}"


def library(dtype="float32"):
    """The source, compiled for a dtype, as a library with all its functions: one that an earlier process kept, or made now."""
    with contextlib.suppress(OSError):  # a folder that cannot be read
        for path in sorted(cache_folder().glob(f"convolution-{_key(dtype)}-*.so")):
            with contextlib.suppress(OSError, AttributeError):  # incomplete, or made for another system
                if path.stem.endswith(_digest(path.read_bytes())):
                    return _open(path)
    return _compiled(dtype)


def takes(array, channels):
    """Whether the functions of the source compute results with so many channels from images like these."""
    count = lanes(array.dtype.name) if array.dtype.name in DTYPES else 0
    return count > 0 and channels % count == 0


def call(name, operands, shape, **attributes):
    """Calls a function of the source on arrays, the first two of one dtype; `shape` is that of the result. Sums are float32."""
    dtype = np.float32 if name in (CHANNEL_SUMS, PASSED_CHANNEL_SUMS) else operands[0].dtype
    function = jax.ffi.ffi_call(
        _target(name, operands[0].dtype.name), jax.ShapeDtypeStruct(shape, dtype), vmap_method="broadcast_all"
    )
    return function(*operands, **{key: np.array(value, np.int64) for key, value in attributes.items()})


def compile_source(source, library, *flags):
    """Compiles a C++ source with some more flags; raises OSError, ValueError or subprocess.SubprocessError if that fails."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    command = [*compiler, *COMPILE, *flags, "-I", jax.ffi.include_dir(), str(source), "-o", str(library)]
    subprocess.run(command, check=True, timeout=COMPILE_SECONDS, **quiet)


def _compiled(dtype):
    """The library, compiled for this process, and kept for others if possible."""
    # Several processes may compile at a time, and each may be killed.
    with tempfile.TemporaryDirectory(dir=cache_folder() if can_keep(cache_folder()) else None) as folder:
        part = Path(folder) / "convolution.so"
        compile_source(SOURCE, part, _number(dtype))
        compiled = _open(part)
        with contextlib.suppress(OSError):  # then the next process compiles again
            with part.open("rb") as file:
                os.fsync(file.fileno())
            path = cache_folder() / f"convolution-{_key(dtype)}-{_digest(part.read_bytes())}.so"
            shutil.rmtree(path, ignore_errors=True)  # a directory, which a file cannot replace
            part.replace(path)
    return compiled


def _open(path):
    """Loads a library; raises OSError if it cannot be loaded, and AttributeError if it lacks a function."""
    opened = ctypes.CDLL(str(path))
    for name in ("Lanes", "Products", *FUNCTIONS):
        getattr(opened, name)
    opened.Products.restype = ctypes.c_char_p
    return opened


def _number(dtype):
    """The flag that tells the source its numbers."""
    return f"-DNUMBER={DTYPES[dtype]}"


def _key(dtype):
    """What the compiled source depends on. Names the compiler without calling it: the library may outlive the compiler."""
    sources = (path.read_bytes() for path in (SOURCE, *sorted(SOURCE.parent.glob("*.h"))))
    parts = (*sources, *COMPILE, _number(dtype), os.environ.get("CXX", ""), jaxlib.__version__, processor())
    return _digest(repr(parts).encode())


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def reason(error):
    """Why there is no library, in one line."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0]} has taken more than {COMPILE_SECONDS} seconds"
    said = str(error)
    if isinstance(error, subprocess.CalledProcessError):
        said = error.stderr.strip() or f"{error.cmd[0]} ended with status {error.returncode}"
    return " ".join(said.split())[:300]
