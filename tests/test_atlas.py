"""The atlas of repairs: rates are chosen by validation alone, no run is made twice, and the figures show the tables."""

import numpy as np
import pytest

from configs.sweeps import fixup_figure3 as first_epoch
from configs.sweeps import repairs as sweep
from configs.sweeps import shortcuts
from experiments import fixup_figure3 as first_epoch_experiment
from experiments import growth as growth_experiment
from experiments import optimizers as optimizers_experiment
from experiments import rates as rates_experiment
from experiments import repairs as experiment
from plain56 import cli, runs, sweeps
from plain56.figures import fixup_figure3, growth, optimizers, rates, repairs


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


def test_the_best_repairs_are_compared_on_cifar10_at_the_rates_of_digits():
    config = sweep.get_config("cifar10")
    config.sweep.runs = (("Muon", 56, 0.1, 0), ("LARS", 56, 0.0316, 0))
    for element in sweeps.expand(config, sweep.sweep):
        assert (element.config.data.name, element.config.train.steps, element.config.model.name) == ("cifar10", 2000, "plain56")
        assert (element.config.optimizer.schedule.name, element.config.optimizer.schedule.warmup_steps) == ("cosine", 200)
    assert element.config.optimizer.learning_rate == 0.948 and len(sweep.BEST) == 8
    means = {repair: sum(of_depth[56]) for repair, of_depth in repairs.read(experiment.KEPT).items()}
    plain = sorted((mean, repair) for repair, mean in means.items() if not repair.startswith(repairs.RESIDUAL))
    assert {*(repair for _, repair in plain[:6]), repairs.NOTHING, repairs.RESIDUAL} == set(sweep.BEST)


def test_runs_of_another_data_set_are_refused(tmp_path, capsys):
    config = sweep.get_config("small")
    config.sweep.runs = (("Adam", 56, 0.1, 0),)
    sweeps.write(sweeps.expand(config, sweep.sweep), tmp_path / "runs")
    flags = ["--config=configs/sweeps/repairs.py:cifar10", f"--workdir={tmp_path}"]
    assert cli.run(experiment.compare, flags) == 2
    assert "has the runs of digits, and those of cifar10 need a --workdir of their own" in capsys.readouterr().err


def test_rates_are_chosen_by_the_validation_loss():
    rows = [row("Adam", 56, rate, 100, error, loss) for rate, error, loss in ((0.01, 0.1, "0.5"), (0.1, 0.2, "0.4"))]
    rows.append(row("Adam", 56, 0.316, 100, "", "", "diverged"))
    rows.append(row("LARS", 56, 0.001, 100, "", "", "diverged"))
    assert experiment.choose(rows) == {("Adam", 56): 0.1, ("LARS", 56): 0.001}


def test_a_grid_is_widened_where_its_best_rate_is_at_an_end():
    losses = {"Adam": (0.3, 0.2, 0.1), "LARS": (0.1, 0.2, 0.3), "Muon": (0.2, 0.1, 0.3)}
    rows = [
        row(repair, 56, rate, 100, 0.1, loss)
        for repair in losses
        for rate, loss in zip((0.01, 0.0316, 0.1), losses[repair], strict=True)
    ]
    assert list(experiment.beyond(rows)) == [("Adam", 56, 0.316, 100), ("LARS", 56, 0.00316, 100)]
    assert list(experiment.beyond([row("Adam", 56, rate, 100, 0.1, 1 / rate) for rate in (1.0, 3.16)])) == []


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


def test_what_contradicts_the_number_is_named(folder):
    # By growth these two have ranks 1 and 4 of 6, by error both 2.5.
    found = [dot[:2] for dot in growth.contradicting(folder, count=2)]
    assert found == [("Dirac initializer", 56), ("skip connections", 110)]
    assert "wrong about Dirac initializer at 56 layers (1.1e+02 times, 1.0 %)" in growth.contradicting_sentence(folder)


