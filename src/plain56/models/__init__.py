"""The networks, as Flax modules."""

from plain56.models.layers import Output
from plain56.models.own import is_own
from plain56.models.registry import create_model, is_cifar_form, list_models, option_names, parse_name
