"""Where the milliseconds of a training step on a CPU go, and what the machine could do at most.

    python -m plain56.experiments.benchmarks.profile_step [--networks=resnet56,resnet50] [--folder=runs/profile]

Writes profile.json, which has

    peak          GFLOP/s of multiply-adds in registers; a multiply-add counts as two operations, here and below
    bandwidth     GB/s of all cores together, each with arrays of its own; a write counts once
    convolutions  for each shape: how often it occurs, and the milliseconds and GFLOP/s of the forward pass and both gradients, by
                  the calls that training makes. Operations are those of the direct sum, 2·N·h·w·kh·kw·C·D, also where Winograd's
                  algorithm needs fewer: a share of the peak may then be above 1. The images need no gradient.
    sums          of count × milliseconds
    step          milliseconds, and the GFLOP/s of three forward passes (of convolutions) in that time; parallel efficiency: the
                  time with one thread / (cores · the time with all)
    groups        milliseconds of a step by what runs, from XLA's profiler. XLA runs independent operations at the same time:
                  `summed` adds up their durations, while in `milliseconds` each moment is divided equally among the operations
                  that run then. With the moments when none runs these are the whole step.

The machine must have nothing else to do.
"""

import argparse
import ctypes
import functools
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from plain56.experiments.benchmarks.programs import add_up, convolutions_of, group_of, operations
from plain56.experiments.benchmarks.throughput import NETWORKS, create, prepare
from plain56.experiments.benchmarks.turns import describe_machine

SECONDS, ROUNDS = 0.3, 3  # of one measurement, and how many of the peak, of which the best counts
STEP_SECONDS, TRACED_STEPS = 3.0, 3
REGISTER_BITS = (128, 256, 512)
ARRAY_MEGABYTES = (256, 4)
WORKS = ("forward", "input_gradient", "kernel_gradient")


def measure_machine(threads):
    """The parts "peak" and "bandwidth", with one thread and with so many; raises as `native.compile_source`."""
    from plain56.ops import native

    with tempfile.TemporaryDirectory() as folder:
        native.compile_source(Path(__file__).with_name("peak.cc"), Path(folder) / "peak.so")
        library = ctypes.CDLL(str(Path(folder) / "peak.so"))
    library.Peak.restype = library.Bandwidth.restype = ctypes.c_double
    library.Peak.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_double)
    library.Bandwidth.argtypes = (ctypes.c_int64, ctypes.c_int, ctypes.c_int, ctypes.c_double)

    def best(measure, *arguments):
        return round(max(measure(*arguments, SECONDS) for _ in range(ROUNDS)) / 1e9, 2)

    peak = [
        {"register_bits": bits, "threads": count, "gflops": best(library.Peak, bits, count)}
        for bits in REGISTER_BITS
        if library.Supports(bits)
        for count in sorted({1, threads})
    ]
    bandwidth = []
    for megabytes in ARRAY_MEGABYTES:
        read, both = (best(library.Bandwidth, megabytes << 20, writes, threads) for writes in (0, 1))
        bandwidth.append({"array_megabytes": megabytes, "threads": threads, "read": read, "read_and_write": both})
    return {"peak": peak, "bandwidth": bandwidth}


def milliseconds(work, seconds):
    """The median time of a function without arguments, after two calls."""
    times, _, _ = [], work(), work()
    start = time.perf_counter()
    while not times or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - before))
    return statistics.median(times)


def measure_convolution(shape, is_first, peak):
    """Milliseconds, GFLOP/s and share of the peak of a `Shape` by work; None for the input gradient if it is the first."""
    import jax
    import numpy as np

    from plain56.ops import convolution

    generator = np.random.default_rng(0)
    arrays = [jax.numpy.asarray(generator.normal(size=size), np.float32) for size in (shape.images, shape.kernel, shape.output)]
    gradients = functools.partial(convolution._cpu_gradients, shape.strides, shape.padding)
    works = (
        lambda x, w, g: convolution._cpu_forward(shape.strides, shape.padding, x, w),
        None if is_first else lambda x, w, g: gradients(x, w, g)[0],
        lambda x, w, g: gradients(x, w, g)[1],
    )
    row = dict.fromkeys(WORKS)
    for name, work in zip(WORKS, works, strict=True):
        if not work:
            continue
        run = jax.jit(work)
        duration = milliseconds(lambda run=run: jax.block_until_ready(run(*arrays)), SECONDS)
        gflops = 2 * shape.multiply_adds / duration / 1e6
        row[name] = {"milliseconds": round(duration, 3), "gflops": round(gflops, 1), "share_of_peak": round(gflops / peak, 3)}
    return row


