"""What a network costs and what it sees, part by part, read off the traced program: nothing is computed.

parameters        trained values, those of auxiliary heads among them.
multiply-adds     of convolutions and matrix products, for one image. Auxiliary heads only have them in training: a total is
                  that of evaluation, without them.
activation bytes  what the backward pass reads of one image's forward pass in training: the values that go into convolutions,
                  dense layers, normalizations and max pools, and those that leave activations, each once, in its own dtype.
                  Additions, averages and concatenations need nothing for their gradients. Not counted are the image itself,
                  dropout's masks and statistics, which are one number per channel. What a compiler keeps may be more or less.
receptive field   side of the square of pixels that one value of the part's output depends on, along the longest path. It
                  reaches into the padding, and so may be larger than the image.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

# Side of the images in pixels, and number of classes: ImageNet's and CIFAR-10's.
PUBLISHED_SIZES = {"imagenet": (224, 1000), "dense": (224, 1000), "cifar": (32, 10), "small": (32, 10)}


class Part(NamedTuple):
    """Layers of a network whose names begin alike, such as "stem" and "inception3a", with the pools and ReLUs that follow them.

    `output_shape` is `(H, W, C)`, or `(C,)` where no positions are left; `receptive_field` is None where that is the whole
    image, after a global average or a dense layer; `training_only` tells the auxiliary heads.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int
    receptive_field: int | None
    training_only: bool


class Total(NamedTuple):
    """Of all parts. Multiply-adds are those of evaluation; the receptive field is that of the last part with positions."""

    parameters: int
    multiply_adds: int
    activation_bytes: int
    receptive_field: int | None


