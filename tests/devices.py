"""Environments of processes with so many CPU devices, in which XLA compiles quickly.

Most of the tests' time goes into compiling programs that run for moments: with LLVM's optimizations and XLA's newer way of
emitting fused operations it takes more than twice as long.
"""

import os


def devices(count):
    """This process's environment, with `count` simulated devices."""
    quickly = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count} {quickly}"}


def one_device():
    """As for a user with a CPU, not with the two devices that the tests simulate: convolutions are computed in C++."""
    return devices(1)
