"""The atlas of repairs: rates are chosen by validation alone, no run is made twice, and the figures show the tables."""

import numpy as np
import pytest

from configs.sweeps import repairs as sweep
from experiments import growth as growth_experiment
from experiments import optimizers as optimizers_experiment
from experiments import repairs as experiment
from plain56 import cli, runs, sweeps
from plain56.figures import growth, optimizers, repairs


def row(repair, depth, rate, seed, train_error, validation_loss="", state="finished"):
    return dict(zip(experiment.KEY, (repair, depth, rate, seed), strict=True)) | {
        "state": state,
        "steps": 400,
        "train_error": train_error,
        "train_loss": 1.0,
        "test_error": 0.5,
        "seconds": 1.0,
        "validation_loss": validation_loss,
    }


def test_every_row_of_the_protocol_is_there_at_every_rate():
    config = sweep.get_config("full")
    elements = sweeps.expand(config, sweep.sweep)
    assert len(elements) == 3 * len(sweep.REPAIRS) * len(sweep.RATES)
    assert {element.config.seed for element in elements} == {sweep.CHOOSING_SEED}
    assert {element.config.data.validation_examples for element in elements} == {200}
    rates = sorted({element.config.optimizer.learning_rate for element in elements if element.config.optimizer.name == "lars"})
    np.testing.assert_allclose(rates, 30 * 10 ** np.arange(-3, 0, 0.5), rtol=2e-3)
    config.sweep.runs = (("Muon", 56, 0.1, 2),)
    (element,) = sweeps.expand(config, sweep.sweep)
    assert (element.config.model.name, element.config.optimizer.name, element.config.seed) == ("plain56", "muon", 2)
    assert (element.config.optimizer.learning_rate, element.config.data.validation_examples) == (0.01, 0)


def test_rates_are_chosen_by_the_validation_loss():
    rows = [row("Adam", 56, rate, 100, error, loss) for rate, error, loss in ((0.01, 0.1, "0.5"), (0.1, 0.2, "0.4"))]
    rows.append(row("Adam", 56, 0.316, 100, "", "", "diverged"))
    rows.append(row("LARS", 56, 0.001, 100, "", "", "diverged"))
    assert experiment.choose(rows) == {("Adam", 56): 0.1, ("LARS", 56): 0.001}


@pytest.fixture
def folder(tmp_path):
    """Tables of three repairs, of which one diverges, and of SGD and Adam with skip connections."""
    errors = {"nothing": (0.6, 0.8), "Dirac initializer": (0.01, 0.02), "LARS": ("", ""), "skip connections": (0.0, 0.01)}
    rows = [
        row(repair, depth, 0.01, seed, error, state="finished" if error != "" else "diverged")
        for repair, of_depth in errors.items()
        for depth, error in zip((56, 110), of_depth, strict=True)
        for seed in (0, 1)
    ]
    runs.write_table(tmp_path, "runs", rows)
    grid = [row(repair, 56, rate, 100, error) for repair, error in (("nothing", 0.6), ("Adam", 0.3)) for rate in (0.01, 0.1)]
    grid += [row("skip connections", 56, 0.01, 100, 0.1), row("skip connections, Adam", 56, 0.01, 100, 0.2)]
    runs.write_table(tmp_path, "grid", grid)
    growths = {"nothing": 100.0, "Dirac initializer": 2.0, "LARS": 100.0, "skip connections": 3.0}
    flat = [
        {"repair": repair, "depth": depth, "first": g * depth, "last": 1} for repair, g in growths.items() for depth in (56, 110)
    ]
    flat.append({"repair": "skip connections", "depth": 20, "first": 0, "last": 0})  # no gradient at first
    runs.write_table(tmp_path, "growth", flat)
    return tmp_path


def test_table_is_sorted_and_what_diverged_counts_as_guessing(folder):
    lines = repairs.table(folder)
    assert [line["repair"] for line in lines] == ["skip connections", "Dirac initializer", "nothing", "LARS"]
    assert (lines[1]["56 layers"], lines[3]["110 layers"]) == ("1.0 (1.0 to 1.0)", "90.0 (90.0 to 90.0)")
    assert repairs.draw(folder).exists()


def test_share_of_the_gap_that_an_optimizer_closes(folder, capsys):
    share, name = optimizers.closed(folder, 56)
    assert (pytest.approx(share), name) == (0.6, "Adam")  # from 60 to 30 %, where residual networks have 10
    assert cli.run(optimizers_experiment.show, [f"--workdir={folder}"]) == 0
    assert "56 layers: the best optimizer, Adam, closes 60 % of the gap" in capsys.readouterr().out


def test_growth_is_ranked_against_error(folder, capsys):
    value, low, high, count = growth.correlation(folder)
    assert (count, value) == (6, pytest.approx(14 / (17.5 * 17) ** 0.5))  # LARS trains the same network as SGD, and is left out
    assert -1 <= low < value < high <= 1
    assert cli.run(growth_experiment.measure_all, [f"--workdir={folder}"]) == 0
    assert "over 6 repairs and depths: 0.81" in capsys.readouterr().out


@pytest.mark.slow
def test_no_run_is_made_twice(tmp_path):
    flags = [
        "--config=configs/sweeps/repairs.py:full",
        f"--workdir={tmp_path}",
        "--config.sweep.depths=(8,)",
        "--config.sweep.repairs=('Adam',)",
        "--config.sweep.rates=(0.01,0.1)",
        "--config.sweep.seeds=(0,)",
        "--config.train.steps=4",
        "--config.optimizer.schedule.warmup_steps=1",
    ]
    assert cli.run(experiment.compare, flags) == 0
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/status.json")}
    assert len(made) == 3
    assert [(row["repair"], row["seed"]) for row in runs.read_table(tmp_path, "runs")] == [("Adam", "0")]
    flags[flags.index("--config.sweep.seeds=(0,)")] = "--config.sweep.seeds=(0,1)"
    assert cli.run(experiment.compare, flags) == 0
    assert len(runs.read_table(tmp_path, "grid")) == 2 and len(runs.read_table(tmp_path, "runs")) == 2
    assert made == {path: path.stat().st_mtime_ns for path in made}
