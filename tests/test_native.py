import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from plain56.ops import native

PROGRAM = """
import json
import jax
from jax import lax
from plain56 import ops
from plain56.ops import native
x, w = (jax.random.normal(jax.random.key(0), shape) for shape in [(2, 8, 8, 32), (3, 3, 32, 32)])
ours = ops.convolve(x, w, (1, 1), ((1, 1), (1, 1)))
theirs = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
with native.portable():
    portable = native.describe()
print(json.dumps([native.describe(), portable, float(abs(ours - theirs).max())]))
"""
LACKING = 'extern "C" int Lanes() { return 16; }'


@pytest.fixture(scope="module")
def compiled():
    """The library as the compiler makes it."""
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler here")
    native.library()  # compiled here, unless it has been compiled before
    return Path(native.library()._name)


class Machine:
    """A machine with an empty cache folder, and a compiler that runs the commands it is given, and counts its calls."""

    def __init__(self, folder, compiled):
        self.compiler, self.calls, self.cache = folder / "compiler", folder / "calls", folder / "cache" / "plain56"
        self.calls.write_text("")
        self.compile_to(f'echo >> {self.calls}; for last; do :; done; cp {compiled} "$last"')

    def compile_to(self, commands):
        self.compiler.write_text(f"#!/bin/sh\n{commands}\n")
        self.compiler.chmod(0o755)

    def compiled(self):
        return len(self.calls.read_text())

    def kept(self):
        return sorted(self.cache.glob("*.so"))


@pytest.fixture
def machine(tmp_path, compiled, monkeypatch):
    made = Machine(tmp_path, compiled)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache.parent))
    monkeypatch.setenv("CXX", str(made.compiler))
    return made


def cut(path):
    path.write_bytes(path.read_bytes()[:20_000])


def change(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def become_a_directory(path):
    path.unlink()
    (path / "inside").mkdir(parents=True)


def become_a_dangling_link(path):
    path.unlink()
    path.symlink_to("nowhere")


DAMAGES = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "changed": change,
    "another program": lambda path: path.write_bytes(Path(sys.executable).read_bytes()),
    "directory": become_a_directory,
    "dangling link": become_a_dangling_link,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_library_is_never_loaded_and_made_anew(damage, machine, compiled):
    lanes = native.library().Lanes()
    (path,) = machine.kept()
    assert machine.compiled() == 1
    damage(path)
    assert native.library().Lanes() == lanes
    assert machine.compiled() == 2
    assert machine.kept() == [path]
    assert path.read_bytes() == compiled.read_bytes()
    native.library()
    assert machine.compiled() == 2


def test_a_damaged_library_changes_no_result(machine, compiled):
    lanes = native.library().Lanes()
    cut(*machine.kept())
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True)
    here, portable, difference = json.loads(done.stdout)
    assert here == {"convolution": "native", "lanes": lanes}
    assert portable == {"convolution": "portable", "lanes": 0}
    assert difference < 1e-4
    assert done.stderr == ""
    assert machine.compiled() == 2


def test_a_library_needs_no_compiler_once_it_is_there(machine):
    lanes = native.library().Lanes()
    machine.compiler.unlink()
    assert native.library().Lanes() == lanes


def test_a_whole_library_without_our_functions_is_not_used(machine, tmp_path, caplog):
    source, lacking = tmp_path / "lacking.cc", tmp_path / "lacking.so"
    source.write_text(LACKING)
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", lacking], check=True)
    native.library()
    (path,) = machine.kept()
    path.unlink()
    checksum = hashlib.sha256(lacking.read_bytes()).hexdigest()[:16]
    shutil.copy(lacking, path.with_name(f"{path.stem.rpartition('-')[0]}-{checksum}.so"))
    assert native.library().Convolution
    assert machine.compiled() == 2
    # Nor is it used if the compiler itself makes it.
    shutil.rmtree(machine.cache)
    machine.compile_to(f'for last; do :; done; cp {lacking} "$last"')
    assert native.load.__wrapped__() == 0
    assert "undefined symbol" in caplog.text
    assert machine.kept() == []


@pytest.mark.parametrize(
    ("cxx", "commands", "reason"),
    [
        ("'x", "", "No closing quotation"),
        ("/nonexistent/c++", "", "No such file or directory: '/nonexistent/c++'"),
        (os.sep, "", "Permission denied: '/'"),
        ("true", "", "cannot open shared object file"),
        ("false", "", "false ended with status 1"),
        (None, "echo one >&2; echo two >&2; exit 1", "could not be compiled: one two"),
        (None, "kill -9 $$", "compiler ended with status -9"),
        (None, "exec sleep 60", "compiler has taken more than 2 seconds"),
    ],
)
def test_a_compiler_that_fails_is_told_in_one_line(cxx, commands, reason, machine, monkeypatch, caplog):
    machine.compile_to(commands)
    monkeypatch.setenv("CXX", cxx or str(machine.compiler))
    monkeypatch.setattr(native, "COMPILE_SECONDS", 2 if "sleep" in commands else 60)
    assert native.load.__wrapped__() == 0
    (message,) = caplog.messages
    assert message.startswith("Training is slow on this CPU, since the C++ convolution could not be compiled: ")
    assert reason in message and "\n" not in message
    assert machine.kept() == []


def test_without_a_cache_folder_each_process_compiles(machine):
    machine.cache.parent.write_text("a file")
    assert native.library().Lanes() == native.library().Lanes() > 0
    assert machine.compiled() == 2


def test_description_tells_what_computes(monkeypatch):
    assert native.describe() == {"convolution": "portable", "lanes": 0}  # there are two devices here
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert native.describe() == {"convolution": "xla", "lanes": 0}
