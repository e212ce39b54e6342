"""2-D convolution that is fast on a CPU too, forward and backward, also inside `lax.scan` and under `vmap`.

XLA's own gradients of a small 3×3 convolution are 10 to 30 times slower on a CPU than its forward pass, and slower again
inside a loop. There are therefore three ways, of which the platform selects one when a program is lowered, so that one traced
program is right on every backend:

    native      on a CPU: `convolution.cc`, for float32 and bfloat16, and whole registers of output channels
    portable    on a CPU otherwise: XLA's forward pass, and both gradients written out here
    XLA's own   on GPU and TPU

Shapes: images x [N, H, W, C], kernel w [kh, kw, C, D], output y and its gradient g [N, h, w, D], stride s, zero padding (lo, hi):

    y[n,p,q,d]  = Σ_ijc x[n, p·s − lo + i, q·s − lo + j, c] · w[i,j,c,d]
    dx          = convolution of g, dilated by s, with w flipped in space and C and D exchanged
    dw[i,j,c,d] = Σ_npq x[n, p·s − lo + i, q·s − lo + j, c] · g[n,p,q,d]
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plain56.ops import native
from plain56.ops.saved import from_bits, to_bits

DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")
# Numbers in a kernel, which `convolution.cc` copies for every thread. VGG's fully connected layer as a kernel has 100 million.
MOST_NATIVE = 1 << 24


def _xla(x, w, strides, padding, input_dilation=(1, 1)):
    return lax.conv_general_dilated(x, w, strides, padding, lhs_dilation=input_dilation, dimension_numbers=DIMENSION_NUMBERS)


def _xla_gradients(strides, padding, x, w, g):
    return jax.vjp(lambda x, w: _xla(x, w, strides, padding), x, w)[1](g)


def _is_native(x, w, channels):
    """Whether `convolution.cc` computes a result of so many channels from images x, or a gradient of their size, and kernel w."""
    return w.size <= MOST_NATIVE and native.takes(x, channels)


def _attributes(strides, padding):
    return {"strides": strides, "padding": [low for low, _ in padding]}


def _input_gradient(strides, padding, x, w, g):
    kh, kw, c, d = w.shape
    # A gather, not a reverse: XLA folds a reverse or a transpose into the convolution, which is then slow inside loops.
    flipped = w.reshape(kh * kw, c, d)[np.arange(kh * kw)[::-1]].transpose(0, 2, 1).reshape(kh, kw, d, c)
    # So that the output has x's size again: (h − 1)·s + 1 + lo' + hi' − k + 1 = H with lo' = k − 1 − lo.
    back = [
        (k - 1 - lo, size + lo - 1 - (out - 1) * stride)
        for k, (lo, _), size, out, stride in zip((kh, kw), padding, x.shape[1:3], g.shape[1:3], strides, strict=True)
    ]
    return _xla(g, flipped, (1, 1), back, input_dilation=strides)


def _kernel_gradient(strides, padding, x, w, g):
    """dw as one matrix product over all pixels, after copying shifted views side by side.

    With stride 1, x gets the column shifts and g the row shifts: kw + kh copies instead of kh·kw, and a product with kw·C by
    kh·D outputs, which is what makes it efficient for few channels. A strided kernel gathers patches of x.
    """
    kh, kw, c, d = w.shape
    h, width = g.shape[1:3]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    if strides == (1, 1):
        g = jnp.pad(g, ((0, 0), (kh - 1, kh - 1), (0, 0), (0, 0)))
        rows = x.shape[1]
        columns = jnp.concatenate([x[:, :, j : j + width] for j in range(kw)], axis=-1)
        shifted = jnp.concatenate([g[:, kh - 1 - i : kh - 1 - i + rows] for i in range(kh)], axis=-1)
        dw = jnp.einsum("np,nq->pq", columns.reshape(-1, kw * c), shifted.reshape(-1, kh * d))
        return dw.reshape(kw, c, kh, d).transpose(2, 0, 1, 3)
    rows = [slice(i, i + (h - 1) * strides[0] + 1, strides[0]) for i in range(kh)]
    columns = [slice(j, j + (width - 1) * strides[1] + 1, strides[1]) for j in range(kw)]
    patches = jnp.concatenate([x[:, row, column] for row in rows for column in columns], axis=-1)
    return jnp.einsum("np,nq->pq", patches.reshape(-1, kh * kw * c), g.reshape(-1, d)).reshape(w.shape)


def _cpu_forward(strides, padding, x, w):
    y = jax.eval_shape(lambda x, w: _xla(x, w, strides, padding), x, w)
    if _is_native(x, w, y.shape[-1]):
        return native.call(native.FORWARD, (x, w), y.shape, **_attributes(strides, padding))
    return _xla(x, w, strides, padding)


def _cpu_gradients(strides, padding, x, w, g):
    if _is_native(x, w, g.shape[-1]):
        dw = native.call(native.KERNEL_GRADIENT, (x, g), w.shape, **_attributes(strides, padding))
    else:
        # The barrier keeps XLA from recomputing whole chains of batch norm and ReLU for every shifted copy.
        x, g = lax.optimization_barrier((x, g))
        dw = _kernel_gradient(strides, padding, x, w, g)
    if _is_native(x, w, x.shape[-1]):
        return native.call(native.INPUT_GRADIENT, (g, w), x.shape, **_attributes(strides, padding)), dw
    return _input_gradient(strides, padding, x, w, g), dw


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x, w, strides, padding):
    return _forward(x, w, strides, padding)[0]


def _forward(x, w, strides, padding):
    on_cpu = functools.partial(_cpu_forward, strides, padding)
    return lax.platform_dependent(x, w, cpu=on_cpu, default=lambda x, w: _xla(x, w, strides, padding)), (to_bits(x), to_bits(w))


def _backward(strides, padding, saved, g):
    on_cpu, elsewhere = (functools.partial(gradients, strides, padding) for gradients in (_cpu_gradients, _xla_gradients))
    x, w = map(from_bits, saved)
    return lax.platform_dependent(x, w, g, cpu=on_cpu, default=elsewhere)


_convolve.defvjp(_forward, _backward)


def convolve(x, w, strides, padding):
    """Convolves images [N, H, W, C] with a kernel [kh, kw, C, D] to [N, h, w, D] in the dtype of `x`.

    `strides` is (vertical, horizontal), `padding` the zeros added, ((top, bottom), (left, right)). Reverse-mode differentiable
    once.
    """
    return _convolve(x, w, tuple(strides), tuple(tuple(pair) for pair in padding))
