"""Functions of the user's own: found from the current folder by every kind of start, and each mistake is one sentence."""

import hashlib
import os
import subprocess
import sys
import zipfile

import pytest

from plain56 import references
from plain56.errors import UserError


def test_function_is_found_in_a_package_of_the_current_folder(own_folder):
    (own_folder / "own_ideas").mkdir()
    (own_folder / "own_ideas" / "net.py").write_text("import own_part\n\ndef answer():\n    return own_part.VALUE\n")
    (own_folder / "own_part.py").write_text("VALUE = 42\n")
    path = list(sys.path)
    assert references.resolve("own_ideas.net:answer", "model.name")() == 42
    assert sys.path == path


def test_function_is_found_in_the_python_path():
    assert references.resolve("os.path:join", "model.name") is os.path.join


def test_installed_command_finds_the_current_folder(tmp_path):
    """Like the script that pip installs, Python with -P looks for modules only where packages are."""
    (tmp_path / "own_idea.py").write_text("def answer():\n    return 42\n")
    script = "from plain56.references import resolve; print(resolve('own_idea:answer', 'model.name')())"
    done = subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "42\n", done.stderr
    without = subprocess.run([sys.executable, "-P", "-c", "import own_idea"], cwd=tmp_path, capture_output=True, text=True)
    assert "ModuleNotFoundError" in without.stderr


@pytest.mark.parametrize(
    "reference", ["x", "", ":f", "m:", "m:f:g", "m.:f", ".m:f", "m:f()", "m/n:f", "m:a.b", "m m:f", 3, None, ("m:f",)]
)
def test_other_forms_are_refused(reference):
    with pytest.raises(UserError) as error:
        references.resolve(reference, "train.loggers")
    assert str(error.value) == f"train.loggers must name package.module:function, not {reference!r}."


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (None, "the module own_idea cannot be imported: ModuleNotFoundError: No module named 'own_idea'."),
        ("import absent_part", "the module own_idea cannot be imported: ModuleNotFoundError: No module named 'absent_part'."),
        ("def f(:", "the module own_idea cannot be imported: SyntaxError: invalid syntax (own_idea.py, line 1)."),
        ("raise KeyError('a\\nb')", "the module own_idea cannot be imported: KeyError: 'a\\nb'."),
        ("raise RuntimeError('first\\nsecond')", "the module own_idea cannot be imported: RuntimeError: first."),
        ("raise SystemExit(3)", "the module own_idea cannot be imported: SystemExit: 3."),
        ("g = 1", "the module own_idea has no function f."),
    ],
)
def test_module_that_does_not_give_the_function_costs_a_sentence(own_folder, source, sentence):
    if source is not None:
        (own_folder / "own_idea.py").write_text(source)
    path = list(sys.path)
    with pytest.raises(UserError) as error:
        references.resolve("own_idea:f", "optimizer.name")
    assert str(error.value) == f"optimizer.name is 'own_idea:f', but {sentence}"
    assert sys.path == path


def test_value_that_is_no_function_costs_a_sentence(own_folder):
    (own_folder / "own_idea.py").write_text("f = 1\n")
    with pytest.raises(UserError) as error:
        references.resolve("own_idea:f", "model.name")
    assert str(error.value) == "model.name is 'own_idea:f', which must be a function, not a value of type int."


def test_checksum_is_that_of_the_file(own_folder):
    source = b"def f():\n    return 1\n"
    (own_folder / "own_idea.py").write_bytes(source)
    references.resolve("own_idea:f", "model.name")
    assert references.checksum("own_idea:f") == hashlib.sha256(source).hexdigest()[:16]


def test_module_without_a_file_has_no_checksum(own_folder, monkeypatch):
    with zipfile.ZipFile("archive.zip", "w") as archive:
        archive.writestr("own_archived.py", "def f(): pass\n")
    monkeypatch.syspath_prepend("archive.zip")
    assert references.checksum("sys:exit") is None
    assert references.resolve("own_archived:f", "model.name")() is None
    assert references.checksum("own_archived:f") is None
