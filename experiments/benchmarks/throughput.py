"""How fast a training step and a forward pass are, compared with plain Flax and PyTorch on the same machine at the same time.

    python -m plain56.experiments.benchmarks.throughput [--networks=resnet20,vgg16_bn] [--device=cpu] [--rounds=7]
        [--folder=runs/throughput]

Every program is a process of its own, and they take turns: in each round each one works for about a second while the others
wait. Ratios are taken within a round, so that a machine that is busy for a while slows both sides. The programs are

    plain56                     this package
    plain56, bfloat16           the same, computing in bfloat16 (on a CPU)
    plain Flax                  the same network as one would write it: `lax` convolutions and their automatic gradients,
                                `nn.BatchNorm`, blocks one after another without a scan (on a CPU)
    PyTorch                     eager, channels last, in an environment of its own that is set up at the first call
    torch.compile               the same, compiled
    torch.compile, CUDA graphs  the same, with `mode="reduce-overhead"` (on a GPU)

plain56 runs with the settings that its command makes for its process (`plain56.machine`), the others with their defaults. All
take batches of the same size and SGD with momentum and weight decay. On a CPU all but one compute in float32.

A GPU is measured if JAX can use one. There all compute in bfloat16, PyTorch by AMP, with one batch that stays in the GPU's
memory, which the programs share. The host waits after 20 steps: plain56 loops in one compiled call, as it does in training, and
PyTorch loops in Python. Writes throughput.json and its figure.
"""

import argparse
import contextlib
import functools
import json
import platform
import statistics
import sys
from pathlib import Path

from plain56.experiments.benchmarks.turns import (
    Failed,
    describe_machine,
    find_gpu,
    machine_line,
    python_with,
    serve,
    start_all,
    summary,
)

# name: batch size on a CPU, height and width of the images, number of classes
NETWORKS = {
    "resnet20": (128, 32, 10),
    "resnet56": (128, 32, 10),
    "resnet110": (128, 32, 10),
    "plain56": (128, 32, 10),
    "vgg16_bn": (32, 32, 10),
    "googlenet_bn": (16, 32, 10),
    "resnet18": (8, 224, 1000),
    "resnet50": (8, 224, 1000),
}
GPU_BATCH_SIZES = {32: 128, 224: 256}  # by height and width
WORK = ("step", "forward")
OURS = ("plain56", "plain56, bfloat16", "plain Flax")  # programs of this file
PROGRAMS = {
    "cpu": (*OURS, "PyTorch", "torch.compile"),
    "gpu": ("plain56", "PyTorch", "torch.compile", "torch.compile, CUDA graphs"),
}
REPEATS = {"cpu": 1, "gpu": 20}
TORCH_PROGRAM = Path(__file__).with_name("throughput_torch.py")


def shape_of(name, device):
    """A network's batch size on a device, the height and width of its images, and its number of classes."""
    batch_size, side, num_classes = NETWORKS[name]
    return (GPU_BATCH_SIZES[side] if device == "gpu" else batch_size), side, num_classes


def create(name, dtype="float32"):
    """The network of a name in `NETWORKS`."""
    from plain56.models import create_model

    options = {"form": "small"} if name.startswith(("vgg", "googlenet")) else {}
    options |= {"auxiliary": False, "dropout": 0.0} if name.startswith("googlenet") else {}
    options |= {"bottleneck_stride": "3x3"} if name == "resnet50" else {}  # as torchvision's
    return create_model(name, NETWORKS[name][2], dtype=dtype, **options)


def prepare(name, device="cpu", dtype="float32"):
    """A network and its training step, not yet compiled: `(model, step, state, batch)`; `step(state, batch)` is the next state
    and the totals."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from plain56.configs import base
    from plain56.data import Batch
    from plain56.training.optimizer import make_optimizer, make_schedule
    from plain56.training.state import create_train_state
    from plain56.training.step import Update, train_step

    model, (batch_size, side, num_classes) = create(name, dtype), shape_of(name, device)
    config = base.get_config()
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, config.train.steps))
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.normal(size=(batch_size, side, side, 3)), jnp.float32)
    labels = jnp.asarray(generator.integers(num_classes, size=batch_size), jnp.int32)
    state = jax.jit(lambda: create_train_state(model, optimizer, 0, (side, side, 3)))()
    step = functools.partial(train_step, update=Update(model, optimizer, seed=0))
    return model, step, state, Batch(images, labels, jnp.ones(batch_size, bool))


def run_jax(program, name, device):
    """The programs of JAX."""
    import importlib.metadata

    import jax
    import jax.numpy as jnp

    from plain56 import machine

    if program == "plain Flax":
        _write_as_plain_flax()
    else:
        machine.set_up()
    dtype, repeats = "bfloat16" if device == "gpu" or program == "plain56, bfloat16" else "float32", REPEATS[device]
    model, train, state, batch = prepare(name, device, dtype)
    variables = jax.tree.map(jnp.copy, {"params": state.params, "batch_stats": state.batch_stats})

    def one_pass(last, inputs):
        variables, images = inputs
        if repeats > 1:  # or the compiler would do the work once, before the loop
            images += 1e-30 * last[0, 0]
        return model.apply(variables, images).logits, ()

    options = {"compiler_options": machine.compiler_options()}
    step_fn, forward_fn = (
        jax.jit(repeated(train, repeats), donate_argnums=0, **options),
        jax.jit(repeated(one_pass, repeats), **options),
    )
    logits = jnp.zeros(shape_of(name, device)[::2])

    def step():
        nonlocal state
        state, totals = step_fn(state, batch)
        jax.block_until_ready((state, totals))

    def forward():
        jax.block_until_ready(forward_fn(logits, (variables, batch.images)))

    versions = {package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "flax")}
    serve(versions, {"step": step, "forward": forward}, repeats)


def repeated(function, repeats):
    """`function(carry, inputs) -> (carry, output)` so many times in a loop, with the same inputs."""
    import jax

    def loop(carry, inputs):
        return jax.lax.scan(lambda carry, _: function(carry, inputs), carry, length=repeats)

    return loop if repeats > 1 else function


def _write_as_plain_flax():
    """Replaces our layers by the library's own."""
    from flax import linen as nn
    from jax import lax

    from plain56.models import layers

    def batch_norm(numerics, train, scale_init=nn.initializers.ones, relu=False, name=None):
        constants = {"momentum": numerics.momentum, "epsilon": numerics.epsilon}
        norm = nn.BatchNorm(use_running_average=not train, scale_init=scale_init, name=name, **constants)
        return (lambda x: nn.relu(norm(x))) if relu else norm

    def one_after_another(block, length, remat, in_axes, name, **fields):
        def run(x, train):
            for i in range(length):
                x, _ = block(**fields, name=f"{name}_{i}")(x, train)
            return x, None

        return run

    layers._convolve, layers.BatchNorm, layers.scan_blocks = lax.conv_general_dilated, batch_norm, one_after_another


