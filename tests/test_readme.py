"""README says what was measured, and shows commands that exist."""

import csv
import re
import shlex
import statistics
from pathlib import Path

import pytest

import launch
from plain56.analysis.complexity import stages
from plain56.models import create_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_results_are_those_of_the_committed_summary():
    with (ROOT / "experiments/results/digits_degradation/summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    for model in ("plain20", "plain56", "resnet20", "resnet56"):
        cells = []
        for key in ("train_error", "test_error"):
            errors = [100 * float(row[key]) for row in rows if row["model"] == model]
            assert len(errors) == 3
            cells.append(f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f} %")
        assert f"| {model} | {cells[0]} | {cells[1]} |" in README


def test_network_table_is_true():
    table = re.findall(r"^\| (\d+) \| ([\d,]+) \| [^|]* \| ([\d,.]+) M \|", README, re.MULTILINE)
    assert [depth for depth, _, _ in table] == ["20", "32", "44", "56", "110", "152", "1202"]
    for depth, parameters, multiply_adds in table:
        rows = stages(create_model(f"resnet{depth}_cifar", 10), (32, 32, 3))
        assert f"{sum(row.parameters for row in rows):,}" == parameters
        assert sum(row.multiply_adds for row in rows) / 1e6 == pytest.approx(float(multiply_adds.replace(",", "")), abs=0.5)


def test_shown_commands_are_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = [shlex.split(line) for line in re.findall(r"^python launch.py (.*)$", README, re.MULTILINE)]
    assert {command[0] for command in commands} == set(launch.MODES)
    for _, *flags in commands:
        launch._parse(flags)


def test_shown_files_exist():
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path).exists(), path
