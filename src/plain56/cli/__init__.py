"""The command line. A new mode is a function in one of these modules and a line of `MODES`; `flags.FLAGS` has its flags.

Modules that import JAX, which takes seconds, are imported inside the functions that use them: --help and mistakes do not wait.
"""

from plain56.cli import describe, network, sweep
from plain56.cli.flags import refuse_config
from plain56.cli.progress_line import progress
from plain56.cli.sweep import draw_degradation, run_sweep
from plain56.cli.terminal import FAILED, MISTAKE, print_claim, print_result, print_table, run, run_experiment

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
