"""plain56: plain against residual networks at any depth, in JAX.

    python launch.py train    --config=configs/digits.py:resnet56 --workdir=runs/resnet56
    python launch.py evaluate --workdir=runs/resnet56
    python launch.py sweep    --config=configs/sweeps/degradation.py --workdir=runs/degradation
    python launch.py report   --workdir=runs/degradation
    python launch.py describe resnet56        (or --all; any size: --image_size=64 --num_classes=5)
    python launch.py finetune --config=configs/finetune.py --weights=FILE --workdir=runs/finetuned
    python launch.py export   --workdir=runs/resnet56 --weights=resnet56.safetensors
    python launch.py predict  --weights=resnet56.safetensors picture.png …

Any key of the config is overridden by a flag: --config.train.steps=1000. --config=RUN/config.json repeats a run. A sweep that has
begun goes on from its --workdir alone, also with --workers=N, or element by element with --index=K. Published test protocols:
evaluate --protocol=centre, ten_crop or dense, with --exact_statistics for batch norm over the whole training split.

Tables go to stdout, whose last line is one JSON object; progress goes to stderr. Exit status: 0 done; 1 ran but failed; 2 a
mistake in the command; 75 interrupted, launch again. SIGTERM and Ctrl-C save first.
"""

import contextlib
import difflib
import errno
import importlib.util
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import absl.logging
from absl import flags
from ml_collections import config_flags

from plain56.cluster import INTERRUPTED
from plain56.errors import UserError
from plain56.runs import flatten, read_json, user_path, without_removed

# Everything else is imported where it is needed: JAX alone takes seconds that --help and mistakes need not wait for.

FAILED, MISTAKE = 1, 2


def train(options, arguments):
    return _train(options)


def finetune(options, arguments):
    return _train(options, _required(options, "weights"))


def _train(options, source=None):
    """Trains a run, from weights where a source of them is given."""
    from plain56 import machine, parallel, training

    config, workdir, begin = _required(options, "config"), _required(options, "workdir"), None
    try:
        with parallel.noticing_lost_processes():
            several = _join(options)
            machine.set_up()
            if source:
                from plain56 import weights

                config, begin = parallel.together(lambda: weights.begin_transfer(config, source, options.model, workdir))
        if several and not parallel.is_first():  # process 0 speaks for all
            logging.getLogger("plain56").setLevel(logging.WARNING)
            status = training.train(config, workdir, begin=begin)
        else:
            with progress() as show:
                status = training.train(config, workdir, lambda share, rate: show(config.model.name, share, rate), begin)
            if status.reason:
                print(f"{status.state}: {status.reason}", file=sys.stderr)
            _print_result(status._asdict())
    except parallel.Lost as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(FAILED)  # at its own end, JAX would wait for the lost process, and abort
    return FAILED if status.state == "diverged" else 0


def _join(options):
    """Whether this is one of several processes, which have found each other then."""
    from plain56 import parallel

    names = ("coordinator", "num_processes", "process_id")
    given = {name: options[name].value for name in names}
    missing = [f"--{name}" for name in names if given[name] is None]
    if len(missing) < len(names):
        if missing or options.distributed:
            wrong = "--distributed is too much" if options.distributed else f"{' and '.join(missing)} missing"
            raise UserError(f"One of several processes is told by --coordinator, --num_processes and --process_id: {wrong}.")
        parallel.join(**given)
    elif options.distributed:
        parallel.join()
    return options.distributed or not missing


def evaluate(options, arguments):
    from plain56 import machine, training

    choices = {"protocol": options.protocol, "sides": tuple(options.side or ()), "exact_statistics": options.exact_statistics}
    with progress() as show:
        choices["on_progress"] = lambda share: show("evaluate", share)
        if options.weights:
            from plain56 import weights

            if options.workdir:
                raise UserError("--weights and --workdir are both there; needed is --weights with --config, or --workdir alone.")
            config = _required(options, "config")
            _refuse_unused(options, ("model.", "batch_norm.epsilon", "data.", "train.batch_size"))
            machine.set_up()
            result = weights.evaluate_weights(config, options.weights, **choices)
        else:
            refuse_config(options, "the run's own config")
            workdir = _required(options, "workdir")
            machine.set_up()
            result = training.evaluate_run(workdir, **choices)
    print_table("test split", [result | {key: _percent(result[key]) for key in ("top1_error", "top5_error")}])
    _print_result(result)


