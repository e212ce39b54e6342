"""The flags: which mode takes which ones, and how a command line is read."""

import ast
import difflib
import functools
import re
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from plain56.configs import base
from plain56.errors import UserError
from plain56.runs import OPEN_KEY, flatten, override, read_json, upgraded, user_path

# These stand for experiments where modes are listed: those that train or measure, and those that also look into files of weights.
EXPERIMENT, WEIGHTS_EXPERIMENT = EXPERIMENTS = "experiment", "experiment on weights"
WITH_ARGUMENTS = ("describe", "predict")  # the modes that also take positional arguments
PACKAGE = Path(base.__file__).parents[1]

OPEN_FLAG = re.compile(rf"config\.({OPEN_KEY.pattern})")

_text = functools.partial(flags.DEFINE_string, default=None)
_switch = functools.partial(flags.DEFINE_boolean, default=False)


def _number(least, most=None, default=None, define=flags.DEFINE_integer):
    return functools.partial(define, default=default, lower_bound=least, upper_bound=most)


def _choice(*values, default=None):
    return functools.partial(flags.DEFINE_enum, default=default, enum_values=values)


# The flags, each with its type and its --help text, by the modes that take them; (): all modes. All modes also take --config,
# whose type depends on its value.
FLAGS = {
    (): {
        "workdir": (_text, "directory of the run or sweep"),
        "json": (
            functools.partial(flags.DEFINE_boolean, default=None),
            "end with one JSON object; by default at no terminal, but elsewhere, such as in a pipe (--nojson: nowhere)",
        ),
    },
    ("evaluate",): {
        "protocol": (_choice("center", "ten_crop", "dense"), "how pictures are presented; by default as in training"),
        "side": (
            _number(1, define=flags.DEFINE_multi_integer),
            "with --protocol=dense: length of the shorter side",
        ),
        "exact_statistics": (_switch, "take batch norm's statistics over the whole training split"),
    },
    ("describe",): {
        "all": (_switch, "show all networks as published"),
        "list": (_switch, "only name all networks, recipes, sweeps and experiments"),
        "image_size": (_number(1, 8192), "side of the images; by default 224 for ImageNet and 32 for CIFAR-10"),
        "num_classes": (_number(2, 10**6), "number of classes; by default 1000 for ImageNet and 10 for CIFAR-10"),
    },
    ("sweep", EXPERIMENT): {"workers": (_number(1, default=1), "number of processes, which share the CPU cores")},
    ("sweep",): {
        "index": (_number(0), "run only this element, counted from 0"),
        "status": (_switch, "only show the state of the runs"),
        "dry_run": (_switch, "only show the elements"),
        "time": (_switch, "with --dry_run: also measure a few steps of each network, and show how long the sweep would take"),
        "executor": (_choice("local", "slurm", default="local"), "where it runs; slurm submits a job per run and returns"),
        "partition": (_text, "with --executor=slurm: partition of the jobs; Slurm's default if left out"),
        "gpus": (_number(1), "with --executor=slurm: GPUs per run"),
        "cpus": (_number(1), "with --executor=slurm: CPU cores per run"),
        # At least 3, since the last minute and a half is for saving.
        "minutes": (_number(3), "with --executor=slurm: a job's time limit, after which it is queued again; 5 if left out"),
        "parallel": (_number(1), "with --executor=slurm: how many jobs may run at a time"),
    },
    ("report",): {"watch": (_switch, "write the report again every 20 seconds, as long as runs train")},
    ("train", "finetune"): {
        "distributed": (_switch, "this is one of several processes started by Slurm, Open MPI, Kubernetes or a TPU pod"),
        "coordinator": (_text, "HOST:PORT of process 0, for processes started by hand"),
        "num_processes": (_number(1), "how many such processes there are"),
        "process_id": (_number(0), "the number of this process, from 0 on"),
    },
    ("evaluate", "finetune", "export", "predict", WEIGHTS_EXPERIMENT): {
        "weights": (
            _text,
            "the file, run directory or Hugging Face repository to read weights from; export: the file to write; experiments: "
            "files, separated by commas",
        ),
    },
    ("export",): {
        "dtype": (
            _choice("float32", "float16", default="float32"),
            "of kernels in a .safetensors file; float16 makes it half as long",
        )
    },
    ("finetune", "predict"): {"model": (_text, "name of the network, if the weights do not say it")},
}
# The flags of --executor=slurm, by submitit's names.
SLURM = {
    "partition": "partition",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "minutes": "time",
    "parallel": "array_parallelism",
}


def parse(argv, mode=EXPERIMENT):
    """Parses the flags of a mode, and returns them and the positional arguments.

    Raises:
        UserError: an unknown flag or config key, a value of the wrong type, a config file that does not load, or a flag or
            argument that the mode does not take.
    """
    try:
        options, arguments = _parse(argv)
    except UserError:
        raise
    except Exception as error:  # a config file is a user's program, and may raise anything
        # Only the last line: the library puts the traceback of the config file before it.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip().removeprefix("flag ")
        raise UserError(f"The command cannot be read: {reason.rstrip('.')}.") from error
    for name in ("workdir",) if mode == WEIGHTS_EXPERIMENT else ("workdir", "weights"):  # there, weights are several files
        if options[name].value:
            options[name].value = str(user_path(options[name].value))
    for modes, own in FLAGS.items():
        given = [name for name in own if options[name].present]
        if given and modes and mode not in modes:
            named = ", ".join(owner for owner in modes if owner not in EXPERIMENTS)
            raise UserError(f"--{given[0]} belongs to {named}, and is not allowed here.")
    if arguments and mode not in WITH_ARGUMENTS:
        raise UserError(f"{arguments[0]!r} must be a flag, such as --workdir=FOLDER (see --help).")
    return options, arguments


