"""plain56: why residual networks exist, in JAX and Flax."""

__all__ = ["load_pretrained"]


def __getattr__(name):
    # Not imported at once: JAX takes seconds that `launch.py --help` need not wait for.
    if name == "load_pretrained":
        from plain56.weights import load_pretrained

        return load_pretrained
    raise AttributeError(f"module 'plain56' has no attribute {name!r}")
