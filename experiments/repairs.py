"""The atlas of repairs: what, besides a skip connection, makes a deep plain network trainable?

Every proposed repair on one bench: the same networks, digits, budget and seeds, each with the best learning rate of one grid.
The small form trains 56 layers with one seed, at the rates that were chosen for the kept results:

    python -m plain56.experiments.repairs [--workdir=runs/atlas]

The full form first chooses the rates, for 20, 56 and 110 layers, and then trains with three seeds: 594 runs. The grid is widened
for a repair whose best rate is at its end. A run that is in the tables grid.csv and runs.csv of the directory is not made again.

    python -m plain56.experiments.repairs --config=configs/sweeps/repairs.py:full --workdir=runs/atlas_full --workers=2

The best repairs of plain networks of 56 layers on CIFAR-10, which must have been prepared for TFDS, at the same learning rates:

    TFDS_DATA_DIR=FOLDER python -m plain56.experiments.repairs --config=configs/sweeps/repairs.py:cifar10 --workdir=runs/best
"""

import math
from pathlib import Path

from plain56 import cli, runs
from plain56.configs.sweeps.repairs import CHOOSING_SEED, grid, name_of
from plain56.errors import UserError
from plain56.figures import repairs

KEPT = Path(__file__).parent / "results" / "atlas"
KEY = ("repair", "depth", "rate", "seed")
WIDEST = (1e-4, 3.16)  # as far as a grid is widened


def choose(rows):
    """`{(repair, depth): rate}`: the rate with the least validation loss of the rows of a grid.

    A run that diverged has an infinite loss; where all have, it is the least rate.
    """
    best = {}
    for row in sorted(rows, key=lambda row: float(row["rate"])):
        loss = float(row["validation_loss"] or "inf")
        loss = loss if math.isfinite(loss) else math.inf
        kind = row["repair"], int(row["depth"])
        if kind not in best or loss < best[kind][0]:
            best[kind] = loss, float(row["rate"])
    return {kind: rate for kind, (_, rate) in best.items()}


def beyond(rows):
    """`(repair, depth, rate, seed)` of runs that a grid lacks: the next rate where the best one is the least or the greatest."""
    tried = runs.grouped(rows, lambda row: (row["repair"], int(row["depth"])))
    for kind, best in choose(rows).items():
        rates = [float(row["rate"]) for row in tried[kind]]
        for end, direction in ((min(rates), -1), (max(rates), 1)):
            further = float(f"{10 ** (round(2 * math.log10(end) + direction) / 2):.3g}")
            if best == end and WIDEST[0] <= further <= WIDEST[1]:
                yield (*kind, further, CHOOSING_SEED)


def key_of(row):
    """What tells a row from the others."""
    return row["repair"], int(row["depth"]), float(row["rate"]), int(row["seed"])


def rows_of(workdir, wanted):
    """A row of results for each of the runs in a sweep's directory that have ended; `wanted` are (repair, depth, rate, seed)."""
    summary, rows = {row["run"]: row for row in runs.read_summary(workdir)}, []
    for key in wanted:
        row = summary.get(name_of(*key), {})
        if row.get("state") not in (*runs.COMPLETE, *runs.ENDED):
            continue
        validation = runs.Run(workdir / row["run"]).newest({"validation"}).get("validation", {})
        results = {name: row[name] for name in ("state", "steps", "train_error", "train_loss", "test_error", "seconds")}
        results["validation_loss"] = validation.get("loss")
        rows.append(dict(zip(KEY, key, strict=True)) | {name: "" if value is None else value for name, value in results.items()})
    return rows


def _refuse_other_data(sweep, data):
    """Raises UserError if a sweep's directory is about another data set: its runs have the same names."""
    planned = runs.read_sweep(sweep) if runs.is_sweep(sweep) else []
    other = {run.config["data"]["name"] for run in planned if run.config} - {data}
    if other:
        raise UserError(f"{sweep.parent} has the runs of {other.pop()}, and those of {data} need a --workdir of their own.")


def results(options, name, wanted):
    """The rows of NAME.csv in the directory, as text, after the wanted runs that it lacks were made."""
    folder = Path(options.workdir)
    _refuse_other_data(folder / name, options.config.data.name)
    there = runs.read_table(folder, name) if (folder / f"{name}.csv").exists() else []
    known = {key_of(row) for row in there}
    missing = [key for key in wanted if key not in known]
    if missing:
        options.config.sweep.runs, options.workdir = tuple(missing), str(folder / name)
        try:
            cli.run_sweep(options)
        finally:  # also what an interrupted sweep has made
            options.workdir = str(folder)
            if runs.is_sweep(folder / name) and (rows := there + rows_of(folder / name, missing)):
                runs.write_table(folder, name, rows)
    return runs.read_table(folder, name)


def _grid(options):
    """The rows of the grid, widened until no repair's best rate is at its end, as far as `WIDEST`."""
    wanted = grid(options.config)
    kinds = {key[:2] for key in wanted}
    rows, before = results(options, "grid", wanted), 0
    while len(rows) > before:  # a run that failed has no row
        before = len(rows)
        rows = results(options, "grid", [key for key in beyond(rows) if key[:2] in kinds])
    return rows


def compare(options, arguments):
    """Runs both sweeps, prints the table and draws the figure; the exit status is 1 where runs have not ended."""
    sweep, folder = options.config.sweep, Path(options.workdir)
    chosen = choose(_grid(options) if sweep.choose else runs.read_table(KEPT, "grid"))
    kinds = [(repair, depth) for depth in sweep.depths for repair in sweep.repairs]
    if missing := [f"{repair} at {depth} layers" for repair, depth in kinds if (repair, depth) not in chosen]:
        raise UserError(f"No rate was chosen for {missing[0]}; the full form chooses rates (configs/sweeps/repairs.py:full).")
    wanted = [(*kind, chosen[kind], seed) for kind in kinds for seed in sweep.seeds]
    found = {key_of(row) for row in results(options, "runs", wanted)}
    cli.print_table("training error (%)", repairs.table(folder))
    drawn = repairs.draw(folder)
    cli.print_paths("figure", drawn)
    cli.print_result({"figure": str(drawn)})
    return 0 if found >= set(wanted) else cli.FAILED


if __name__ == "__main__":
    cli.run_experiment(compare, {"config": "configs/sweeps/repairs.py", "workdir": "runs/atlas"}, __doc__)