def command_of(program, name, device):
    """The command that starts a program for a network."""
    if program in OURS:
        flags = [f"--run={program}", f"--networks={name}", f"--device={device}"]
        return [sys.executable, "-m", "plain56.experiments.benchmarks.throughput", *flags]
    python = python_with("torch", "torch", "torchvision")
    if isinstance(python, Failed):
        raise python
    return [python, str(TORCH_PROGRAM), program, name, device, *map(str, (*shape_of(name, device), REPEATS[device]))]


def measure(name, device, rounds, show):
    """Times of all programs for one network: `(rows, versions, sentences about programs that could not be run)`."""
    times = {work: {program: [] for program in PROGRAMS[device]} for work in WORK}
    commands = {program: functools.partial(command_of, program, name, device) for program in PROGRAMS[device]}
    with contextlib.ExitStack() as stack:
        programs, versions, sentences = start_all(commands, stack, lambda line: show(f"{name}: {line}"), device)
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
    batch_size, side, _ = shape_of(name, device)
    for work in WORK if "plain56" in programs else ():
        row = {"network": name, "batch_size": batch_size, "image_size": side, "work": work}
        ran = {program: times[work][program] for program in programs}
        row["milliseconds"] = {program: summary(values) for program, values in ran.items()}
        # How many times as fast as the other program, round by round.
        ratios = {program: [b / a for a, b in zip(ran["plain56"], values, strict=True)] for program, values in ran.items()}
        row["times_as_fast_as"] = {program: summary(values) for program, values in ratios.items() if "plain56" not in program}
        rows.append(row)
    return rows, versions, sentences


def markdown(result):
    """README's table: milliseconds of plain56, and how many times as fast it is (median and quartiles); then the machine."""
    from plain56.figures.throughput import TITLES

    programs = PROGRAMS[result["device"]]
    lines = [["network, batch, image", "work", *(f"{name} (ms)" if "plain56" in name else name for name in programs)]]
    for row in result["rows"]:
        lines.append([f"{row['network']}, {row['batch_size']}, {row['image_size']}", TITLES[row["work"]]])
        for program in programs:
            time, ratio = row["milliseconds"].get(program), row["times_as_fast_as"].get(program)
            cell = f"{time['median']:.{1 if time['median'] < 100 else 0}f}" if time else "–"
            spread = ratio and f"{ratio['median']:.2f} ({ratio['lower_quartile']:.2f}–{ratio['upper_quartile']:.2f})"
            lines[-1].append(spread or cell)
    head, *body = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join([head, "|---|---|" + "---:|" * len(programs), *body, "", machine_line(result["machine"])])


def main():
    """Measures, or with --run is one of the programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="separated by commas")
    parser.add_argument("--device", choices=PROGRAMS, help="default: gpu if JAX can use one, else cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("runs/throughput"))
    parser.add_argument("--run", choices=OURS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.networks.split(",")
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        parser.error(f"--networks must be names from {', '.join(NETWORKS)}, not {unknown[0]!r}")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    if options.run:
        run_jax(options.run, names[0], options.device)
        return
    gpu = find_gpu() if options.device != "cpu" else None
    if options.device == "gpu" and not gpu:
        parser.error("--device=gpu must have a GPU that JAX can use, and there is none")
    device = "gpu" if gpu else "cpu"

    from plain56 import cli
    from plain56.figures import throughput as figure

    show = functools.partial(print, file=sys.stderr, flush=True)
    versions = {"python": platform.python_version()}
    result = {"device": device, "machine": describe_machine(gpu), "versions": versions, "sentences": [], "rows": []}
    for name in names:
        rows, versions, sentences = measure(name, device, options.rounds, show)
        result["rows"] += rows
        result["versions"] |= versions
        result["sentences"] += sentences
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "throughput.json").write_text(json.dumps(result, indent=1) + "\n")
    figure.draw(options.folder)
    print("\n".join([markdown(result), json.dumps(result["versions"]), *result["sentences"]]))
    cli.print_paths("folder", options.folder)
    if not sys.stdout.isatty():
        print(json.dumps({"folder": str(options.folder)}))


if __name__ == "__main__":
    main()
