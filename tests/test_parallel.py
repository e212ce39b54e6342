import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from plain56 import parallel
from plain56.errors import UserError
from plain56.training import prepare
from tests.devices import devices

ROOT = Path(__file__).parent.parent


def run(folder, count, *ways, processes=1):
    """What tests/one_or_many_devices.py computes in each way: lists of arrays."""
    file = folder / f"{count}-{processes}.npz"
    command = [sys.executable, "-m", "tests.one_or_many_devices", str(file), ",".join(ways)]
    several = [f"localhost:{free_port()}", str(processes)] if processes > 1 else []
    commands = [command + (several and [*several, str(process)]) for process in range(processes)]
    started = [subprocess.Popen(command, env=devices(count // processes), cwd=ROOT) for command in commands]
    assert [process.wait() for process in started] == [0] * processes
    with np.load(file) as arrays:
        return {way: [arrays[key] for key in arrays if key.split()[0] == way] for way in ways}


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def assert_alike(one, other):
    assert len(one) == len(other)
    compared = {"float32": 0, "float64": 0}
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        if a.dtype.kind == "f":
            compared[a.dtype.name] += a.size
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 if a.dtype == np.float32 else 1e-9)
        else:
            np.testing.assert_array_equal(b, a)
    assert compared["float32"] > 2 * 14_362 and compared["float64"] > 2 * 1_638  # parameters and momentum


@pytest.fixture(scope="module")
def by_one_device(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), 1, "jit")["jit"]


def test_one_and_eight_devices_train_alike(tmp_path, by_one_device):
    for result in run(tmp_path, 8, "jit", "pmap").values():
        assert_alike(by_one_device, result)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "processes"), [(2, 1), (8, 2)])
def test_any_number_of_devices_trains_alike(tmp_path, by_one_device, count, processes):
    results = run(tmp_path, count, "jit", "pmap", "jit:apart", "pmap:apart", processes=processes)
    assert_alike(by_one_device, results["jit"])
    assert_alike(by_one_device, results["pmap"])
    assert_alike(results["jit:apart"], results["pmap:apart"])
    # Statistics of each device's own share differ from those of the whole batch.
    assert max(np.abs(a - b).max() for a, b in zip(results["jit"], results["jit:apart"], strict=True)) > 1e-3


def test_every_device_holds_a_share_of_the_batch():
    layout = parallel.layout()
    assert layout.mesh.size == 2
    batch = jax.jit(layout.split)(np.arange(8))
    assert [shard.data.tolist() for shard in batch.addressable_shards] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_batch_that_does_not_divide(tiny_config):
    tiny_config.train.batch_size = 33
    with pytest.raises(UserError, match="batch_size must be a multiple of 2, not 33, to divide among the 2 devices"):
        prepare(tiny_config)