def profile(step, hlo):
    """The part "groups": what runs in the calls of a function without arguments, which runs the compiled program."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            for _ in range(TRACED_STEPS):
                step()
            wall = 1000 * (time.perf_counter() - start)
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        events = [event for plane in planes for line in plane.lines for event in line.events]
    known = operations(hlo)
    ran = [
        (group, event.start_ns / 1e6, event.end_ns / 1e6)
        for event in events
        if event.name in known and (group := group_of(event.name, known[event.name]))
    ]
    rows = sorted(add_up(ran, wall).items(), key=lambda item: -item[1]["milliseconds"])
    return [
        {"group": group, "calls": row["calls"] // TRACED_STEPS}
        | {key: round(row[key] / TRACED_STEPS, 3) for key in ("summed", "milliseconds")}
        | {"share": round(row["milliseconds"] / wall, 4)}
        for group, row in rows
    ]


def measure_step(name, traced):
    """The milliseconds of a step with the threads of this process, and the part "groups" if `traced`."""
    import jax

    _, train, state, batch = prepare(name)
    step_fn = jax.jit(train, donate_argnums=0)
    compiled = step_fn.lower(state, batch).compile()

    def step():
        nonlocal state
        state, totals = compiled(state, batch)
        jax.block_until_ready((state, totals))

    result = {"milliseconds": round(milliseconds(step, STEP_SECONDS), 3)}
    return result | {"groups": profile(step, compiled.as_text())} if traced else result


def measure_network(name, threads, peak):
    """The parts of one network; `peak` is in GFLOP/s, of all threads."""
    batch_size, side, _ = NETWORKS[name]
    images = (batch_size, side, side, 3)
    rows, counts = [], convolutions_of(create(name), images)
    for shape, count in counts.items():
        print(f"{name}: {shape}", file=sys.stderr, flush=True)
        measured = measure_convolution(shape, shape.images == images, peak)
        rows.append({"convolution": str(shape), "count": count, **shape._asdict(), **measured})
    sums = {work: round(sum(row["count"] * row[work]["milliseconds"] for row in rows if row[work]), 3) for work in WORKS}
    print(f"{name}: the step", file=sys.stderr, flush=True)
    step = measure_step(name, traced=True)
    command = [sys.executable, "-m", "plain56.experiments.benchmarks.profile_step", f"--networks={name}", "--run"]
    # Without the cache, whose programs may be compiled for more threads.
    environment = os.environ | {"NPROC": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    one = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    alone = json.loads(one.stdout)["milliseconds"]
    gflop = 3 * 2e-9 * sum(count * shape.multiply_adds for shape, count in counts.items())
    gflops = 1000 * gflop / step["milliseconds"]
    step |= {"one_thread_milliseconds": alone, "parallel_efficiency": round(alone / threads / step["milliseconds"], 3)}
    step |= {"gflop": round(gflop, 2), "gflops": round(gflops, 1), "share_of_peak": round(gflops / peak, 3)}
    return {"network": name, "batch_size": batch_size, "image_size": side, "convolutions": rows, "sums": sums, "step": step}


def print_result(result):
    """Prints the tables and a sentence for each network."""
    from plain56 import cli

    titles = {"register_bits": "bits of a register", "array_megabytes": "MB of an array", "threads": "threads"}
    titles |= {"gflops": "GFLOP/s", "read": "read (GB/s)", "read_and_write": "read and write (GB/s)"}
    for part, title in (("peak", "multiply-adds in registers"), ("bandwidth", "memory")):
        cli.print_table(title, [{titles[key]: value for key, value in row.items()} for row in result[part]])
    for network in result["networks"]:
        name, step, rows = network["network"], network["step"], []
        for row in network["convolutions"]:
            cells = [
                f"{row[work]['milliseconds']:.2f} ({row[work]['share_of_peak']:.0%})" if row[work] else "–" for work in WORKS
            ]
            rows.append({"convolution": row["convolution"], "count": row["count"], **dict(zip(WORKS, cells, strict=True))})
        rows.append({"convolution": "sum of count × ms", "count": "–"} | {work: f"{network['sums'][work]:.1f}" for work in WORKS})
        cli.print_table(f"{name}: milliseconds of a convolution, and its GFLOP/s as a share of the peak", rows)
        rows = []
        for row in step["groups"]:
            times = {"summed (ms)": f"{row['summed']:.1f}", "ms": f"{row['milliseconds']:.1f}", "share": f"{row['share']:.1%}"}
            rows.append({"operations": row["group"], "calls": row["calls"], **times})
        cli.print_table(f"{name}: a step", rows)
        print(
            f"A step of {network['batch_size']} images takes {step['milliseconds']:.0f} ms: {step['gflops']:.0f} GFLOP/s "
            f"({step['share_of_peak']:.0%} of the peak),\nparallel efficiency {step['parallel_efficiency']:.2f}"
        )


def main():
    """Measures everything, or with --run only the milliseconds of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet56,resnet50", help="separated by commas")
    parser.add_argument("--folder", type=Path, default=Path("runs/profile"))
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.networks.split(",")
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        parser.error(f"--networks must be names from {', '.join(NETWORKS)}, not {unknown[0]!r}")

    import jax

    from plain56 import cli, machine
    from plain56.ops import native

    jax.config.update("jax_platforms", "cpu")
    if options.run:
        machine.set_up()
        print(json.dumps(measure_step(names[0], traced=False)))
        return
    threads = len(machine.cores())
    versions = {package: importlib.metadata.version(package) for package in ("jax", "jaxlib")}
    result = {"machine": describe_machine(), "versions": versions}
    try:
        result |= measure_machine(threads)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        sys.exit(f"peak.cc could not be compiled: {native.reason(error)}")
    machine.set_up()  # not before, since memory that is freed then stays with the process
    peak = max(row["gflops"] for row in result["peak"] if row["threads"] == threads)
    result["networks"] = [measure_network(name, threads, peak) for name in names]
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "profile.json").write_text(json.dumps(result, indent=1) + "\n")
    print_result(result)
    cli.print_paths("folder", options.folder)
    if not sys.stdout.isatty():
        print(json.dumps({"folder": str(options.folder)}))


if __name__ == "__main__":
    main()