def test_best_rates_fall_with_a_power_of_the_depth(tmp_path, capsys):
    def loss(rate, depth, least):
        return np.exp(np.log(rate / (least * (depth / 20) ** -1.5)) ** 2 / 10)

    rows = [
        row("skip connections", depth, rate, 100, 0.1, loss(rate, depth, 0.1)) for depth in (20, 56, 110) for rate in sweep.RATES
    ]
    rows += [row("nothing", 20, rate, 100, 0.1, rate) for rate in sweep.RATES]  # the best one may be below the grid
    rows += [row("Adam", 20, rate, 100, 0.1, 1.0) for rate in sweep.RATES]
    runs.write_table(tmp_path, "grid", rows)
    found = rates.read(tmp_path)
    assert found["nothing"] == {20: None} and list(found) == ["skip connections", "nothing"]
    assert found["skip connections"] == pytest.approx({depth: 0.1 * (depth / 20) ** -1.5 for depth in (20, 56, 110)}, rel=1e-6)
    assert cli.run(rates_experiment.show, [f"--workdir={tmp_path}"]) == 0
    assert "-1.50" in capsys.readouterr().out and (tmp_path / "rates.png").exists()


def test_first_epoch_has_all_images_once_at_the_rate_of_batch_norm():
    config = first_epoch.get_config()
    elements = sweeps.expand(config, first_epoch.sweep)
    assert len(elements) == 15 and len(first_epoch.runs_of(config)) == 15
    assert {element.config.train.steps for element in elements} == {391}  # of 128 images, the last one of 80
    assert {element.config.optimizer.learning_rate for element in elements} == {0.1}
    assert [element.config.model.fixup for element in elements[:2]] == [None, True]


def test_accuracy_after_one_epoch_counts_a_run_that_diverged_as_guessing(tmp_path):
    rows = [
        {"method": method, "depth": depth, "seed": 0, "state": state, "steps": 391, "test_error": error}
        for method, depth, state, error in (
            ("Fixup", 20, "finished", 0.6),
            ("Fixup", 56, "finished", 0.7),
            ("batch norm", 20, "finished", 0.5),
            ("batch norm", 56, "diverged", None),
        )
    ]
    runs.write_table(tmp_path, "first_epoch", rows)
    assert fixup_figure3.table(tmp_path) == [
        {"method": "Fixup", "20 layers": "40.0", "56 layers": "30.0"},
        {"method": "batch norm", "20 layers": "50.0", "56 layers": "10.0"},
    ]
    assert fixup_figure3.draw(tmp_path).exists()


def test_shortcuts_are_those_of_the_paper():
    elements = sweeps.expand(shortcuts.get_config(), shortcuts.sweep)
    first = {element.name: element.config.model for element in elements if element.config.seed == 0}
    assert {name: (model.name, model.shortcut, model.shortcut_scale, model.branch_scale) for name, model in first.items()} == {
        "resnet110-identity-seed0": ("resnet110", None, None, None),
        "resnet110-shortcut_halved-seed0": ("resnet110", None, 0.5, None),
        "resnet110-both_halved-seed0": ("resnet110", None, 0.5, 0.5),
        "resnet110-convolution-seed0": ("resnet110", "C", None, None),
        "plain110-none-seed0": ("plain110", None, None, None),
    }


@pytest.mark.slow
def test_first_epoch_is_run_and_drawn(tmp_path, capsys):
    flags = [
        f"--workdir={tmp_path}",
        "--config.data.name=digits",
        "--config.data.mean=(0.3,)",
        "--config.data.std=(0.4,)",
        "--config.sweep.depths=(8,)",
        "--config.sweep.methods=('batch norm','Fixup')",
        "--config.train.steps=2",
    ]
    assert cli.run(first_epoch_experiment.compare, [f"--config={first_epoch.__file__}", *flags]) == 0
    assert [(row["method"], row["state"]) for row in runs.read_table(tmp_path, "first_epoch")] == [
        ("batch norm", "finished"),
        ("Fixup", "finished"),
    ]
    assert "Fixup" in capsys.readouterr().out and (tmp_path / "fixup_figure3.png").exists()


@pytest.mark.slow
def test_no_run_is_made_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "WIDEST", (0.01, 0.1))
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
