"""The command line. A new mode is a function in one of these modules and a line of `MODES`; `flags.FLAGS` has its flags.

Modules that import JAX, which takes seconds, are imported inside the functions that use them, so that the overview and
errors do not wait. The --help of a mode that lists networks does.
"""

import sys

from plain56 import __version__
from plain56.cli import describe, manual, network, sweep
from plain56.cli.flags import WEIGHTS_EXPERIMENT, refuse_config
from plain56.cli.progress_line import progress
from plain56.cli.sweep import draw_degradation, run_sweep
from plain56.cli.tables import print_table
from plain56.cli.terminal import FAILED, MISTAKE, print_claim, print_paths, print_result, run, run_experiment
from plain56.cli.trained import networks_of

USAGE = """plain56: plain against residual networks at any depth, in JAX.

    {command} train    --config=configs/digits.py:resnet56 --workdir=runs/resnet56
    {command} evaluate --workdir=runs/resnet56
    {command} sweep    --config=configs/sweeps/degradation.py --workdir=runs/degradation
    {command} report   --workdir=runs/degradation         (--watch: again and again while the runs train)
    {command} describe resnet56        (or --all; at any size: --image_size=64 --num_classes=5)
    {command} finetune --config=configs/finetune.py --weights=FILE --workdir=runs/finetuned
    {command} export   --workdir=runs/resnet56 --weights=resnet56.safetensors
    {command} predict  --weights=resnet56.safetensors picture.png …

{command} MODE --help shows the flags of a mode and all keys of the config; describe --list names the networks and recipes.

A flag overrides any key of the config: --config.train.steps=1000. --config=RUN/config.json repeats a run. A file in configs/ that
you do not have is the one that ships with plain56. A sweep that has begun needs only its --workdir to go on, also with
--workers=N or, one element at a time, with --index=K; --dry_run --time says how long it will take. The published test protocols
are evaluate --protocol=center, ten_crop or dense; --exact_statistics takes batch norm's statistics over the whole training split.

Tables go to stdout; if it is no terminal, or with --json, its last line is one JSON object (--nojson: never). Progress goes to
stderr. Exit status: 0 done; 1 ran but failed; 2 a mistake in the command; 75 interrupted, launch again. SIGTERM and Ctrl-C save
first.
"""
MODES = {
    "train": network.train,
    "evaluate": network.evaluate,
    "sweep": sweep.sweep,
    "report": sweep.report,
    "describe": describe.describe,
    "finetune": network.finetune,
    "export": network.export,
    "predict": network.predict,
}


def main(argv, command):
    """Runs the mode that the command line names, and returns the exit status. `command` is what a user types before the mode."""
    mode, *rest = argv or [None]
    if mode in MODES:
        return run(MODES[mode], rest, USAGE.format(command=command), mode)
    if {"--help", "-h", "help"} & set(argv):
        return run(lambda options, arguments: print(manual.wrapped(USAGE.format(command=command))), [])
    if mode == "--version":
        return run(lambda options, arguments: print(f"plain56 {__version__}"), rest)
    given = "No mode was given" if mode is None else f"There is no mode {mode!r}"
    print(f"error: {given}; it must be one of {', '.join(MODES)} (see --help).", file=sys.stderr)
    return MISTAKE
