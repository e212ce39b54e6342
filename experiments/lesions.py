"""Lesions of trained networks: one block or several are left out, or two change places (Veit et al. 2016, Fig. 3 to 5).

Reads only the run directories of a sweep. Tests its shallowest and deepest plain and residual networks, or those in files of
weights, on the test split:

    python -m plain56.experiments.lesions [--workdir=runs/degradation]
    python -m plain56.experiments.lesions --weights=FILE,FILE --config=configs/cifar10.py --workdir=runs/lesions
"""

import functools

import numpy as np

from plain56 import cli, runs, summary
from plain56.figures import lesions as figure

WORKDIR = "runs/degradation"
DRAWS = 5  # of sets of blocks to leave out, for each number of them


def evaluator(trained, split):
    """`(model, variables) -> (loss, top1_error)` on a resident split, without augmentation."""
    import jax

    from plain56.training.metrics import split_totals

    config, options = trained.config, {"data": trained.config.data, "split_batch": lambda batch: batch}

    @functools.partial(jax.jit, static_argnames="model")
    def totals_of(model, variables, split):
        return split_totals(*variables, split, model=model, batch_size=config.train.batch_size, **options)

    def measure(model, variables):
        means = totals_of(model, (variables["params"], variables["batch_stats"]), split).means()
        return means["loss"], means["top1_error"]

    return measure


def lesions_of(trained):
    """All lesions of a network: the kind, the blocks concerned, and a function that returns the damaged `(model, variables)`."""
    import jax

    from plain56.analysis import lesions

    model, state = trained.model, trained.state
    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    found = [("none", (), lambda: (model, variables))]
    for block in lesions.removable(model, variables):
        found.append(("without", (block,), functools.partial(lesions.without, model, variables, block)))
    for pair in lesions.neighbors(model, variables):
        found.append(("swapped", pair, lambda pair=pair: (model, lesions.swapped(model, variables, *pair))))
    if model.block_options.residual:
        blocks, generator = lesions.blocks(model), np.random.default_rng(0)
        for count in range(1, len(blocks), max(1, len(blocks) // 9)):
            for _ in range(DRAWS):
                chosen = [blocks[i] for i in sorted(generator.permutation(len(blocks))[:count])]
                found.append(("several", chosen, lambda chosen=chosen: (model, lesions.silence(model, variables, chosen))))
    return found


def damage(options, arguments):
    """Measures all lesions, writes lesions.csv, and draws the figure."""
    from plain56 import machine
    from plain56.analysis import lesions
    from plain56.data import load_resident

    machine.set_up()
    rows = []
    with cli.progress() as show:
        found = cli.networks_of(options, summary.shallowest_and_deepest)
        for part, (row, load) in enumerate(found):
            trained = load()
            measure = evaluator(trained, load_resident(trained.config.data).test)
            work = lesions_of(trained)
            for i, (kind, blocks, make) in enumerate(work):
                loss, error = measure(*make())
                names = " ".join(f"{stage}.{number}" for stage, number in blocks)
                # Counted through all stages, from 1.
                position = lesions.blocks(trained.model).index(blocks[0]) + 1 if blocks else 0
                line = row | {"lesion": kind, "blocks": names, "position": position}
                rows.append(line | {"loss": f"{loss:.5g}", "top1_error": f"{error:.5g}"})
                show(row["run"], (part + (i + 1) / len(work)) / len(found))
    runs.write_table(options.workdir, "lesions", rows)
    cli.print_table("test error (%)", figure.table(options.workdir))
    drawn = figure.draw(options.workdir)
    cli.print_paths("figure", drawn)
    cli.print_result({"figure": str(drawn)})


if __name__ == "__main__":
    cli.run_experiment(damage, {"workdir": WORKDIR}, __doc__, cli.WEIGHTS_EXPERIMENT)