def parts(model, image_shape):
    """The network's parts in the order of computation, for images of `image_shape` `(H, W, C)`.

    Raises UserError if these are too small for the network.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    parameters = {}
    for layer, values in variables["params"].items():
        parameters[_part(layer)] = parameters.get(_part(layer), 0) + sum(leaf.size for leaf in jax.tree.leaves(values))
    # Batch norm's averages over all positions are there only in training, and hide what the layers themselves see.
    evaluation, training = (_trace(model, variables, images, train) for train in (False, True))
    rows = []
    for name, cost in training.items():
        output = evaluation.get(name, cost).output
        field = None if output.field == math.inf else output.field
        kept = sum(value.bytes for value in cost.kept)
        rows.append(Part(name, output.shape[1:], parameters[name], cost.multiply_adds, kept, field, name not in evaluation))
    return rows


def total(rows):
    """The sum of `parts`."""
    return Total(
        sum(row.parameters for row in rows),
        sum(row.multiply_adds for row in rows if not row.training_only),
        sum(row.activation_bytes for row in rows),
        next((row.receptive_field for row in reversed(rows) if row.receptive_field), None),
    )


def count_multiply_adds(model, image_shape):
    """Multiply-adds of convolutions and matrix products in one forward pass of one image."""
    return total(parts(model, image_shape)).multiply_adds


def _part(layer):
    """The part that a top-level layer belongs to: "stage2_first" is a block of "stage2"."""
    return layer.partition("_")[0]


@dataclasses.dataclass(eq=False)  # two values are one only if they are the same object
class _Value:
    """A value that depends on the image: `field` is its receptive field, `jump` how many pixels lie between neighboring rows."""

    shape: tuple[int, ...]
    bytes: int = 0
    part: str | None = None
    field: float = 1
    jump: int = 1


@dataclasses.dataclass
class _Cost:
    """What is known of a part so far."""

    output: _Value | None = None
    multiply_adds: int = 0
    kept: set[_Value] = dataclasses.field(default_factory=set)


def _trace(model, variables, images, train):
    """Costs by part, in the order of computation."""

    def forward(variables, images):
        rngs = dict.fromkeys(("dropout", "survival"), jax.random.key(0))
        return model.apply(variables, images, train, mutable=["batch_stats"], rngs=rngs)

    program = jax.make_jaxpr(forward)(variables, images).jaxpr
    tracer = _Tracer(variables["params"])
    tracer.walk(program, [None] * (len(program.invars) - 1) + [_Value(images.shape)])
    return tracer.costs


class _Tracer:
    """Follows through a program what depends on the image, and adds up its costs by the top-level module it was traced in."""

    def __init__(self, modules):
        self.modules, self.costs, self.part = modules, {}, None

    def walk(self, program, inputs, outer=""):
        """The outputs of a program; None stands for what does not depend on the image."""
        values = dict(zip(program.invars, inputs, strict=True))

        def read(variables):
            return [None if isinstance(variable, Literal) else values.get(variable) for variable in variables]

        for equation in program.eqns:
            operands = read(equation.invars)
            if any(operands):
                path = f"{outer}/{equation.source_info.name_stack}"
                values.update(zip(equation.outvars, self.follow(equation, operands, path), strict=True))
        return read(program.outvars)

    def follow(self, equation, operands, path):
        """The outputs of one equation."""
        kind, parameters = equation.primitive.name, equation.params
        inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
        if kind == "scan":
            return self.repeat(parameters, operands, path)
        if kind == "cond":  # one way for each platform; the last is XLA's own
            return self.walk(parameters["branches"][-1].jaxpr, operands[1:], path)
        if inner:
            outputs = self.walk(getattr(inner, "jaxpr", inner), operands, path)
            if kind == "custom_jvp_call" or parameters.get("name") == "leaky_relu":  # the first is a ReLU
                self.keep(outputs)
            return outputs
        if kind == "convert_element_type":  # the same value, kept in the smaller of the two types
            bytes_after = equation.outvars[0].aval.size * equation.outvars[0].aval.dtype.itemsize
            return [dataclasses.replace(operands[0], bytes=bytes_after) if bytes_after < operands[0].bytes else operands[0]]
        self.keep(_read_by_gradient(kind, operands))
        # What is done between two modules, such as a pool, belongs to the part before it.
        module = next((name for name in path.split("/") if name in self.modules), None)
        self.part = _part(module) if module else self.part
        outputs = [_output(equation, operands, variable.aval, self.part) for variable in equation.outvars]
        if kind == "tanh":
            self.keep(outputs)
        if self.part:
            cost = self.costs.setdefault(self.part, _Cost())
            cost.multiply_adds += _multiply_adds(equation)
            if module or len(outputs[0].shape) == 4:  # not the global average
                cost.output = outputs[0]
        return outputs

    def repeat(self, parameters, operands, path):
        """The outputs of a scan, whose body runs as often as it says."""
        constants, carried = parameters["num_consts"], parameters["num_carry"]
        carry, rest = operands[constants : constants + carried], operands[constants + carried :]
        for _ in range(parameters["length"]):
            outputs = self.walk(parameters["jaxpr"].jaxpr, operands[:constants] + carry + rest, path)
            carry = outputs[:carried]
        return outputs

    def keep(self, values):
        for value in values:
            # Statistics have one axis; the image has no part.
            if value and value.part and len(value.shape) > 1:
                self.costs[value.part].kept.add(value)


def _read_by_gradient(kind, operands):
    """The operands that the gradient of an operation is made from. A normalization is known by the square of its input."""
    squared = kind == "square" or (kind == "mul" and operands[0] is operands[1])
    return operands if squared or kind in ("conv_general_dilated", "dot_general", "reduce_window_max") else ()


def _output(equation, operands, output, part):
    """What an equation makes: it sees the most that one of its operands sees, and the neighbors that it adds itself."""
    operands = [operand for operand in operands if operand]
    field, jump = max(operand.field for operand in operands), max(operand.jump for operand in operands)
    extent, stride = _window(equation, operands[0], output)
    return _Value(output.shape, output.size * output.dtype.itemsize, part, field + (extent - 1) * jump, jump * stride)


def _window(equation, operand, output):
    """How many rows of its operand [N, H, W, C] one row of an operation's output is made from, and the stride of these."""
    kind, parameters = equation.primitive.name, equation.params
    if len(operand.shape) == len(output.shape) == 4:
        if kind == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape[parameters["dimension_numbers"].rhs_spec[2]]
            return (kernel - 1) * parameters["rhs_dilation"][0] + 1, parameters["window_strides"][0]
        if kind.startswith("reduce_window"):
            return parameters["window_dimensions"][1], parameters["window_strides"][1]
        if kind == "slice":
            return 1, (parameters["strides"] or (1, 1))[1]
        if kind == "pad" or operand.shape[1] == output.shape[1]:
            return 1, 1
    return math.inf, 1  # rows were averaged, multiplied or joined


def _multiply_adds(equation):
    output = equation.outvars[0].aval
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        return output.size * kernel.size // kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    if equation.primitive.name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        return output.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 0
