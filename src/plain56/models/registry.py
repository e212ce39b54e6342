"""Networks by name: those that ship, and a user's own, which are named as `package.module:function`."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plain56 import references
from plain56.errors import UserError
from plain56.models import googlenet, own, resnet, vgg
from plain56.models.layers import Numerics
from plain56.models.own import is_own

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


class Entry(NamedTuple):
    """A kind of network: its module, its published names, `name -> Variant | None`, `module -> None` or an error, and a text.

    The text stands for all of its names where there are more than are published. A module may hold its blocks' options
    in one field, a NamedTuple `block_options`.
    """

    module: type
    names: tuple[str, ...]
    variant: Callable
    check: Callable
    meant: str

    def options(self, variant):
        """What a user may choose: the module's fields and its blocks' options, without those that the name fixes."""
        ours = {"num_classes", "numerics", "block_options", "parent", "name", *variant.fixed}
        names = [*self._block_options, *(field.name for field in dataclasses.fields(self.module))]
        return [name for name in names if name not in ours]

    def build(self, **fields):
        """The module with these fields, and these options of its blocks."""
        if chosen := {name: fields.pop(name) for name in self._block_options if name in fields}:
            fields["block_options"] = self.module.block_options._replace(**chosen)
        return self.module(**fields)

    @property
    def _block_options(self):
        return getattr(getattr(self.module, "block_options", None), "_fields", ())


ENTRIES: list[Entry] = []


def register(module, names, variant, check=lambda model: None, meant=""):
    """Adds a kind of network; the arguments are the fields of its `Entry`."""
    ENTRIES.append(Entry(module, names, variant, check, meant or ", ".join(names)))


register(resnet.ResNet, resnet.NAMES, resnet.variant, resnet.check, resnet.MEANT)
register(vgg.VGG, vgg.NAMES, vgg.variant, vgg.check)
register(googlenet.GoogLeNet, googlenet.NAMES, googlenet.variant, googlenet.check)


def list_models(pattern="*"):
    """Names of the published networks that match a shell-style pattern.

    Beside them, every depth of 6n + 2 can be created in the CIFAR form, and plain bottleneck networks of 50, 101 and 152 layers.
    """
    return [name for entry in ENTRIES for name in entry.names if fnmatch.fnmatchcase(name, pattern)]


def _find(name):
    """The entry and the variant of a name; raises UserError with the nearest name if there is no such network."""
    for entry in ENTRIES:
        if variant := entry.variant(name):
            return entry, variant
    nearest = difflib.get_close_matches(name, list_models(), n=1, cutoff=0)[0]
    raise UserError(
        f"There is no network {name!r}; there are {', '.join(entry.meant for entry in ENTRIES)}, and a function of your own as "
        f"{references.FORM}; the nearest is {nearest!r}."
    )


def parse_name(name, options=()):
    """Splits "resnet56" into `("resnet", 56)`, "vgg16_bn" into `("vgg", 16)`; raises UserError if there is no such network.

    Of a user's own network, without importing it: its whole name, which is no shipped family's, and the option `depth` or None.
    """
    if is_own(name):
        depth = dict(options).get("depth")
        return name, depth if type(depth) is int else None
    variant = _find(name)[1]
    return variant.family, variant.depth


def is_cifar_form(name):
    """Whether a plain or residual network is in the CIFAR form; of another network, False."""
    return not is_own(name) and _find(name)[1].fixed.get("form") == "cifar"


def option_names(name):
    """The options of `create_model` that a network has, without those that all have."""
    if is_own(name):
        return ["options"]
    entry, variant = _find(name)
    return entry.options(variant)


def create_model(name, num_classes, *, dtype="float32", momentum=0.9, epsilon=None, options=(), numerics=(), **fields):
    """Builds the Flax module of a network.

    Args:
        name: of `list_models()`, or another depth: "plain20", "resnet56", "resnet152_cifar", "resnet50", "vgg16_bn", "googlenet";
            or "package.module:function", whose function is called with `(num_classes, numerics, **options)`.
        num_classes: at least two.
        dtype: of activations: "float32", "bfloat16" or "float64"; logits and parameters are float32, or float64 with the last.
        momentum, epsilon: of batch norm, in Flax's convention; epsilon is 1e-5 where it is None, and 1e-3 in googlenet_bn.
        options: a dict, only for a user's own network.
        numerics: a dict of other fields of `layers.Numerics`.
        fields: of the network's module (see there); None, or left out, means as published.

    Raises UserError for an unknown name, an option that the network does not have, or a value out of range.
    """
    if num_classes < 2:
        raise UserError(f"A classifier needs at least two classes, not {num_classes}.")
    if dtype not in DTYPES:
        raise UserError(f"model.dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise UserError("model.dtype is 'float64', which JAX allows only with JAX_ENABLE_X64=1 in the environment.")
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items() if v is not None}
    fields |= {"options": dict(options)} if options else {}
    known = option_names(name)
    for key in fields:
        if key not in known:
            takes = f"only the options {', '.join(known)}" if known else "no options"
            takes = "only model.options" if is_own(name) else takes
            raise UserError(f"model.{key} is {fields[key]!r}, and {name} takes {takes}.")
    entry, variant = (None, None) if is_own(name) else _find(name)
    defaults = {"epsilon": 1e-5} | (variant.defaults if variant else {})
    published = defaults.pop("epsilon")
    numerics = Numerics(DTYPES[dtype], momentum, published if epsilon is None else epsilon, **dict(numerics))
    if entry is None:
        return own.build(name, num_classes, numerics, dict(options))
    model = entry.build(num_classes=num_classes, numerics=numerics, **variant.fixed, **(defaults | fields))
    entry.check(model)
    return model
