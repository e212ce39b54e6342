"""Functions of the user's own, which a config names as `package.module:function`."""

import hashlib
import importlib
import sys
from pathlib import Path

from plain56.errors import UserError, first_line

FORM = "package.module:function"


def resolve(reference, key):
    """The function that a reference of the form `package.module:function` names.

    The module is imported from the current folder and the Python path, like that of `python -m`.

    Args:
        reference: the text; nothing else is imported than what it names.
        key: the config key that has it, for the sentence.

    Raises UserError if it is not of the form, the module cannot be imported, or it has no such function.
    """
    if not is_reference(reference):
        raise UserError(f"{key} must name {FORM}, not {reference!r}.")
    name, _, function_name = reference.partition(":")
    try:
        module = _import(name)
    except (Exception, SystemExit) as error:  # a module is a program, and may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{key} is {reference!r}, but the module {name} cannot be imported: {reason}.") from error
    if not hasattr(module, function_name):
        raise UserError(f"{key} is {reference!r}, but the module {name} has no function {function_name}.")
    function = getattr(module, function_name)
    if not callable(function):
        kind = type(function).__name__
        raise UserError(f"{key} is {reference!r}, which must be a function, not a value of type {kind}.")
    return function


def is_reference(text):
    """Whether a value is a text of the form `package.module:function`."""
    if not isinstance(text, str):
        return False
    module, _, function = text.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), function))


def checksum(reference):
    """The first 16 hex digits of the SHA-256 of the file that a reference's module comes from; None if it comes from none."""
    file = getattr(_import(reference.partition(":")[0]), "__file__", None)
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else None
    except OSError:  # the module lies in an archive
        return None


def _import(name):
    """Imports a module. The installed command, unlike `python -m`, does not look in the current folder by itself."""
    sys.path.insert(0, "")  # the current folder
    try:
        importlib.invalidate_caches()  # the file may be newer than the last look at its folder
        return importlib.import_module(name)
    finally:
        if "" in sys.path:  # the module may have changed it
            sys.path.remove("")