def export(options, arguments):
    from plain56 import machine, weights

    refuse_config(options, "a run")
    workdir, file = _required(options, "workdir"), _required(options, "weights")
    machine.set_up()
    weights.save_pretrained(file, workdir)
    _print_result({"weights": file})


def predict(options, arguments):
    from plain56 import machine, weights

    refuse_config(options, "weights and pictures")
    source = _required(options, "weights")
    if not arguments:
        raise UserError("predict needs pictures: give their paths.")
    machine.set_up()
    results = weights.predict(source, arguments, options.model)
    for result in results:
        rows = [{"class": guess["class"], "probability": f"{100 * guess['probability']:.2f} %"} for guess in result["top5"]]
        print_table(result["picture"], rows)
    _print_result({"predictions": results})


def sweep(options, arguments):
    from plain56 import sweeps

    if options.status or options.dry_run:
        return _show_elements(options)
    given = [name for name in SLURM_FLAGS if options[name].value is not None]
    if options.executor == "slurm":
        return _submit(options)
    if given:
        raise UserError(f"--{given[0]} belongs to --executor=slurm, and is not allowed here.")
    rows = run_sweep(options)
    _print_result({"workdir": options.workdir, "runs": rows})
    ran = rows if options.index is None else [rows[options.index]]
    if any(row["state"] in sweeps.NOT_TRAINED for row in ran):
        return FAILED
    # What another process still trains, or what was killed, is left.
    return 0 if options.index is not None or sweeps.is_complete(options.workdir) else INTERRUPTED


def _submit(options):
    """Submits the runs of a sweep to Slurm; how they stand is in the sweep's directory from then on."""
    from plain56 import sweeps

    if options.index is not None or options.workers > 1:
        raise UserError("--executor=slurm submits every run as a job of its own; --index and --workers are not allowed with it.")
    elements, workdir = _elements(options), str(Path(_required(options, "workdir")).absolute())
    parameters = {parameter: options[name].value for name, parameter in SLURM_FLAGS.items()}
    jobs = sweeps.submit(elements, workdir, _sweep_command(workdir), **parameters)
    print_table("submitted", [{"job": job, "run": run} for run, job in jobs.items()] or [{"job": "–", "run": "all have ended"}])
    _print_result({"workdir": options.workdir, "jobs": jobs})
    return 0


def _sweep_command(workdir):
    """What runs the sweep that is written in a directory."""
    return [sys.executable, str(Path(__file__).resolve()), "sweep", f"--workdir={workdir}"]


def run_sweep(options):
    """Runs the sweep of --config in --workdir with a progress display, prints its summary as a table and returns the rows."""
    from plain56 import machine, sweeps

    machine.set_up()
    elements, workdir = _elements(options), _required(options, "workdir")
    if options.index is not None and options.workers > 1:
        raise UserError("--index runs one element, and --workers several at a time; allowed is one of them.")
    with progress() as show:
        if options.workers > 1:
            rows = sweeps.run_workers(
                elements,
                workdir,
                _sweep_command(workdir),
                options.workers,
                lambda ended, total, share: show(f"{ended} of {total} runs", share),
            )
        else:
            rows = sweeps.run_sweep(elements, workdir, show, options.index)
    _print_summary(rows)
    return rows


def _elements(options):
    """The elements of --config, or those that were written to --workdir by an earlier launch."""
    from plain56 import sweeps

    if not options.config:
        return sweeps.read(_required(options, "workdir"))
    elements = sweeps.expand(options.config, _sweep_function(options))
    for key in config_flags.get_override_values(options["config"]):
        if any(key in element.overrides for element in elements):
            raise UserError(f"--config.{key} is chosen by the sweep itself; allowed are its own keys, --config.sweep.….")
    return elements


