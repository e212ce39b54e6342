"""What a trained network is worth if there are few pictures: from scratch, a linear probe, and fine-tuning.

Trains a network on half of a data set's classes, then networks on a few examples of each of the other classes: from random
values, only the last layer on the features of the first network, and all layers beginning from it. Draws the figure, prints the
table and checks the claim:

    python -m plain56.experiments.transfer [--config=configs/sweeps/transfer.py:cifar10] [--workdir=runs/transfer]

The rule, on test errors averaged over seeds, with the fewest examples per class: the probe and fine-tuning are both at least 5
percentage points better than training from scratch.
"""

import copy
import sys
from pathlib import Path

from plain56 import cli, runs
from plain56.configs.sweeps.transfer import source, sweep
from plain56.figures import transfer

SWEEP = "configs/sweeps/transfer.py"
BETTER_AT_LEAST = 0.05


def check_claim(rows):
    """Judges rows of `results` by the rule above: `(held, sentence)`."""
    fewest = min(row["examples_per_class"] for row in rows)

    def error(approach):
        errors = [row["test_error"] for row in rows if (row["approach"], row["examples_per_class"]) == (approach, fewest)]
        return sum(errors) / len(errors)

    gains = {approach: error("scratch") - error(approach) for approach in ("probe", "finetune")}
    held = min(gains.values()) >= BETTER_AT_LEAST
    return held, (
        f"The claim {'held' if held else 'did not hold'}: with {fewest} examples per class the test error from scratch is "
        f"{100 * error('scratch'):.1f} %, and it is {100 * gains['probe']:.1f} points less by a linear probe and "
        f"{100 * gains['finetune']:.1f} by fine-tuning (claimed: at least {100 * BETTER_AT_LEAST:.0f} both)."
    )


def results(workdir):
    """A row for each run of the finished sweep: approach, examples per class, seed, errors (fractions), steps, seconds."""
    rows = []
    for row, planned in zip(runs.read_summary(workdir), runs.read_sweep(workdir), strict=True):
        overrides = planned.overrides
        probe, weights = overrides.get("transfer.probe"), overrides.get("transfer.weights")
        approach = "probe" if probe else "finetune" if weights else "scratch"
        kept = {key: row[key] for key in ("seed", "train_error", "test_error", "steps", "seconds")}
        rows.append({"approach": approach, "examples_per_class": overrides["data.examples_per_class"], **kept})
    return rows


def compare(options, arguments):
    """Trains the source network, runs the sweep and judges the claim; returns the exit status, 1 if the claim did not hold."""
    from plain56 import machine, pretrained, sweeps, training

    machine.set_up()
    workdir = Path(options.workdir)
    # Finds a mistake in the sweep before the source network is trained.
    for element in sweeps.expand(options.config, sweep):
        if element.config.seed == options.config.sweep.seeds[0]:
            training.load(element.config)
    config = copy.deepcopy(options.config).unlock()
    config.update_from_flattened_dict(source(config))
    del config.sweep
    with cli.progress() as show:
        status = training.train(config.lock(), workdir / "source", lambda now: show("", now.share, {"source": now}))
    if status.state not in runs.COMPLETE:
        print(f"The source network is {status.state}: {status.reason}", file=sys.stderr)
        return cli.FAILED
    pretrained.save_pretrained(workdir / "source.safetensors", workdir / "source")
    options.config.sweep.weights = str(workdir / "source.safetensors")
    options.workdir = str(workdir / "networks")
    unfinished = [row for row in cli.run_sweep(options) if row["state"] not in runs.COMPLETE]
    if unfinished:
        print(f"{len(unfinished)} runs have not finished, the first is {unfinished[0]['run']}.", file=sys.stderr)
        return cli.FAILED
    rows = results(workdir / "networks")
    runs.write_table(workdir, "transfer", rows)
    cli.print_table("test error (%), mean and range over the seeds", transfer.table(workdir))
    return cli.print_claim(*check_claim(rows), transfer.draw(workdir))


if __name__ == "__main__":
    cli.run_experiment(compare, {"config": SWEEP, "workdir": "runs/transfer"}, __doc__)
