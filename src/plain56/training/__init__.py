"""Training and evaluation of one run."""

from plain56.training.evaluate import evaluate_run, evaluate_variables
from plain56.training.program import load, prepare
from plain56.training.session import train
from plain56.training.stored import load_run
