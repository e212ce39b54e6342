import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from plain56 import ops
from plain56.ops import convolution, native

CASES = [
    # kernel, strides, padding, image
    (1, (1, 1), ((0, 0), (0, 0)), (8, 9)),
    (1, (2, 2), ((0, 0), (0, 0)), (8, 9)),
    (3, (1, 1), ((1, 1), (1, 1)), (8, 9)),
    (3, (2, 2), ((1, 1), (1, 1)), (8, 9)),
    (3, (2, 1), ((0, 1), (1, 0)), (7, 6)),
    (3, (1, 1), ((0, 0), (0, 0)), (5, 7)),
    (5, (1, 1), ((2, 2), (2, 2)), (6, 5)),
    (7, (2, 2), ((3, 3), (3, 3)), (11, 12)),
    (3, (2, 2), ((1, 1), (1, 1)), (1, 2)),
    (2, (3, 3), ((0, 0), (0, 0)), (7, 7)),  # stride larger than kernel
    (3, (4, 1), ((0, 0), (0, 0)), (5, 7)),
    (3, (1, 1), ((3, 0), (0, 2)), (6, 9)),
    ((1, 7), (2, 2), ((0, 0), (3, 3)), (9, 14)),
    ((7, 1), (1, 2), ((3, 3), (0, 0)), (9, 8)),
    (1, (2, 2), ((1, 1), (1, 1)), (8, 9)),
]


