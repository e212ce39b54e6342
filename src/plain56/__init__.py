"""plain56: why residual networks exist, in JAX and Flax."""

import os

# A file of a few hundred kilobytes can hold a billion pixels, which take gigabytes; 2**27 take 400 MB. OpenCV reads this bound
# once, when it is imported: where that was before this package, its own bound of 2**30 holds.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))

# What XLA fails at comes as an exception, too. jaxlib 0.10.1 logs an error at every start, since programs out of its cache were
# compiled with two preferences of the compiler ("prefer-no-gather", "prefer-no-scatter") that are no features of a processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__all__ = ["load_pretrained"]


def __getattr__(name):
    # Not imported at once: JAX takes seconds that `launch.py --help` need not wait for.
    if name == "load_pretrained":
        from plain56.pretrained import load_pretrained

        return load_pretrained
    raise AttributeError(f"module 'plain56' has no attribute {name!r}")
