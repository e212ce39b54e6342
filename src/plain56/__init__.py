"""plain56: why residual networks exist, in JAX and Flax."""
