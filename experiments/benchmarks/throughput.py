"""How fast a training step and a forward pass are, compared with plain Flax and PyTorch on the same machine at the same time.

    python -m plain56.experiments.benchmarks.throughput [--networks=resnet20,vgg16_bn] [--rounds=7] [--folder=runs/throughput]

Every program is a process of its own, and they take turns: in each round each one works for about a second while the others
wait. Ratios are taken within a round, so that a machine that is busy for a while slows both sides. The programs are

    plain56        this package
    Flax           the same network as one would write it: `lax` convolutions and their automatic gradients, `nn.BatchNorm`,
                   blocks one after another without a scan
    PyTorch        eager, channels last, in an environment of its own that is set up at the first call
    torch.compile  the same, compiled

plain56 runs with the settings that its command makes for its process (`plain56.machine`), the others with their defaults; all in
float32, with the same batch and SGD with momentum and weight decay. Writes throughput.json and its figure.
"""

import argparse
import contextlib
import functools
import json
import platform
import statistics
import sys
from pathlib import Path

from plain56.experiments.benchmarks.turns import Failed, describe_machine, python_with, serve, start_all, summary

# name: batch size, height and width of the images, number of classes
NETWORKS = {
    "resnet20": (128, 32, 10),
    "resnet56": (128, 32, 10),
    "plain56": (128, 32, 10),
    "vgg16_bn": (32, 32, 10),
    "googlenet_bn": (16, 32, 10),
    "resnet18": (8, 224, 1000),
    "resnet50": (8, 224, 1000),
}
WORK = ("step", "forward")
PROGRAMS = ("plain56", "Flax", "PyTorch", "torch.compile")
TORCH_PROGRAM = Path(__file__).with_name("throughput_torch.py")


def create(name):
    """The network of a name in `NETWORKS`."""
    from plain56.models import create_model

    options = {"form": "small"} if name.startswith(("vgg", "googlenet")) else {}
    options |= {"auxiliary": False, "dropout": 0.0} if name.startswith("googlenet") else {}
    options |= {"bottleneck_stride": "3x3"} if name == "resnet50" else {}  # as torchvision's
    return create_model(name, NETWORKS[name][2], **options)


def prepare(name):
    """A network and its training step: `(model, step_fn, state, batch)`; the jitted step donates the state."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from plain56.configs import base
    from plain56.data import Batch
    from plain56.training.optimizer import make_optimizer, make_schedule
    from plain56.training.state import create_train_state
    from plain56.training.step import Update, train_step

    model, (batch_size, side, num_classes) = create(name), NETWORKS[name]
    config = base.get_config()
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, config.train.steps))
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.normal(size=(batch_size, side, side, 3)), jnp.float32)
    labels = jnp.asarray(generator.integers(num_classes, size=batch_size), jnp.int32)
    state = jax.jit(lambda: create_train_state(model, optimizer, 0, (side, side, 3)))()
    step_fn = jax.jit(functools.partial(train_step, update=Update(model, optimizer, seed=0)), donate_argnums=0)
    return model, step_fn, state, Batch(images, labels, jnp.ones(batch_size, bool))


def run_jax(name, plain):
    """The programs "plain56" and "Flax"."""
    import importlib.metadata

    import jax
    import jax.numpy as jnp

    from plain56 import machine

    if plain:
        _write_as_plain_flax()
    else:
        machine.set_up()
    model, step_fn, state, batch = prepare(name)
    variables = jax.tree.map(jnp.copy, {"params": state.params, "batch_stats": state.batch_stats})
    forward_fn = jax.jit(lambda variables, images: model.apply(variables, images).logits)

    def step():
        nonlocal state
        state, totals = step_fn(state, batch)
        jax.block_until_ready((state, totals))

    versions = {package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "flax")}
    serve(versions, {"step": step, "forward": lambda: jax.block_until_ready(forward_fn(variables, batch.images))})


def _write_as_plain_flax():
    """Replaces our layers by the library's own."""
    from flax import linen as nn
    from jax import lax

    from plain56.models import googlenet, layers, resnet, vgg

    def batch_norm(numerics, train, scale_init=nn.initializers.ones, name=None):
        constants = {"momentum": numerics.momentum, "epsilon": numerics.epsilon}
        return nn.BatchNorm(use_running_average=not train, scale_init=scale_init, name=name, **constants)

    def one_after_another(block, length, remat, name, **fields):
        def run(x, train):
            for i in range(length):
                x, _ = block(**fields, name=f"{name}_{i}")(x, train)
            return x, None

        return run

    layers._convolve = lax.conv_general_dilated
    for module in (googlenet, resnet, vgg):
        module.BatchNorm = batch_norm
    resnet.scan_blocks = one_after_another


