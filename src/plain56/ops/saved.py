"""How operations keep bfloat16 values for their backward pass: as bits.

On a CPU, XLA keeps a loop's stack of bfloat16 values in float32, and converts all of it in every step. Integers it leaves alone.
"""

import jax.numpy as jnp
from jax import lax


def to_bits(x):
    """The bits of bfloat16 values, other values as they are."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(x):
    """The inverse of `to_bits`."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x
