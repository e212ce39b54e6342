import os
import subprocess
import sys
from pathlib import Path

from plain56 import machine

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


def run(cache):
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache), "XLA_FLAGS": ""}
    return int(
        subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True).stdout
    )


def test_programs_are_kept_for_the_next_process_and_memory_for_the_next_step(tmp_path):
    new_pages = run(tmp_path)
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
