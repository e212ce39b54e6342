"""docs/atlas.md and README say what the kept tables of the atlas hold, and these were made as the protocol says."""

import statistics
from pathlib import Path

import pytest

from configs.sweeps import repairs as sweep
from experiments.repairs import KEPT, beyond, choose
from plain56 import runs
from plain56.figures import growth, optimizers, rates, repairs

ROOT = Path(__file__).parent.parent
PAGE, README = ((ROOT / name).read_text() for name in ("docs/atlas.md", "README.md"))
GRID, RUNS = (runs.read_table(KEPT, name) for name in ("grid", "runs"))
KINDS = {(row["repair"], int(row["depth"])) for row in RUNS}


def test_every_repair_has_three_seeds_that_chose_nothing():
    assert {repair for repair, _ in KINDS} == set(sweep.REPAIRS) and {56} <= {depth for _, depth in KINDS}
    assert {row["seed"] for row in GRID} == {str(sweep.CHOOSING_SEED)}
    chosen = choose(GRID)
    for repair, depth in KINDS:
        own = [row for row in RUNS if (row["repair"], int(row["depth"])) == (repair, depth)]
        assert sorted(row["seed"] for row in own) == ["0", "1", "2"]
        assert {float(row["rate"]) for row in own} == {chosen[repair, depth]}
        tried = {float(row["rate"]) for row in GRID if (row["repair"], int(row["depth"])) == (repair, depth)}
        assert tried >= set(sweep.RATES)


def test_no_best_rate_is_at_an_end_of_the_grid():
    assert [key[:2] for key in beyond(GRID) if key[:2] in KINDS] == []


@pytest.mark.parametrize(("lines"), [repairs.table(KEPT), rates.table(KEPT)], ids=["repairs", "rates"])
def test_tables_are_those_of_the_runs(lines):
    for line in lines:
        assert f"| {' | '.join(line.values())} |" in PAGE


def test_statements_follow_from_the_tables():
    means = {repair: statistics.mean(of_depth[56]) for repair, of_depth in repairs.read(KEPT).items()}
    plain = {repair for repair in means if not repair.startswith(repairs.RESIDUAL)} - {repairs.NOTHING}
    near = [repair for repair in plain if means[repair] < means[repairs.RESIDUAL] + repairs.NEAR]
    count = (
        f"{len(near)} of {len(plain)} repairs bring a plain network of 56 layers within {repairs.NEAR:g} points of a residual one"
    )
    assert count in PAGE and count in README
    assert (
        f"ends at {means[repairs.NOTHING]:.1f} % without any" in PAGE and f"at {means[repairs.RESIDUAL]:.1f} % with skip" in PAGE
    )
    optimizers_alone = [means[repair] for repair in growth.SAME_NETWORK]
    assert f"({min(optimizers_alone):.0f} to {max(optimizers_alone):.0f} % are left)" in PAGE and min(optimizers_alone) > 18
    assert max(means[f"{repairs.RESIDUAL}, {repair}"] for repair in growth.SAME_NETWORK) < 1
    value, low, high, dots = growth.correlation(KEPT)
    assert f"is {value:.2f} (95 % interval {low:.2f} to {high:.2f}), over {dots} repairs and depths" in PAGE
    for repair, depth, times, error in growth.contradicting(KEPT):
        assert f"{repair} at {depth} layers ({times:.2g} times, {error:.1f} %)" in PAGE
    for depth in sorted({depth for _, depth in optimizers.read(KEPT)}):
        share, name = optimizers.closed(KEPT, depth)
        assert f"{depth} layers: the best optimizer, {name}, closes {100 * share:.0f} % of the gap" in PAGE
