"""The command line. A new mode is a function in one of these modules and a line of `MODES`; `flags.FLAGS` says what it takes.

JAX, and what imports it, is imported where it is used: it takes seconds that --help and mistakes need not wait for.
"""

from plain56.cli import describe, pretrained, sweep, train
from plain56.cli.flags import refuse_config
from plain56.cli.sweep import draw_degradation, run_sweep
from plain56.cli.terminal import FAILED, MISTAKE, print_claim, print_result, print_table, progress, run, run_experiment

MODES = {
    "train": train.train,
    "evaluate": train.evaluate,
    "sweep": sweep.sweep,
    "report": sweep.report,
    "describe": describe.describe,
    "finetune": train.finetune,
    "export": pretrained.export,
    "predict": pretrained.predict,
}

__all__ = [
    "FAILED",
    "MISTAKE",
    "MODES",
    "draw_degradation",
    "print_claim",
    "print_result",
    "print_table",
    "progress",
    "refuse_config",
    "run",
    "run_experiment",
    "run_sweep",
]
