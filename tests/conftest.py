"""Two simulated devices, and arrays of different rank never meet by accident."""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.devices import devices

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as `plain56` sets it, where it is imported before JAX
os.environ.update(devices(2))
# Many tests run the same small network, in processes of their own, too: it is compiled once, for all workers. `.ci/run` sets
# the folder, for all of its suites.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Tracing a network makes so many objects that the collector's usual thresholds cost a twentieth of the time.
gc.set_threshold(50_000, 20, 20)

import jax
import pytest

from configs import digits
from plain56 import references, training
from plain56.ops import native

jax.config.update("jax_numpy_rank_promotion", "raise")


def tiny():
    """The digits recipe, shrunk: eight layers of a few filters, twelve steps."""
    config = digits.get_config("resnet8")
    config.model.widths = (4, 4, 8)
    config.train.batch_size = 32
    config.train.steps = 12
    config.train.steps_per_call = 4
    config.train.log_every = 4
    config.train.evaluate_every = 12
    config.train.checkpoint_every = 4
    config.optimizer.schedule.warmup_steps = 2
    return config


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """An empty current folder. Modules that are imported from it are forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
            references._checksums.pop(name, None)


@pytest.fixture
def tiny_config():
    """A config of the shrunk digits recipe, to change."""
    return tiny()


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory):
    """Two runs of the shrunk recipe: one is finished, and one was stopped at step 8."""
    folder, config = tmp_path_factory.mktemp("tiny"), tiny()
    training.train(config, folder / "finished")
    config.train.stop_after = 8
    training.train(config, folder / "stopped")
    return folder


@pytest.fixture
def finished_run(tiny_runs, tmp_path):
    """A finished run of the shrunk recipe, the test's own."""
    return Path(shutil.copytree(tiny_runs / "finished", tmp_path / "finished"))


@pytest.fixture
def stopped_run(tiny_runs, tmp_path):
    """A run of the shrunk recipe that was stopped at step 8, the test's own."""
    return Path(shutil.copytree(tiny_runs / "stopped", tmp_path / "stopped"))


@pytest.fixture
def lanes(monkeypatch):
    """Switches the native convolution on, although this process has two devices."""
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler here")
    assert native.load() > 0
    monkeypatch.setattr(native, "lanes", native.load)
    return native.load()