def _show_elements(options):
    """Prints what a sweep consists of (--dry_run), or how its runs stand (--status); runs and writes nothing."""
    from plain56 import runs

    elements = _elements(options)
    if options.status:
        _required(options, "workdir")
    rows = []
    for index, (name, overrides, config, damage) in enumerate(elements):
        row, steps = {"index": index, "run": name}, None if damage else config.train.steps
        if options.dry_run:
            row |= {"model": overrides.get("model.name", config and config.model.name)}
            row |= {"seed": overrides.get("seed", config and config.seed), "steps": steps}
            row |= {"other overrides": {key: overrides[key] for key in overrides.keys() - {"model.name", "seed"}}}
        if options.workdir:
            planned = runs.Run(Path(options.workdir) / name), overrides, {} if damage else config.to_dict()
            status = runs.SweepRun(*planned, damage).status()
            row |= {"state": status.state, "step": status.step, "of": steps, "seconds": status.seconds}
            row |= {"reason": status.reason}
        rows.append(row)
    print_table("sweep", [row | {key: row[key] or "" for key in ("reason", "other overrides") if key in row} for row in rows])
    _print_result({"workdir": options.workdir, "runs": rows})


def report(options, arguments):
    from plain56 import sweeps
    from plain56.figures import report as page

    refuse_config(options, "the run directories alone")
    rows, figure = sweeps.summarise(_required(options, "workdir")), draw_degradation(options.workdir)
    path = page.write(options.workdir, rows)
    _print_summary(rows)
    print(f"figure: {figure}\nreport: {path}")
    _print_result({"figure": figure, "report": str(path), "runs": rows})


def draw_degradation(workdir):
    """The path of the figure, or None with a warning: it is of sweeps over depths, and tables are of any."""
    from plain56.figures import degradation

    try:
        return str(degradation.draw(workdir))
    except UserError as error:
        logging.getLogger("plain56").warning("%s", error)
        return None


def describe(options, arguments):
    if options.all:
        _describe_all(options, arguments)
    else:
        _describe_one(options, arguments)


def _describe_one(options, arguments):
    from configs import base
    from plain56.analysis import savings
    from plain56.config import build_model
    from plain56.models import parse_name

    if len(arguments) + bool(options.config) != 1:
        raise UserError("describe takes one network, by name or by config, for example: launch.py describe resnet56.")
    _refuse_unused(options, ("model.", "batch_norm.epsilon", "data.mean"))
    config = options.config or base.get_config()
    config.model.name = name = arguments[0] if arguments else config.model.name
    model, size, rows = _measure(build_model(config, num_classes=2), options, len(config.data.mean))
    _print_stages(name, model, size, rows)
    saved = savings.savings(model, size["image_shape"], rows)
    if saved:
        _print_savings(parse_name(name)[0], saved)
    details = {"stages": [row._asdict() for row in rows], "savings": [row._asdict() for row in saved]}
    _print_result({"model": name, **size, **_total(rows), **details})


def _describe_all(options, arguments):
    from plain56.models import create_model, list_models, parse_name

    if arguments or options.config or options["image_size"].present or options["num_classes"].present:
        raise UserError("--all describes every network as published; allowed beside it are no name and no other flags.")
    networks, names = [], list_models()
    with progress() as show:
        for i, name in enumerate(names, start=1):
            _, size, rows = _measure(create_model(name, num_classes=2), options)
            networks.append({"model": name, "layers": parse_name(name)[1], **size, **_total(rows)})
            show("describe", i / len(names))
    shown = [
        (row["model"], str(row["layers"]), str(row["image_shape"][0]), str(row["num_classes"]), *_costs(row)) for row in networks
    ]
    _print_numbers("networks as published", ("network", "layers", "image\n(px)", "classes", *COSTS), shown)
    print(DEFINITIONS)
    _print_result({"networks": networks})


def _measure(model, options, channels=3):
    """A network of as many classes as the flags say, the size that it is described at, and its stages."""
    from plain56.analysis import complexity

    side, num_classes = complexity.PUBLISHED_SIZES[model.form]
    side, num_classes = options.image_size or side, options.num_classes or num_classes
    model, size = model.clone(num_classes=num_classes), {"image_shape": (side, side, channels), "num_classes": num_classes}
    return model, size, complexity.stages(model, size["image_shape"])


def _total(rows):
    from plain56.analysis import complexity

    return complexity.total(rows)._asdict()


