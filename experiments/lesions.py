"""Lesions of trained networks: a block is left out, several are, or two change places (Veit et al. 2016, Fig. 3 to 5).

From the run directories of a sweep alone, on the test split, for the shallowest and the deepest network, plain and residual:

    python -m experiments.lesions [--workdir=runs/degradation]
"""

import functools
import json

import numpy as np

import launch
from plain56 import runs, sweeps
from plain56.figures import lesions as figure
from plain56.models import parse_name

WORKDIR = "runs/degradation"
DRAWS = 5  # of sets of blocks to leave out, for each number of them


def ends(workdir):
    """The shallowest and the deepest finished run of a sweep, plain and residual; raises as `sweeps.finished_runs`."""
    found = sweeps.finished_runs(workdir)
    by_family = [[run for run, row in found if row["residual"] == residual] for residual in (False, True)]
    return [run for members in by_family for run in dict.fromkeys(members[:1] + members[-1:])]


def evaluator(trained, split):
    """`(model, variables) -> (loss, top1_error)` on a resident split, without augmentation."""
    import jax

    from plain56.training.evaluate import evaluate

    config, options = trained.config, {"data": trained.config.data, "place_batch": lambda batch: batch}

    @functools.partial(jax.jit, static_argnames="model")
    def totals_of(model, variables, split):
        return evaluate(*variables, split, model=model, batch_size=config.train.batch_size, **options)

    def measure(model, variables):
        means = totals_of(model, (variables["params"], variables["batch_stats"]), split).means()
        return means["loss"], means["top1_error"]

    return measure


def damaged(trained):
    """All lesions of a network: their kind, the blocks concerned, and the `(model, variables)` that is left."""
    from plain56.analysis import lesions

    model, variables = trained.model, {"params": trained.state.params, "batch_stats": trained.state.batch_stats}
    yield "none", (), (model, variables)
    for block in lesions.removable(model, variables):
        yield "without", (block,), lesions.without(model, variables, block)
    for first, second in lesions.neighbours(model, variables):
        yield "swapped", (first, second), (model, lesions.swapped(variables, first, second))
    if model.residual:
        blocks, generator = lesions.blocks(model), np.random.default_rng(0)
        for count in range(1, len(blocks), max(1, len(blocks) // 9)):
            for _ in range(DRAWS):
                chosen = [blocks[i] for i in sorted(generator.permutation(len(blocks))[:count])]
                yield "several", chosen, (model, lesions.silence(model, variables, chosen))


def kind_of(trained):
    """Family and depth, as a table shows them."""
    family, depth = parse_name(trained.config.model.name)
    return {"residual": family == "resnet", "depth": depth}


def damage(options, arguments):
    """Measures all lesions, writes lesions.csv, and draws the figure."""
    from plain56 import machine
    from plain56.analysis import lesions
    from plain56.data import load_dataset
    from plain56.training.loop import load_run

    launch.refuse_config(options, "the run directories alone")
    machine.set_up()
    rows = []
    with launch.progress() as show:
        found = ends(options.workdir)
        for part, run in enumerate(found):
            trained = load_run(run.path)
            split = load_dataset(trained.config.data).test
            measure = evaluator(trained, split)
            work = list(damaged(trained))
            for i, (kind, blocks, network) in enumerate(work):
                loss, error = measure(*network)
                names = " ".join(f"{stage}.{number}" for stage, number in blocks)
                rows.append({"run": run.path.name, **kind_of(trained), "lesion": kind, "blocks": names})
                # Counted through all stages, from 1.
                rows[-1]["position"] = lesions.blocks(trained.model).index(blocks[0]) + 1 if blocks else 0
                rows[-1] |= {"loss": f"{loss:.5g}", "top1_error": f"{error:.5g}"}
                show(run.path.name, (part + (i + 1) / len(work)) / len(found))
    runs.write_table(options.workdir, "lesions", rows)
    launch.print_table("test error (%)", figure.table(options.workdir))
    print(json.dumps({"figure": str(figure.draw(options.workdir))}))


if __name__ == "__main__":
    launch.run_experiment(damage, {"workdir": WORKDIR}, __doc__)
