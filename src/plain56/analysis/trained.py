"""The trained networks that an experiment looks into: those of a sweep, or of files of weights."""

import functools

from plain56 import pretrained, runs, training
from plain56.cli.flags import refuse_config
from plain56.errors import UserError
from plain56.models import parse_name


def networks_of(options, choose):
    """`(row, load)` of each network: `row` has its "run", "residual" and "depth", and `load()` is its `training.Trained`.

    They are in the files of --weights, separated by commas, and --config has the data; or else they are the runs that `choose`
    takes from the sweep in --workdir, by a function of `summary`.

    Raises UserError if there are none, or a file does not say which network it holds.
    """
    if not options.weights:
        refuse_config(options, "the run directories, or files of --weights with the data of a config")
        found = choose(options.workdir)
        return [(_kind(row), functools.partial(training.load_run, run.path)) for run, row in found]
    if not options.config:
        raise UserError("--weights needs --config, whose data the networks are shown, such as configs/cifar10.py.")
    found = []
    for source in options.weights.split(","):
        trained = pretrained.load_for(options.config, source)
        family, depth = parse_name(trained.config.model.name, trained.config.model.options.to_dict())
        if family not in ("plain", "resnet"):
            raise UserError(f"{source} holds {trained.config.model.name}; it must be a plain or residual network.")
        row = {"run": runs.user_path(source).stem, "residual": family == "resnet", "depth": depth}
        found.append((row, lambda trained=trained: trained))
    return found


def _kind(row):
    return {key: row[key] for key in ("run", "residual", "depth")}
