"""What a program does: the convolutions that a traced one has, and what the operations of a compiled one spend their time on."""

import collections
import math
import re
from typing import NamedTuple

# Groups of operations. A call of C++ is a group by its name.
SCAN, LOOPS, PRODUCTS, NOTHING = "copies to and from a scan's stack", "other loops over memory", "XLA's products", "nothing runs"


class Shape(NamedTuple):
    """A convolution of images [N, H, W, C] with a kernel [kh, kw, C, D]; `padding` is ((top, bottom), (left, right))."""

    images: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def output(self):
        n, *sizes, _ = self.images
        sides = [
            (size + sum(pads) - k) // stride + 1
            for size, pads, k, stride in zip(sizes, self.padding, self.kernel, self.strides, strict=False)
        ]
        return (n, *sides, self.kernel[3])

    @property
    def multiply_adds(self):
        return math.prod(self.output) * math.prod(self.kernel[:3])

    def __str__(self):
        (_, height, width, _), (kh, kw, c, d) = self.images, self.kernel
        return f"{kh}×{kw}/{self.strides[0]} {height}×{width} {c}→{d}"


def convolutions(program, times=1):
    """How often each `Shape` occurs in a traced program, as a Counter. The blocks of a scan count one by one."""
    found = collections.Counter()
    for equation in program.eqns:
        parameters = equation.params
        inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
        if equation.primitive.name == "conv_general_dilated":
            images, kernel = (variable.aval.shape for variable in equation.invars)
            found[Shape(images, kernel, parameters["window_strides"], parameters["padding"])] += times
        elif equation.primitive.name == "cond":  # one way for each platform; the last is XLA's own
            found += convolutions(parameters["branches"][-1].jaxpr, times)
        elif inner:
            found += convolutions(getattr(inner, "jaxpr", inner), times * parameters.get("length", 1))
    return found


def convolutions_of(model, image_shape):
    """How often each `Shape` occurs in a forward pass of images [N, H, W, C], as a Counter."""
    import jax
    import jax.numpy as jnp

    images = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return convolutions(jax.make_jaxpr(model.apply)(variables, images).jaxpr)


def operations(hlo):
    """What the instructions of a compiled program are, by name: a custom call's target, or else the opcode."""
    found = {}
    for line in hlo.splitlines():
        if match := re.match(r"\s*(?:ROOT )?%?(\S+) = .*? ([a-z][\w-]*)\(", line):
            target = re.search(r'custom_call_target="([^"]*)"', line)
            found[match[1]] = target[1] if target else match[2]
    return found


def group_of(name, operation):
    """The group of an instruction, by its name and what `operations` says; None if it contains others, which count instead."""
    if operation in ("while", "call", "conditional"):
        return None
    if operation.startswith("plain56."):
        return operation
    if "dynamic-update-slice" in name or "dynamic-slice" in name:
        return SCAN
    return PRODUCTS if operation in ("dot", "convolution") else LOOPS


def add_up(events, wall):
    """Durations by group: `{group: {"calls", "summed", "milliseconds"}}`, of which "milliseconds" add up to the wall time.

    Args:
        events: `(group, begin, end)`, in milliseconds, of any threads.
        wall: milliseconds from before the first event to after the last.
    """
    groups = collections.defaultdict(lambda: {"calls": 0, "summed": 0.0, "milliseconds": 0.0})
    for group, begin, end in events:
        groups[group]["calls"] += 1
        groups[group]["summed"] += end - begin
    changes = [change for group, begin, end in events if begin < end for change in ((begin, 1, group), (end, -1, group))]
    running, before = collections.Counter(), 0.0
    for moment, change, group in sorted(changes):
        for other, count in running.items():
            if count:
                groups[other]["milliseconds"] += (moment - before) * count / running.total()
        running[group] += change
        before = moment
    groups[NOTHING]["milliseconds"] = wall - sum(row["milliseconds"] for row in groups.values())
    return dict(groups)
