"""What a run says when it begins, before its training is compiled: its network, its data, its steps, and what computes them."""

import logging
import textwrap

import jax

from plain56 import machine
from plain56.data import how_resized
from plain56.models.stack import unstack
from plain56.ops import native

WIDTH, LABEL_WIDTH = 80, 10
INSTRUCTIONS = {16: "AVX-512", 8: "AVX", 4: "128-bit vectors"}  # by floats in a register, as in `ops/simd.h`

logger = logging.getLogger(__name__)


def log(program, workdir):
    """Logs what is about to be trained, in lines of at most 80 columns that begin with what they are about."""
    for label, text in describe(program, workdir).items():
        indent = " " * LABEL_WIDTH
        wrapped = textwrap.wrap(text, WIDTH - LABEL_WIDTH, break_long_words=False, break_on_hyphens=False)
        logger.info("%s", f"{label:<{LABEL_WIDTH}}" + f"\n{indent}".join(wrapped))


def describe(program, workdir):
    """What is about to be trained, as texts by what they are about."""
    config = program.config
    return {
        "network": f"{config.model.name}: {program.parameter_count:,} parameters; writes to {workdir}",
        "data": _data(config.data, program.found),
        "training": _training(config, program.found["train"]),
        "devices": f"{_devices()}; {convolved_by(config.model.dtype, program.parameters)}",
    }


def _data(data, found):
    """ "folder:pets: 300 pictures of 4 classes: 240 to train, 60 to test, shrunk to 32×32"."""
    purposes = {"train": "train", "validation": "validate", "test": "test"}
    counts = {purpose: found[split] for split, purpose in purposes.items() if split in found}
    split = ", ".join(f"{count:,} to {purpose}" for purpose, count in counts.items())
    height, width, _ = found["image_shape"]
    size = f"{how_resized(data)}{height}×{width}"
    read = ", read while it trains" if found["streamed"] else ""
    return f"{data.name}: {sum(counts.values()):,} pictures of {len(found['class_names'])} classes: {split}, {size}{read}"


def _training(config, examples):
    options = config.train
    if config.transfer.probe:
        return f"at most {options.steps:,} updates of the last layer, each from all {examples:,} pictures"
    stop = f", stops after {options.stop_after:,}" if 0 < options.stop_after < options.steps else ""
    epochs = options.steps * options.batch_size / examples
    epochs = f"{epochs:,.0f}" if epochs >= 100 else f"{epochs:.3g}"
    return f"{options.steps:,} steps of {options.batch_size:,} pictures ({epochs} epochs){stop}"


def _devices():
    count, kind = jax.device_count(), jax.devices()[0].device_kind
    if kind == "cpu":
        cores = len(machine.cores())
        kind = f"CPU{' devices' * (count > 1)}, {cores} core{'s' * (cores > 1)}"
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{count} {kind}{processes}"


def convolved_by(dtype, shapes):
    """What computes the convolutions of a network, of which `shapes` are the parameters; and why, where it is the slower way."""
    if jax.default_backend() != "cpu":
        return "XLA's convolutions"
    if reason := native.why_not(dtype):
        return f"portable convolutions by XLA, which are slower ({reason})"
    lanes = native.lanes(dtype)
    text = f"convolutions in C++ ({INSTRUCTIONS[lanes]}, {lanes} channels at a time)"
    kernels = [leaf.shape for (*_, name), leaf in unstack(shapes).items() if name == "kernel" and len(leaf.shape) == 4]
    others = sum(channels % lanes > 0 for *_, channels in kernels)
    return text + f", but {others} of {len(kernels)} by XLA, slower: their channels are not a multiple of {lanes}" * (others > 0)
