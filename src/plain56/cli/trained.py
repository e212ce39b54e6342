"""The trained networks that an experiment looks into: those of a sweep, or of files of weights."""

import functools
from pathlib import Path

from plain56.cli.flags import refuse_config, refuse_unused, required
from plain56.errors import UserError


def networks_of(options, choose):
    """`(row, load)` of each network: `row` has its "run", "residual" and "depth", and `load()` is its `training.Trained`.

    They are in the files of --weights, separated by commas, and --config has the data; or else they are the runs that `choose`
    takes from the sweep in --workdir, by a function of `summary`.

    Raises UserError if there are none, or a file does not say which network it holds.
    """
    from plain56 import training

    required(options, "workdir")
    if options.weights:
        return _in_files(options)
    refuse_config(options, "the run directories, or files of --weights with the data of a config")
    return [
        ({key: row[key] for key in ("run", "residual", "depth")}, functools.partial(training.load_run, run.path))
        for run, row in choose(options.workdir)
    ]


def _in_files(options):
    from plain56 import pretrained
    from plain56.models import parse_name

    if not options.config:
        raise UserError("--weights needs --config, whose data the networks are shown, such as configs/cifar10.py.")
    refuse_unused(options, ("data.", "train.batch_size"))
    files, found = options.weights.split(","), []
    names = [Path(file).stem for file in files]
    if len(set(names)) < len(names):
        raise UserError(f"The files of --weights must have different names, not {', '.join(names)}.")
    for name, file in zip(names, files, strict=True):
        trained = pretrained.load_for(options.config, file)
        family, depth = parse_name(trained.config.model.name, trained.config.model.options.to_dict())
        if family not in ("plain", "resnet"):
            raise UserError(f"{file} holds {trained.config.model.name}; it must be a plain or residual network.")
        found.append(({"run": name, "residual": family == "resnet", "depth": depth}, lambda trained=trained: trained))
    return found
