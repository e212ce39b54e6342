"""The mode `describe`: what a network consists of and costs, stage by stage."""

import functools

from plain56.cli import manual
from plain56.cli.flags import refuse_unused
from plain56.cli.progress_line import progress
from plain56.cli.tables import print_table
from plain56.cli.terminal import print_result
from plain56.errors import UserError

DEFINITIONS = """\
Multiply-adds: in convolutions and matrix products, for one image; the total is
that of evaluation.
Activation memory (MB: 10⁶ bytes): what the backward pass reads of one image,
each value once: the inputs of convolutions, dense layers, normalizations and
max pools, and the outputs of activations.
Receptive field: side of the square of pixels that one value depends on; the
total is the last one before a dense layer or an average takes in the whole
image. It counts padding, and may be larger than the image."""
COMPARED = ("parameters (M:\N{NO-BREAK SPACE}10⁶)", "without (M)", "saved", "multiply-adds (M)", "adds without (M)", "adds saved")
COSTS = ("parameters", "multiply-adds (M:\N{NO-BREAK SPACE}10⁶)", "activation memory (MB)", "receptive field (px)")


def describe(options, arguments):
    """Prints what one network, or every published one, consists of and costs; --list: only names."""
    if options.list:
        return _list(options, arguments)
    return (_describe_all if options.all else _describe_one)(options, arguments)


def _list(options, arguments):
    if arguments or options.config or any(options[name].present for name in ("all", "image_size", "num_classes")):
        raise UserError("--list names all that there is; it takes no name and no other flags.")
    found = manual.described()
    manual.print_described(found)
    print_result(found)


def _describe_one(options, arguments):
    from plain56.analysis import savings
    from plain56.config import build_model
    from plain56.configs import base
    from plain56.models import parse_name

    if len(arguments) + bool(options.config) != 1:
        raise UserError("describe takes one network, by name or by config, for example: describe resnet56.")
    refuse_unused(options, ("model.", "batch_norm.epsilon", "data.mean"))
    config = options.config or base.get_config()
    config.model.name = name = arguments[0] if arguments else config.model.name
    model, size, rows, total = _measure(name, functools.partial(build_model, config), options, len(config.data.mean))
    _print_stages(name, model, size, rows, total)
    saved = savings.savings(model, size["image_shape"], rows)
    if saved:
        _print_savings(parse_name(name)[0], saved)
    details = {"stages": [row._asdict() for row in rows], "savings": [row._asdict() for row in saved]}
    print_result({"model": name, **size, **total, "effective_depth": _effective_depth(model), **details})


def _describe_all(options, arguments):
    from plain56.models import create_model, list_models, parse_name

    if arguments or options.config or options["image_size"].present or options["num_classes"].present:
        raise UserError("--all describes every network as published; it takes no name and no other flags.")
    networks, names = [], list_models()
    with progress() as show:
        for i, name in enumerate(names, start=1):
            model, size, _, total = _measure(name, functools.partial(create_model, name), options)
            depths = {"layers": parse_name(name)[1], "effective_depth": _effective_depth(model)}
            networks.append({"model": name, **depths, **size, **total})
            show("describe", i / len(names))
    for side, num_classes in sorted({(row["image_shape"][0], row["num_classes"]) for row in networks}):
        members = [row for row in networks if (row["image_shape"][0], row["num_classes"]) == (side, num_classes)]
        shown = [{"network": row["model"], "layers": row["layers"], **_costs(row)} for row in members]
        print_table(f"networks as published: {num_classes} classes, {side}×{side} images", shown)
    print(DEFINITIONS)
    print_result({"networks": networks})


def _measure(name, build, options, channels=3):
    """The network with as many classes as the flags say, the size that it is described at, its stages, and their total.

    `build` is `num_classes -> module`.
    """
    from plain56.analysis import complexity
    from plain56.models import own

    side, num_classes = complexity.PUBLISHED_SIZES[getattr(build(2), "form", "small")]
    side, num_classes = options.image_size or side, options.num_classes or num_classes
    model, size = build(num_classes), {"image_shape": (side, side, channels), "num_classes": num_classes}
    own.check(name, model, num_classes, size["image_shape"])
    rows = complexity.parts(model, size["image_shape"])
    return model, size, rows, complexity.total(rows)._asdict()


def _effective_depth(model):
    """The network's own, which is that of arXiv 2602.13298; a user's own network need not have one."""
    return getattr(model, "effective_depth", None)


def _costs(row):
    """What a stage or a network costs, by the headings `COSTS`."""
    cells = (
        f"{row['parameters']:,}",
        f"{row['multiply_adds'] / 1e6:,.3f}",
        f"{row['activation_bytes'] / 1e6:,.3f}",
        f"{row['receptive_field'] or 'image'}",
    )
    return dict(zip(COSTS, cells, strict=True))


def _print_stages(name, model, size, rows, total):
    from plain56.models import resnet

    title = f"{name}: {size['num_classes']} classes, {'×'.join(map(str, size['image_shape']))} images"
    if isinstance(model, resnet.ResNet) and not model.block_options.residual and model.block is resnet.BottleneckBlock:
        title += "\nnot in the paper: a plain network of bottlenecks"
    shown = [
        {"stage": row.name + " *" * row.training_only, "output": "×".join(map(str, row.output_shape)), **_costs(row._asdict())}
        for row in rows
    ]
    print_table(title, [*shown, {"stage": "total", "output": "", **_costs(total)}])
    print(DEFINITIONS)
    if depth := _effective_depth(model):
        print(f"Effective depth: {depth:g} layers, the mean number on the paths from the images")
        print("to the classes, each of which takes or leaves each branch.")
    if any(row.training_only for row in rows):
        print("* only in training: the total has its parameters and its memory, but not its\nmultiply-adds.")


def _print_savings(family, saved):
    from plain56.analysis import savings

    title = {
        "googlenet": "what the 1×1 reductions before the larger convolutions save\n(the projection after the pool stays)",
        "vgg": "what stacks of convolutions save against one layer that sees as far\n"
        "(of the size in brackets; all with the block's channels in and out, no biases)",
    }[family]
    shown = []
    for row in [*saved, savings.total(saved)]:
        cells = *_compared(row.parameters, row.parameters_without), *_compared(row.multiply_adds, row.multiply_adds_without)
        shown.append({"block": row.name, **dict(zip(COMPARED, cells, strict=True))})
    print()
    print_table(title, shown)


def _compared(count, without):
    return f"{count / 1e6:,.2f}", f"{without / 1e6:,.2f}", f"{100 * (1 - count / without):.0f} %"