def command_of(program, name):
    """The command that starts a program for a network."""
    if program in ("plain56", "Flax"):
        return [sys.executable, "-m", "plain56.experiments.benchmarks.throughput", f"--run={program}", f"--networks={name}"]
    python = python_with("torch", "torch", "torchvision")
    if isinstance(python, Failed):
        raise python
    batch_size, side, num_classes = map(str, NETWORKS[name])
    return [python, str(TORCH_PROGRAM), name, batch_size, side, num_classes, str(int(program == "torch.compile"))]


def measure(name, rounds, show):
    """Times of all programs for one network: `(rows, versions, sentences about programs that could not be run)`."""
    times = {work: {program: [] for program in PROGRAMS} for work in WORK}
    commands = {program: functools.partial(command_of, program, name) for program in PROGRAMS}
    with contextlib.ExitStack() as stack:
        programs, versions, sentences = start_all(commands, stack, lambda line: show(f"{name}: {line}"))
        sentences = [f"{name}: {sentence}" for sentence in sentences]
        for number in range(rounds):
            show(f"{name}: round {number + 1} of {rounds}")
            for work in WORK:
                for program in list(programs):
                    try:
                        times[work][program].append(statistics.median(programs[program].turn(work)))
                    except (Failed, OSError) as error:
                        sentences.append(f"{name}: {program} ended in round {number + 1}: {error}")
                        del programs[program]
    rows = []
    for work in WORK if "plain56" in programs else ():
        row = {"network": name, "batch_size": NETWORKS[name][0], "image_size": NETWORKS[name][1], "work": work}
        ran = {program: times[work][program] for program in programs}
        row["milliseconds"] = {program: summary(values) for program, values in ran.items()}
        # How many times as fast as the other program, round by round.
        ratios = {program: [b / a for a, b in zip(ran["plain56"], values, strict=True)] for program, values in ran.items()}
        row["times_as_fast_as"] = {program: summary(values) for program, values in ratios.items() if program != "plain56"}
        rows.append(row)
    return rows, versions, sentences


def print_table(result):
    """Prints medians in milliseconds and, in brackets, how many times as fast plain56 is."""
    from plain56 import cli
    from plain56.figures.throughput import TITLES

    rows = []
    for row in result["rows"]:
        cells = {"network, batch, image": f"{row['network']}, {row['batch_size']}, {row['image_size']}, {TITLES[row['work']]}"}
        for program in PROGRAMS:
            time_of, ratio = row["milliseconds"].get(program), row["times_as_fast_as"].get(program)
            factor = f" ({ratio['median']:.2f}: {ratio['least']:.2f}–{ratio['most']:.2f})" if ratio else ""
            cells[program] = f"{time_of['median']:.0f}{factor}" if time_of else "–"
        rows.append(cells)
    cli.print_table("milliseconds (× as fast)", rows)


def main():
    """Measures, or with --run is one of the programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="separated by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("runs/throughput"))
    parser.add_argument("--run", choices=PROGRAMS[:2], help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.networks.split(",")
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        parser.error(f"--networks must be names from {', '.join(NETWORKS)}, not {unknown[0]!r}")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    if options.run:
        run_jax(names[0], plain=options.run == "Flax")
        return

    from plain56 import cli
    from plain56.figures import throughput as figure

    show = functools.partial(print, file=sys.stderr, flush=True)
    result = {"machine": describe_machine(), "versions": {"python": platform.python_version()}, "sentences": [], "rows": []}
    for name in names:
        rows, versions, sentences = measure(name, options.rounds, show)
        result["rows"] += rows
        result["versions"] |= versions
        result["sentences"] += sentences
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "throughput.json").write_text(json.dumps(result, indent=1) + "\n")
    figure.draw(options.folder)
    print_table(result)
    print("\n".join([result["machine"], json.dumps(result["versions"]), *result["sentences"]]))
    cli.print_paths("folder", options.folder)
    if not sys.stdout.isatty():
        print(json.dumps({"folder": str(options.folder)}))


if __name__ == "__main__":
    main()