DEFINITIONS = """\
Multiply-adds: in convolutions and matrix products, for one image; the total is that of evaluation.
Activation memory (MB: 10⁶ bytes): what the backward pass reads of one image, each value once: what
goes into convolutions, dense layers, normalisations and max pools, and what leaves ReLUs.
Receptive field: side of the square of pixels that one value depends on; in total, before a dense
layer or an average takes in the whole image. It counts padding, and may be larger than the image."""
COSTS = ("parameters", "multiply-\nadds\n(M: 10⁶)", "activation\nmemory\n(MB)", "receptive\nfield\n(px)")


def _costs(row):
    """What the columns `COSTS` show of a stage or a network."""
    return (
        f"{row['parameters']:,}",
        f"{row['multiply_adds'] / 1e6:,.3f}",
        f"{row['activation_bytes'] / 1e6:,.3f}",
        f"{row['receptive_field'] or 'image'}",
    )


def _print_stages(name, model, size, rows):
    from plain56.models import resnet

    title = f"{name}: {size['num_classes']} classes, {'×'.join(map(str, size['image_shape']))} images"
    if isinstance(model, resnet.ResNet) and not model.residual and model.block is resnet.BottleneckBlock:
        title += "\nnot in the paper: a plain network of bottlenecks"
    shown = [(row.name + " *" * row.training_only, "×".join(map(str, row.output_shape)), *_costs(row._asdict())) for row in rows]
    _print_numbers(title, ("stage", "output", *COSTS), [*shown, ("total", "", *_costs(_total(rows)))])
    print(DEFINITIONS)
    if any(row.training_only for row in rows):
        print("* in training alone: its multiply-adds are not in the total, its parameters and its memory are.")


def _print_savings(family, saved):
    from plain56.analysis import savings

    title = {
        "googlenet": "what the 1×1 reductions before the larger convolutions save\n(the projection after the pool stays)",
        "vgg": "what stacks of convolutions save against one layer that sees as far\n"
        "(of the size in brackets; all with the block's channels in and out, no biases)",
    }
    shown = [
        (
            row.name,
            *_compared(row.parameters, row.parameters_without),
            *_compared(row.multiply_adds, row.multiply_adds_without),
        )
        for row in [*saved, savings.total(saved)]
    ]
    headers = ("block", "parameters\n(M: 10⁶)", "without\n(M)", "saved", "multiply-\nadds (M)", "without\n(M)", "saved")
    print()
    _print_numbers(title[family], headers, shown)


def _compared(count, without):
    return f"{count / 1e6:,.2f}", f"{without / 1e6:,.2f}", f"{100 * (1 - count / without):.0f} %"


# What submitit calls them.
SLURM_FLAGS = {
    "partition": "partition",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "minutes": "time",
    "parallel": "array_parallelism",
}
# The flags that some modes alone have.
OWNERS = {
    **dict.fromkeys(("protocol", "side", "exact_statistics"), (evaluate,)),
    **dict.fromkeys(("all", "image_size", "num_classes"), (describe,)),
    **dict.fromkeys(("workers", "index", "status", "dry_run", "executor", *SLURM_FLAGS), (sweep,)),
    **dict.fromkeys(("distributed", "coordinator", "num_processes", "process_id"), (train, finetune)),
    "weights": (evaluate, finetune, export, predict),
    "model": (finetune, predict),
}
MODES = {mode.__name__: mode for mode in (train, evaluate, sweep, report, describe, finetune, export, predict)}


def _print_summary(rows):
    """Prints the rows of a sweep's summary as a table, errors in percent."""
    # Measured on request only.
    # Nor does a name say more than network and seed, where these tell all runs apart.
    apart = len({(row["model"], row["seed"]) for row in rows}) == len(rows)
    hidden = {"run"} if apart else {"model", "depth", "residual"}
    unused = hidden | {key for key in ("train_clean_error", "validation_error") if all(row[key] is None for row in rows)}
    errors = [key for key in rows[0] if key.endswith("_error") and key not in unused]
    shown = [{key: row[key] for key in row if key not in unused} | {key: _percent(row[key]) for key in errors} for row in rows]
    for row in shown:
        row["train_loss"] = "–" if row["train_loss"] is None else f"{row['train_loss']:.4f}"
        row["parameters"] = f"{row['parameters']:,}"
    print_table("sweep", shown)


def _percent(fraction):
    return "–" if fraction is None else f"{100 * fraction:.2f} %"


