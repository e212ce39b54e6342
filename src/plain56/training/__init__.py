"""Training and evaluation of one run."""

from plain56.training.experiment import load, prepare
from plain56.training.loop import evaluate_run, evaluate_variables, train

__all__ = ["evaluate_run", "evaluate_variables", "load", "prepare", "train"]
