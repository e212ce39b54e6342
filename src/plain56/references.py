"""Functions of the user's own, which a config names as `package.module:function`."""

import contextlib
import hashlib
import importlib
import inspect
import sys
import traceback
from pathlib import Path

from plain56.errors import UserError, first_line

FORM = "package.module:function"
_checksums = {}  # of the files of the modules that were imported, as they were then


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


def call(reference, key, arguments, options, options_key):
    """What the function of a reference returns for these positional arguments and options.

    Args:
        reference, key: as of `resolve`.
        options: a dict, which the config has as the section `options_key`.

    Raises UserError as `resolve` does, if the function does not take the options, or if it raises anything.
    """
    function = resolve(reference, key)
    check_options(function, reference, arguments, options, options_key)
    with explaining(reference):
        return function(*arguments, **options)


@contextlib.contextmanager
def explaining(reference):
    """Raises UserError, with the line of the user's file, where what a reference stands for raises anything."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        file = getattr(sys.modules.get(reference.partition(":")[0]), "__file__", None)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f" ({Path(file).name}, line {lines[-1]})" if lines else ""
        raise UserError(f"{reference} fails with {type(error).__name__}: {first_line(error)}{where}.") from error


def check_options(function, name, arguments, options, key):
    """Raises UserError where a function, called `name` in the sentence, does not take the options that the section `key` has."""
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # a built-in one
        raise UserError(f"{name} must be a function of Python, whose arguments are known.") from error
    try:
        signature.bind_partial(*arguments)
    except TypeError as error:
        raise UserError(f"{name} must take {len(arguments)} positional arguments before its options: {error}.") from error
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        taken = ", ".join(list(signature.parameters)[len(arguments) :]) or "no options"
        raise UserError(f"{key} does not fit {name}, which takes {taken}: {first_line(error)}.") from error


def is_reference(text):
    """Whether a value is a text of the form `package.module:function`."""
    if not isinstance(text, str):
        return False
    module, _, function = text.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), function))


def checksum(reference):
    """The first 16 hex digits of the SHA-256 of the file that a reference's module comes from; None if it comes from none."""
    name = reference.partition(":")[0]
    try:
        _import(name)
    except (Exception, SystemExit):  # whoever calls the function says what is wrong with its module
        return None
    return _checksums[name]


def _checksum_of_file(module):
    try:
        return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:16]
    except (AttributeError, TypeError, OSError):  # it comes from no file, or lies in an archive
        return None


def _import(name):
    """Imports a module. The installed command, unlike `python -m`, does not look in the current folder by itself."""
    sys.path.insert(0, "")  # the current folder
    try:
        importlib.invalidate_caches()  # the file may be newer than the last look at its folder
        module = importlib.import_module(name)
        if name not in _checksums:
            _checksums[name] = _checksum_of_file(module)
        return module
    finally:
        if "" in sys.path:  # the module may have changed it
            sys.path.remove("")