def print_table(title, rows):
    from rich.table import Table

    _print_rows(Table(*rows[0], title=title), (map(str, row.values()) for row in rows))


def _print_numbers(title, headers, rows):
    """Prints a table whose columns from the second on are aligned on the right. A narrow terminal folds cells, and cuts none."""
    from rich.table import Column, Table

    first, *rest = headers
    columns = Column(first, overflow="fold"), *(Column(header, justify="right", overflow="fold") for header in rest)
    _print_rows(Table(*columns, title=title), rows)


def _print_rows(table, rows):
    from rich.console import Console

    for row in rows:
        table.add_row(*row)
    # A pipe has no width; cutting columns there would lose numbers.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _print_result(result):
    print(json.dumps(result))


@contextlib.contextmanager
def progress():
    """Shows progress on stderr, with the time left; gives `show(description, share of the work, rate)`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if not sys.stderr.isatty():  # rich would take a notebook for a terminal
        start, shown = time.monotonic(), set()

        def show(description, share, images_per_second=0):
            tenth = int(10 * share)
            if (description, tenth) not in shown:
                shown.add((description, tenth))
                line = [f"{description}: {10 * tenth} % of all work done"]
                if share:
                    line += [_rate(images_per_second)] * bool(images_per_second)
                    line += [f"{(time.monotonic() - start) * (1 - share) / share:.0f} s left"]
                print(", ".join(line), file=sys.stderr, flush=True)

        yield show
        return
    left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[rate]}"))
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), *left)
    progress = Progress(*columns, console=Console(stderr=True), speed_estimate_period=600)
    task = progress.add_task("", total=1.0, rate="")

    def show(description, share, images_per_second=0):
        progress.start()  # not before: reading the data may show a display of its own
        progress.update(task, description=description, completed=share, rate=_rate(images_per_second))

    try:
        yield show
    finally:
        progress.stop()


def _rate(images_per_second):
    return f"{images_per_second:,.0f} images/s" if images_per_second else ""


def _required(options, name):
    if not options[name].value:
        raise UserError(f"--{name} is missing.")
    return options[name].value


def _refuse_unused(options, used):
    """Raises UserError where a flag overrides a key of the config that the mode does not read."""
    for key in config_flags.get_override_values(options["config"]) if options.config else ():
        if not key.startswith(used) or key.startswith("data.augment."):
            raise UserError(f"--config.{key} changes nothing here; only {', '.join(used)} and what begins so are used.")


def refuse_config(options, source):
    if options.config:
        raise UserError(f"--config is not allowed here: this reads {source}.")


def _sweep_function(options):
    """The function `sweep` beside the config's `get_config`."""
    path = config_flags.get_config_filename(options["config"])
    if not isinstance(path, str):  # it is the config itself, which `_run_config` has read
        raise UserError("--config must be a sweep, such as configs/sweeps/degradation.py, not a single run's config.json.")
    path = path.split(":")[0]
    spec = importlib.util.spec_from_file_location("sweep_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "sweep"):
        raise UserError(f"{path} is not a sweep: it has no function sweep(config); configs/sweeps/degradation.py has one.")
    return module.sweep


def _define_flags(argv, config=None):
    """The flags of all modes; --config is a file, unless a config is given, which the flags then override."""
    options = flags.FlagValues()
    if config is None:
        config_flags.DEFINE_config_file(
            "config", None, "FILE.py[:ARGUMENT], or the config.json of a run", options, lock_config=True, sys_argv=argv
        )
    else:
        config_flags.DEFINE_config_dict("config", config, flag_values=options, lock_config=True, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "directory of the run or sweep", options)
    weights = "evaluate, finetune, predict: a file, a run directory or a Hugging Face repository; export: the file to write"
    flags.DEFINE_string("weights", None, weights, options)
    flags.DEFINE_string("model", None, "finetune, predict: the network, where the weights do not say", options)
    flags.DEFINE_boolean("all", False, "describe: all networks as published, in one table", options)
    size = "height and width of the images; as published if left out: 224 for ImageNet, 32 for CIFAR-10"
    flags.DEFINE_integer("image_size", None, f"describe: {size}", 1, 8192, flag_values=options)
    classes = "number of classes; as published if left out: 1000 or 10"
    flags.DEFINE_integer("num_classes", None, f"describe: {classes}", 2, 10**6, flag_values=options)
    protocols = ("centre", "ten_crop", "dense")
    flags.DEFINE_enum("protocol", None, protocols, "evaluate: how pictures meet the network; as in training if left out", options)
    flags.DEFINE_multi_integer("side", None, "evaluate --protocol=dense: a size of the shorter side", 1, flag_values=options)
    flags.DEFINE_boolean("exact_statistics", False, "evaluate: batch norm by statistics over the whole training split", options)
    found = "train: one of several processes that Slurm, Open MPI, Kubernetes or a TPU pod has started"
    flags.DEFINE_boolean("distributed", False, found, options)
    flags.DEFINE_string("coordinator", None, "train: HOST:PORT of process 0, where several are started by hand", options)
    flags.DEFINE_integer("num_processes", None, "train: how many there are", 1, flag_values=options)
    flags.DEFINE_integer("process_id", None, "train: which of them this is, counted from 0", 0, flag_values=options)
    flags.DEFINE_integer("workers", 1, "sweep: processes at a time, which share the CPU cores", 1, flag_values=options)
    flags.DEFINE_integer("index", None, "sweep: run only this element, counted from 0", 0, flag_values=options)
    executors = "sweep: where the runs run; slurm submits each one as a job, and returns"
    flags.DEFINE_enum("executor", "local", ("local", "slurm"), executors, options)
    flags.DEFINE_string("partition", None, "sweep --executor=slurm: the jobs' partition; Slurm's default if left out", options)
    flags.DEFINE_integer("gpus", None, "sweep --executor=slurm: GPUs of each run", 1, flag_values=options)
    flags.DEFINE_integer("cpus", None, "sweep --executor=slurm: CPU cores of each run", 1, flag_values=options)
    minutes = "sweep --executor=slurm: time limit of a job, which is queued again where it was not enough; 5 if left out"
    flags.DEFINE_integer("minutes", None, minutes, 3, flag_values=options)  # the last one and a half are for saving
    flags.DEFINE_integer("parallel", None, "sweep --executor=slurm: so many jobs at a time", 1, flag_values=options)
    flags.DEFINE_boolean("status", False, "sweep: only show how the runs stand", options)
    flags.DEFINE_boolean("dry_run", False, "sweep: only show the elements", options)
    return options


def _run_config(path):
    """The config that a run was trained with, from its config.json."""
    from configs import base
    from plain56.config import check_value, from_json

    try:
        if not user_path(path).exists():
            raise UserError("there is no such file.")
        stored = flatten(from_json(without_removed(read_json(user_path(path)), path)).to_dict())
    except UserError as error:
        raise UserError(f"--config is {path}, which does not hold a run's config: {error}") from error
    config = base.get_config()
    known = flatten(config.to_dict())
    for key in stored:
        if key not in known:
            raise UserError(f"--config is {path}, whose key {key!r} no config has.")
        check_value(key, stored[key])  # before it is taken for a value of another type
    if "model.name" not in stored:
        raise UserError(f"--config is {path}, which does not hold a run's config: it names no network.")
    config.update_from_flattened_dict(stored)  # a key that was added since then has its default
    return config


def _parse(argv):
    """Parses flags, and returns them and the positional arguments.

    Raises:
        UserError: an unknown flag or config key, a value of the wrong type, or a config file that does not load.
    """
    override = re.compile(r"--?config\.([^=]*)")
    overridden = [match[1] for match in map(override.match, argv) if match]
    try:
        config = None
        for i, argument in enumerate(argv):
            value = re.fullmatch(r"--?config(?:=(.*))?", argument)
            path = value and (value[1] or "".join(argv[i + 1 : i + 2]))
            if path and path.endswith(".json"):
                config = _run_config(path)
                argv = argv[:i] + argv[i + (1 if value[1] else 2) :]
                break
        # First without the overrides, so that an unknown key can be told from a wrong value.
        rest = ["launch.py", *(argument for argument in argv if not override.match(argument))]
        options = _define_flags(rest, config)
        options(rest)
        keys = flatten(options.config.to_dict()) if options.config else {}
        for key in overridden:
            if not keys:
                raise UserError(f"--config is missing, and --config.{key} overrides a key of it.")
            if key not in keys:
                nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0)[0]
                raise UserError(f"There is no key {key!r} in the config; the nearest is {nearest!r}.")
        argv = ["launch.py", *argv]
        options = _define_flags(argv, config)
        return options, options(argv)[1:]
    except UserError:
        raise
    except Exception as error:  # a config file is a program of the user's, and may raise anything
        # The last line: before it the library puts the traceback of the config file.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip().removeprefix("flag ")
        raise UserError(f"The command cannot be read: {reason.rstrip('.')}.") from error


