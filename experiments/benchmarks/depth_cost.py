"""What depth costs before and during training: seconds to trace and compile a training step, and the memory that it takes.

    python -m plain56.experiments.benchmarks.depth_cost [--networks=resnet20,resnet1202] [--folder=runs/depth_cost]

Batches of 128 images of 32×32, each network in a process of its own, without the cache of compiled programs. Blocks of equal
shape are one scan, so the program hardly grows with depth. Memory does grow, with `model.remat` less than half as much.
Writes depth_cost.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

NETWORKS = ("resnet20", "resnet56", "resnet110", "resnet152_cifar", "resnet1202")
BATCH_SIZE, SIDE = 128, 32


def measure(name, remat):
    """Seconds to trace and to compile a training step, and the bytes that it takes beside the state."""
    import functools
    import time

    import jax
    import jax.numpy as jnp

    from plain56.configs import base
    from plain56.data import Batch
    from plain56.models import create_model
    from plain56.ops import native
    from plain56.training.optimizer import make_optimizer, make_schedule
    from plain56.training.state import create_train_state
    from plain56.training.step import Update, train_step

    native.lanes()  # is compiled once for all networks
    model, config = create_model(name, 10, remat=remat), base.get_config()
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, config.train.steps))
    state = jax.eval_shape(lambda: create_train_state(model, optimizer, 0, (SIDE, SIDE, 3)))
    images = jax.ShapeDtypeStruct((BATCH_SIZE, SIDE, SIDE, 3), jnp.float32)
    batch = Batch(images, jax.ShapeDtypeStruct((BATCH_SIZE,), jnp.int32), jax.ShapeDtypeStruct((BATCH_SIZE,), jnp.bool_))
    step = jax.jit(functools.partial(train_step, update=Update(model, optimizer, seed=0)), donate_argnums=0)
    start = time.perf_counter()
    lowered = step.lower(state, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - traced
    memory = compiled.memory_analysis()
    seconds = {"trace_seconds": round(traced - start, 2), "compile_seconds": round(compile_seconds, 2)}
    return {"network": name, "remat": remat, **seconds, "step_bytes": memory.temp_size_in_bytes}


def main():
    """Measures every network, or with --run one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="separated by commas")
    parser.add_argument("--folder", type=Path, default=Path("runs/depth_cost"))
    parser.add_argument("--run", choices=("kept", "remat"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(options.networks, options.run == "remat")))
        return
    from plain56 import cli

    rows, shown = [], []
    for name in options.networks.split(","):
        for run in ("kept", "remat"):
            print(f"{name}: {run}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "plain56.experiments.benchmarks.depth_cost", f"--networks={name}", f"--run={run}"]
            environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            rows.append(json.loads(result.stdout))
            _, remat, traced, compiled, size = rows[-1].values()
            line = {"network": name, "remat": "yes" if remat else "no", "trace (s)": traced, "compile (s)": compiled}
            shown.append(line | {"step (MB)": f"{size / 1e6:,.0f}"})
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "depth_cost.json").write_text(json.dumps(rows, indent=1) + "\n")
    cli.print_table("a training step", shown)
    cli.print_paths("folder", options.folder)
    if not sys.stdout.isatty():
        print(json.dumps({"folder": str(options.folder)}))


if __name__ == "__main__":
    main()
