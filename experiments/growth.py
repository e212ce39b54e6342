"""Does one number at initialization say which repair trains? The gradient's growth against final training error.

    python -m plain56.experiments.growth [--workdir=experiments/results/atlas]

For every repair and depth of runs.csv in a directory of `experiments.repairs`, measures the gradient's norm at the stem of the
initial network divided by that at the last block, and the rank correlation of this ratio with the final training error.
Trains nothing. What is in growth.csv there is not measured again.
"""

from pathlib import Path

from plain56 import cli, runs
from plain56.configs.sweeps import repairs as sweep
from plain56.experiments.gradient_flow import initial_flow
from plain56.experiments.repairs import KEPT
from plain56.figures import growth

SEED = 0


def measure_all(options, arguments):
    """Measures what growth.csv lacks, then draws the figure and prints the table and the correlation."""
    from plain56 import machine, sweeps

    cli.refuse_config(options, "a directory of results")
    machine.set_up()
    folder, config = Path(options.workdir), sweep.get_config("full")
    there = runs.read_table(folder, "growth") if (folder / "growth.csv").exists() else []
    known = {(row["repair"], int(row["depth"])) for row in there}
    kinds = dict.fromkeys((row["repair"], int(row["depth"])) for row in runs.read_table(folder, "runs"))
    missing = [kind for kind in kinds if kind not in known]
    config.sweep.runs = tuple((*kind, 0.01, SEED) for kind in missing)
    elements = sweeps.expand(config, sweep.sweep) if missing else []
    with cli.progress() as show:
        for number, ((repair, depth), element) in enumerate(zip(missing, elements, strict=True)):
            show(f"{repair}, {depth} layers", number / len(missing))
            norms = list(initial_flow(element.config).outputs.values())
            there.append({"repair": repair, "depth": depth, "first": f"{norms[0]:.5g}", "last": f"{norms[-1]:.5g}"})
    runs.write_table(folder, "growth", there)
    sentence = f"{growth.correlation_sentence(folder)} {growth.contradicting_sentence(folder)}"
    print(sentence)
    drawn = growth.draw(folder)
    cli.print_paths("figure", drawn)
    cli.print_result({"correlation": sentence, "figure": str(drawn)})


if __name__ == "__main__":
    cli.run_experiment(measure_all, {"workdir": KEPT}, __doc__)
