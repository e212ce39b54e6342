"""plain56: why residual networks exist, in JAX and Flax."""

import os

# A file of a few hundred kilobytes can hold a billion pixels, which take gigabytes; 2**27 take 400 MB. OpenCV reads this bound
# only when it is imported: if that was before this package, OpenCV's own bound of 2**30 holds.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))

# XLA's failures also come as exceptions. jaxlib 0.10.1 logs an error at every start, since the programs in its cache were
# compiled with two preferences of the compiler ("prefer-no-gather", "prefer-no-scatter") that are not features of a processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__all__ = ["__version__", "load_pretrained"]
__version__ = "0.1.0"


def __getattr__(name):
    # Imported late, so that `plain56 --help` does not wait seconds for JAX.
    if name == "load_pretrained":
        from plain56.pretrained import load_pretrained

        return load_pretrained
    raise AttributeError(f"module 'plain56' has no attribute {name!r}")
