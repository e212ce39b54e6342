import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from plain56 import machine
from plain56.errors import UserError

PROGRAM = """
import resource
import jax
import jax.numpy as jnp
from plain56 import machine
machine.set_up()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
step = jax.jit(lambda x: x + 1)
x = jnp.ones(1 << 25)  # 128 MiB
for _ in range(3):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(cache, program=PROGRAM):
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache), "XLA_FLAGS": ""}
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True)


def test_programs_are_kept_for_the_next_process_and_memory_for_the_next_step(tmp_path):
    new_pages = int(run(tmp_path).stdout)
    kept = {path.name for path in (tmp_path / "plain56" / "programs").glob("*-cache")}
    assert kept
    # Ten results of 128 MiB would be 327,680 pages of 4 KiB.
    assert new_pages < 32_768
    run(tmp_path)
    assert {path.name for path in (tmp_path / "plain56" / "programs").glob("*-cache")} == kept


def test_the_cache_lies_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine.cache_folder() == tmp_path / "plain56"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert machine.cache_folder() == Path.home() / ".cache" / "plain56"


@pytest.mark.parametrize(("dtype", "rows"), [(np.float32, 32_769), (np.float64, 16_385)])
def test_sums_of_this_version_of_jax_are_right(dtype, rows):
    x = np.stack([np.arange(rows), np.zeros(rows), np.zeros(rows)], axis=1).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        sums = machine.squared_lengths(x)
    assert sums.dtype == dtype
    np.testing.assert_allclose(sums, np.arange(rows, dtype=np.float64) ** 2, rtol=1e-6)


def test_wrong_sums_stop_a_program_and_right_ones_are_noted(monkeypatch, tmp_path):
    def wrong(rows):
        lengths = rows[:, 0] ** 2
        lengths[-1] *= 0.998
        return lengths

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    right = machine.squared_lengths
    monkeypatch.setattr(machine, "squared_lengths", wrong)
    sentence = r"computes wrong sums on this CPU .* pip install 'jax>=0\.10,!=0\.10\.2,<0\.12'\.$"
    for _ in range(2):
        with pytest.raises(UserError, match=sentence):
            machine.check_sums()
    assert list(tmp_path.rglob("*.*")) == []

    monkeypatch.setattr(machine, "squared_lengths", right)
    machine.check_sums()
    monkeypatch.setattr(machine, "squared_lengths", wrong)
    machine.check_sums()  # which does not compute the sum again
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    with pytest.raises(UserError, match=sentence):  # unless flags change
        machine.check_sums()


def test_without_a_cache_folder_sums_are_checked_and_programs_are_not_kept(tmp_path):
    (tmp_path / "file").write_text("")
    program = "import jax; from plain56 import machine; machine.set_up(); print(jax.config.jax_compilation_cache_dir)"
    done = run(tmp_path / "file", program)
    assert (done.stdout, done.stderr) == ("None\n", "")