def all_flags():
    """The flags of all modes, by name."""
    return _define([])


def required(options, name):
    """The value of a flag. Raises UserError if it is missing."""
    if not options[name].value:
        raise UserError(f"--{name} is missing.")
    return options[name].value


def overridden(options):
    """The config keys that flags override."""
    return [*config_flags.get_override_values(options["config"]), *_open_overrides(options)] if options.config else []


def _open_overrides(options):
    """The keys of open sections that flags set, with their values."""
    matches = filter(None, map(OPEN_FLAG.fullmatch, options))
    return {match[1]: options[match[0]].value for match in matches}


def refuse_unused(options, used):
    """Raises UserError if a flag overrides a config key that the mode does not read."""
    for key in overridden(options):
        if not key.startswith(used) or key.startswith("data.augment."):
            raise UserError(f"--config.{key} changes nothing here; only keys that begin with {', '.join(used)} are used.")


def refuse_config(options, source):
    """Raises UserError if there is a config, although the mode reads something else, which `source` names."""
    if options.config:
        raise UserError(f"--config must be left out here: this command reads {source}.")


def _define(argv, config=None):
    """The flags of all modes. --config names a file, unless a config is given; flags override its keys."""
    options = flags.FlagValues()
    is_open = [OPEN_FLAG.match(argument.lstrip("-")) for argument in argv]
    for name in {match[0] for match in is_open if match}:
        flags.DEFINE(_Literal(), name, None, "", flag_values=options, serializer=None)
    argv = [argument for argument, match in zip(argv, is_open, strict=True) if not match]
    if config is None:
        config_flags.DEFINE_config_file(
            "config", None, "FILE.py[:ARGUMENT], or the config.json of a run", options, lock_config=True, sys_argv=argv
        )
    else:
        config_flags.DEFINE_config_dict("config", config, flag_values=options, lock_config=True, sys_argv=argv)
    for own in FLAGS.values():
        for name, (define, text) in own.items():
            define(name=name, help=text, flag_values=options)
    return options


class _Literal(flags.ArgumentParser):
    """Reads a value as a Python literal, or as text if it is none."""

    def parse(self, argument):
        try:
            return ast.literal_eval(argument)
        except Exception:  # of many kinds
            return argument


# Keys whose values may be of several types.
config_flags.register_flag_parser_for_type(object, _Literal())


def _run_config(path):
    """The config that a run was trained with, read from its config.json."""
    from plain56.config import check_value, from_json

    try:
        if not user_path(path).exists():
            raise UserError("there is no such file.")
        stored = read_json(user_path(path))
        if not (isinstance(stored.get("model"), dict) and "name" in stored["model"]):
            raise UserError("it names no network.")
        stored = flatten(from_json(upgraded(stored, path)).to_dict())
    except UserError as error:
        raise UserError(f"--config is {path}, which does not hold a run's config: {error}") from error
    config = base.get_config()
    known = flatten(config.to_dict())
    for key in stored:
        if key not in known and not OPEN_KEY.fullmatch(key):
            raise UserError(f"--config is {path}, whose key {key!r} does not exist.")
        check_value(key, stored[key])  # before it is converted to another type
    override(config, stored)
    return config


def _config_file(value):
    """The value FILE.py[:ARGUMENT] of --config, whose file is the user's own or else the one that ships with the package.

    Raises UserError if there is neither.
    """
    name, *argument = value.split(":", 1)
    path = Path(name)
    if not path.exists() and path.parts[:1] == ("configs",):
        path = PACKAGE / path
    if not path.exists():
        shipped = sorted(str(file.relative_to(PACKAGE)) for file in (PACKAGE / "configs").rglob("[!_]*.py"))
        raise UserError(f"There is no file {name!r}; --config must be a file of your own or one of {', '.join(shipped)}.")
    return ":".join([str(path), *argument])


def _parse(argv):
    """As `parse`, for the flags of all modes."""
    overriding = re.compile(r"--?config\.([^=]*)")
    given = [match[1] for match in map(overriding.match, argv) if match]
    config = None
    for i, argument in enumerate(argv):
        value = re.fullmatch(r"--?config(?:=(.*))?", argument)
        path = value and (value[1] or "".join(argv[i + 1 : i + 2]))
        if path:
            rest = argv[i + (1 if value[1] else 2) :]
            if path.endswith(".json"):
                config, argv = _run_config(path), argv[:i] + rest
            else:
                argv = [*argv[:i], f"--config={_config_file(path)}", *rest]
            break
    # First without the overrides, to tell an unknown key from a wrong value.
    rest = ["plain56", *(argument for argument in argv if not overriding.match(argument))]
    options = _define(rest, config)
    options(rest)
    keys = flatten(options.config.to_dict()) if options.config else {}
    for key in given:
        if not keys:
            raise UserError(f"--config is missing, and --config.{key} overrides a key of it.")
        if key not in keys and not OPEN_KEY.fullmatch(key):
            nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0)[0]
            raise UserError(f"There is no key {key!r} in the config; the nearest is {nearest!r}.")
    argv = ["plain56", *argv]
    options = _define(argv, config)
    arguments = options(argv)[1:]
    if opened := _open_overrides(options):
        override(options.config, opened)
    return options, arguments