def arrays(size, strides, padding, image, dtype, channels=(3, 5), images=2):
    generator = np.random.default_rng(0)
    sides = (size, size) if isinstance(size, int) else size
    height, width = ((n + sum(p) - side) // s + 1 for n, p, s, side in zip(image, padding, strides, sides, strict=True))
    shapes = (images, *image, channels[0]), (*sides, *channels), (images, height, width, channels[1])
    return [jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes]


def reference(x, w, strides, padding):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def agree(x, w, g, strides, padding):
    """Exact products, and sums in float32. In bfloat16 these are rounded once, so that half of the last of 8 bits is lost."""
    with jax.enable_x64(True):
        doubles = [jnp.asarray(np.asarray(array, np.float64)) for array in (x, w, g)]
        y, pull_back = jax.vjp(functools.partial(reference, strides=strides, padding=padding), *doubles[:2])
        expected = [np.asarray(array) for array in (y, *pull_back(doubles[2]))]
    ours, our_pull_back = jax.vjp(functools.partial(ops.convolve, strides=strides, padding=padding), x, w)
    for mine, theirs in zip((ours, *our_pull_back(g)), expected, strict=True):
        assert mine.dtype == x.dtype
        rtol = 2**-8 + 2**-16 if x.dtype == jnp.bfloat16 else 0
        np.testing.assert_allclose(mine.astype(jnp.float32), theirs, rtol=rtol, atol=3e-6 * abs(theirs).max() + 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_portable_convolution_and_gradients_equal_lax(case):
    _, strides, padding, _ = case
    x, w, g = arrays(*case, jnp.float32)
    agree(x, w, g, strides, padding)
    pull_back = jax.vjp(functools.partial(reference, strides=strides, padding=padding), x, w)[1]
    for ours, theirs in zip(convolution._xla_gradients(strides, padding, x, w, g), pull_back(g), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("channels", [(3, 1), (2, 3)])
@pytest.mark.parametrize("case", CASES)
def test_native_convolution_and_gradients_equal_lax(case, channels, lanes):
    _, strides, padding, _ = case
    into, out = channels
    # With three input channels, as in the first layer, the input's gradient is the portable one.
    x, w, g = arrays(*case, jnp.float32, (into if into == 3 else into * lanes, out * lanes))
    agree(x, w, g, strides, padding)


@pytest.mark.parametrize(
    ("size", "image", "images", "channels"),
    [
        (3, (300, 40), 1, (1, 2)),  # bands of rows
        (3, (6, 5), 67, (1, 1)),  # several images at a time
        (3, (2, 2), 67, (4, 4)),  # one position of many images at a time
        (3, (4, 4), 3, (20, 8)),  # more input channels than one pass takes
        (3, (7, 7), 8, (12, 40)),  # a kernel that is divided among the tasks
        (3, (13, 30), 5, (3, 5)),  # tiles of which a part is outside, and more of them than one pass takes
        (3, (16, 16), 16, (1, 2)),
        (1, (9, 30), 5, (30, 3)),
    ],
)
def test_native_convolution_equals_lax_however_the_work_is_cut(size, image, images, channels, lanes):
    padding = ((size // 2, size // 2),) * 2
    x, w, g = arrays(size, (1, 1), padding, image, jnp.float32, [count * lanes for count in channels], images)
    agree(x, w / 10, g, (1, 1), padding)


@pytest.mark.parametrize("case", CASES)
def test_native_results_in_bfloat16_are_the_exact_ones_rounded_once(case, lanes):
    _, strides, padding, _ = case
    agree(*arrays(*case, jnp.bfloat16, (2 * lanes, 3 * lanes)), strides, padding)


@pytest.mark.parametrize(
    ("size", "strides", "image", "images", "channels"),
    [
        (3, (1, 1), (20, 17), 2, (16, 16)),  # strips of positions that overlap, and taps that are adjacent in memory
        (3, (1, 1), (8, 8), 40, (16, 48)),  # one position of many images at a time
        (3, (2, 2), (9, 6), 40, (32, 16)),
        (3, (1, 1), (4, 4), 5, (160, 320)),  # a kernel that is divided among the tasks
        (1, (1, 1), (7, 8), 6, (48, 32)),  # positions of all images as one image
        (7, (2, 2), (21, 60), 3, (3, 64)),  # an odd number of channels
        (3, (1, 1), (9, 9), 4, (1, 16)),
    ],
)
def test_native_results_in_bfloat16_are_the_exact_ones_however_the_work_is_cut(size, strides, image, images, channels, lanes):
    padding = ((size // 2, size // 2),) * 2
    agree(*arrays(size, strides, padding, image, jnp.bfloat16, channels, images), strides, padding)


def test_a_value_that_is_not_a_number_stays_one_in_bfloat16(lanes):
    x, w, _ = arrays(3, (1, 1), ((1, 1), (1, 1)), (8, 8), jnp.bfloat16, (lanes, lanes))
    y = ops.convolve(x.at[0, 2, 2, 0].set(jnp.nan), w, (1, 1), ((1, 1), (1, 1)))
    assert np.isnan(y[0, 1:4, 1:4].astype(jnp.float32)).all() and np.isfinite(y[1].astype(jnp.float32)).all()


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_finite_differences(case):
    _, strides, padding, _ = case
    with jax.enable_x64(True):
        x, w, g = arrays(*case, jnp.float64)
        generator = np.random.default_rng(1)
        directions = [generator.normal(size=array.shape) for array in (x, w)]

        def along(step):
            return jnp.vdot(g, ops.convolve(x + step * directions[0], w + step * directions[1], strides, padding))

        measured = (along(1e-4) - along(-1e-4)) / 2e-4
        for gradients in (convolution._cpu_gradients, convolution._xla_gradients):
            predicted = sum(map(jnp.vdot, gradients(strides, padding, x, w, g), directions))
            np.testing.assert_allclose(predicted, measured, rtol=1e-8)


@pytest.mark.parametrize(("way", "dtype"), [("native", jnp.float32), ("native", jnp.bfloat16), ("portable", jnp.float32)])
def test_gradients_are_the_same_in_a_scan_and_under_vmap(way, dtype, request):
    channels = (16, 16) if way == "native" and request.getfixturevalue("lanes") else (3, 5)
    strides, padding = (1, 1), ((1, 1), (1, 1))
    x, w, g = arrays(3, strides, padding, (8, 8), dtype, channels)

    def gradients(x, w):
        y, pull_back = jax.vjp(functools.partial(ops.convolve, strides=strides, padding=padding), x, w)
        return y, *pull_back(g)

    pairs = jnp.stack([x, -2 * x]), jnp.stack([w, 3 * w])
    expected = [jnp.stack(pair) for pair in zip(gradients(x, w), gradients(-2 * x, 3 * w), strict=True)]
    scanned = lax.scan(lambda _, pair: (None, gradients(*pair)), None, pairs)[1]
    for loop in (scanned, jax.vmap(gradients)(*pairs)):
        for ours, theirs in zip(loop, expected, strict=True):
            ours, theirs = ours.astype(jnp.float32), theirs.astype(jnp.float32)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize(("platform", "written_out"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_platform_decides_when_lowering(platform, written_out, lanes):
    def program(channels):
        x, w, g = arrays(3, (1, 1), ((1, 1), (1, 1)), (8, 8), jnp.float32, channels)
        gradients = jax.jit(lambda x, w: jax.vjp(lambda x, w: ops.convolve(x, w, (1, 1), ((1, 1), (1, 1))), x, w)[1](g))
        return gradients.trace(x, w).lower(lowering_platforms=(platform,)).as_text()

    assert ("dot_general" in program((3, 5))) == written_out
    assert (native.KERNEL_GRADIENT in program((lanes, lanes))) == written_out


def test_without_a_compiler_the_portable_convolution_is_used(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    assert native.load.__wrapped__() == 0
    assert "could not be compiled" in caplog.text


BITS = """
import hashlib, jax, jax.numpy as jnp, numpy as np
from plain56 import ops
from plain56.ops import native
assert native.lanes()
digest = hashlib.sha256()
cases = [(32, 32, 16, "float32"), (48, 8, 64, "float32"), (5, 7, 160, "float32"), (5, 2, 160, "float32"), (9, 8, 64, "bfloat16")]
cases += [(48, 8, 16, "bfloat16"), (5, 7, 160, "bfloat16"), (33, 32, 16, "bfloat16")]
for images, side, channels, dtype in cases:
    shapes = (images, side, side, channels), (3, 3, channels, channels)
    x, w = (jax.random.normal(jax.random.key(0), shape, dtype) for shape in shapes)
    y, pull_back = jax.vjp(lambda x, w: ops.convolve(x, w, (1, 1), ((1, 1), (1, 1))), x, w)
    for array in (y, *pull_back(y)):
        digest.update(np.asarray(array).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_native_results_do_not_depend_on_the_number_of_threads(lanes):
    def bits(threads):
        environment = os.environ | {"NPROC": threads, "XLA_FLAGS": ""}
        return subprocess.run([sys.executable, "-c", BITS], env=environment, check=True, capture_output=True, text=True).stdout

    assert bits("1") == bits("2") == bits("5")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "instructions", "floats", "products"),
    [
        ("-mno-amx-tile", "avx512_bf16", 16, b"avx512_bf16"),
        ("-mno-avx512bf16", "avx512f", 16, b"float32"),
        ("-mno-avx512f", "avx2", 8, b"float32"),
        ("-mno-avx", "sse2", 4, b"float32"),
    ],
)
def test_processors_that_can_do_less_have_the_same_results(flags, instructions, floats, products, lanes):
    cpuinfo = Path("/proc/cpuinfo")
    here = native.library().Lanes(), native.library().Products()
    if here == (floats, products) or not cpuinfo.exists() or instructions not in cpuinfo.read_text().split():
        pytest.skip(f"this processor computes with {here}, or has no {instructions}")
    environment = os.environ | {"CXX": f"{os.environ.get('CXX', 'c++')} {flags}"}
    program = "from plain56.ops import native; print(native.load(), native.library().Products())"
    told = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert told.stdout.strip() == f"{floats} {products}"
    tests = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "-k", "native and not threads", __file__]
    done = subprocess.run(tests, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


# Linux refuses AMX to a process that has a stack for signals that is too small for its registers.
DENIED = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(4096)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, len(memory))), None) == 0
import jax, jax.numpy as jnp
from plain56 import ops
from plain56.ops import native
x, w = (jax.random.normal(jax.random.key(0), shape, jnp.bfloat16) for shape in [(2, 8, 8, 32), (3, 3, 32, 32)])
def results(x, w):
    y, pull_back = jax.vjp(lambda x, w: ops.convolve(x, w, (1, 1), ((1, 1), (1, 1))), x, w)
    return y, *pull_back(jnp.ones_like(y))
for ours, exact in zip(results(x, w), results(x.astype(jnp.float32), w.astype(jnp.float32))):
    assert jnp.allclose(ours.astype(jnp.float32), exact, rtol=2**-8 + 2**-16, atol=3e-6 * float(abs(exact).max()))
print(native.describe("bfloat16")["products"])
"""


def test_a_process_that_may_not_use_amx_does_without(lanes):
    if native.library().Products() != b"amx_bf16":
        pytest.skip("this processor has no AMX")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", DENIED], env=environment, capture_output=True, text=True)
    assert done.stdout == "float32\n", done.stderr