class _Stream:
    """A stream whose reader may leave before the end, and whose disk may be full: nothing that is printed ends a run."""

    def __init__(self, stream):
        self.stream = stream
        self.failure = None  # why something could not be printed, for another reason than that its reader has left
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # not every terminal has a ×

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        with self._printing():
            return self.stream.write(text)
        return len(text)

    def flush(self):
        with self._printing():
            self.stream.flush()

    @contextlib.contextmanager
    def _printing(self):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                self.failure = error.strerror
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())


class _ToStderr(logging.Handler):
    def emit(self, record):
        kind = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        print(f"{kind}{record.getMessage()}", file=sys.stderr, flush=True)


def run(mode, argv, usage=__doc__):
    """Runs one mode with its flags and arguments, or prints its usage, and returns the exit status."""
    _open_closed_streams()
    with Path(os.devnull).open("w") as nowhere:
        out, errors = (_Stream(stream or nowhere) for stream in (sys.stdout, sys.stderr))
        if sys.stdout is None:
            out.failure = "it is closed"
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                status = _run(mode, argv, usage)
            finally:
                out.flush()
                errors.flush()
            if out.failure and not status:
                print(f"error: The result could not be printed ({out.failure}); all else is done.", file=sys.stderr, flush=True)
                return FAILED
            return status


