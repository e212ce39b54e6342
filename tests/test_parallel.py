import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from plain56 import parallel
from plain56.errors import UserError
from plain56.training import prepare


def test_one_and_eight_devices_train_alike(tmp_path):
    arrays = {}
    for devices in (1, 8):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        file = tmp_path / f"{devices}.npz"
        command = [sys.executable, "-m", "tests.one_or_many_devices", str(file)]
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parent.parent)
        arrays[devices] = list(np.load(file).values())
    assert len(arrays[1]) == len(arrays[8])
    compared = {"float32": 0, "float64": 0}
    for one, eight in zip(arrays[1], arrays[8], strict=True):
        assert one.dtype == eight.dtype
        if one.dtype.kind == "f":
            compared[one.dtype.name] += one.size
            np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5 if one.dtype == np.float32 else 1e-9)
        else:
            np.testing.assert_array_equal(eight, one)
    assert compared["float32"] > 2 * 75_002  # parameters and momentum
    assert compared["float64"] > 2 * 75_002


def test_every_device_holds_a_share_of_the_batch():
    mesh = parallel.data_mesh()
    assert mesh.size == 2
    batch = jax.jit(lambda x: parallel.split_batch(x, mesh))(np.arange(8))
    assert [shard.data.tolist() for shard in batch.addressable_shards] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_batch_that_does_not_divide(tiny_config):
    tiny_config.train.batch_size = 33
    with pytest.raises(UserError, match="batch_size is 33, which does not divide among the 2 devices"):
        prepare(tiny_config)
