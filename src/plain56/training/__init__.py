"""Training and evaluation of one run."""

from plain56.training.experiment import describe_stages, load, prepare
from plain56.training.loop import evaluate_run, evaluate_variables, train

__all__ = ["describe_stages", "evaluate_run", "evaluate_variables", "load", "prepare", "train"]