def _open_closed_streams():
    """Gives the standard streams that are closed a place of their own: else the next file to be opened would be printed into."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _run(mode, argv, usage):
    if {"--help", "-h"} & set(argv):
        print(usage + _define_flags([]).module_help(sys.modules[__name__]))
        return 0
    absl.logging.set_verbosity(absl.logging.FATAL)  # what concerns a user comes as an exception, too
    logger = logging.getLogger("plain56")
    logger.handlers, logger.propagate, logger.level = [_ToStderr()], False, logging.INFO
    # Until training holds them back to save, both signals interrupt alike. A test may run this outside the main thread.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options, arguments = _parse(argv)
        for name in ("workdir", "weights"):
            if options[name].value:
                options[name].value = str(user_path(options[name].value))
        for name, owners in OWNERS.items():
            # A sweep's experiment takes workers, too.
            experiment = mode not in MODES.values() and name == "workers"
            if options[name].present and mode not in owners and not experiment:
                modes = ", ".join(owner.__name__ for owner in owners)
                raise UserError(f"--{name} belongs to launch.py {modes}, and is not allowed here.")
        if arguments and mode not in (describe, predict):
            raise UserError(f"{arguments[0]!r} is not understood; allowed are flags such as --workdir=FOLDER (see --help).")
        return mode(options, arguments) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt as error:
        reason = f" ({error})" if str(error) else ""
        print(f"Interrupted{reason}; the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED


def run_experiment(function, defaults, usage):
    """Runs the experiment of a module from the command line, with these flags unless others are given, and exits.

    Another config comes without the default's overrides.
    """
    given = {argument.split("=")[0].lstrip("-") for argument in sys.argv[1:]}
    if "config" in given:
        defaults = {key: value for key, value in defaults.items() if not key.startswith("config.")}
    flags_left = [f"--{key}={value}" for key, value in defaults.items() if key not in given]
    sys.exit(run(function, [*flags_left, *sys.argv[1:]], usage))


def main(argv):
    """Runs the mode that the command line names, and returns the exit status."""
    mode, *rest = argv or [None]
    if mode in MODES:
        return run(MODES[mode], rest)
    if {"--help", "-h", "help"} & set(argv):
        return run(None, ["--help"])
    given = "No mode was given" if mode is None else f"There is no mode {mode!r}"
    print(f"error: {given}; allowed are {', '.join(MODES)} (see --help).", file=sys.stderr)
    return MISTAKE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
