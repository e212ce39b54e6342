"""README and the pages of docs/ say what was measured, and show commands that exist."""

import json
import re
import shlex
import statistics
from pathlib import Path

import numpy as np
import pytest

from experiments import resnet_table6
from experiments.benchmarks import throughput
from plain56.analysis.complexity import parts
from plain56.cli import MODES
from plain56.cli.flags import parse
from plain56.figures import costs, degradation, gradient_flow, gradient_slopes, transfer
from plain56.models import create_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS, SPEED, USE = ((ROOT / f"docs/{page}.md").read_text() for page in ("results", "speed", "use"))


def test_results_are_those_of_the_committed_summary():
    folder = ROOT / "experiments/results/digits_degradation"
    kept = (folder / "README.md").read_text()
    lines = resnet_table6.lines([row for row, _ in degradation.read(folder)])
    assert [line["network"] for line in lines] == ["plain20", "resnet20", "plain56", "resnet56"]
    for line in lines:
        assert line["runs"] == "3"
        assert f"| {line['network']} | {line['training error']} % | {line['test error']} % |" in RESULTS
        cells = [line[key] for key in ("network", "runs", "steps", "training error", "test error")]
        assert f"| {' | '.join(cells)} |" in kept
    errors = {line["network"]: line["training error"] for line in lines}
    assert f"plain-56 ends at {errors['plain56']} % training error and resnet-56 at {errors['resnet56']} %" in README


def test_costs_are_those_of_the_committed_table():
    folder = ROOT / "experiments/results/landmarks"
    lines = costs.table(folder)
    assert [line["network"] for line in lines] == ["vgg16_bn", "googlenet_bn", "resnet20", "resnet56"]
    for line in lines:
        for page in (RESULTS, (folder / "README.md").read_text()):
            assert f"| {' | '.join(line.values())} |" in page


def test_transfer_is_that_of_the_committed_summary():
    folder = ROOT / "experiments/results/transfer"
    shown = (folder / "README.md").read_text()
    for line in transfer.table(folder):
        assert f"| {' | '.join(line.values())} |" in shown
    errors = {approach: statistics.mean(values) for (approach, count), values in transfer.read(folder).items() if count == 10}
    wording = "{finetune:.1f} % test error\n  after fine-tuning and {probe:.1f} % by a probe, and a new one {scratch:.1f} %"
    assert wording.format(**errors) in USE


CIFAR10 = ROOT / "experiments/results/cifar10_degradation"


@pytest.mark.parametrize("budget", ["full_recipe", "two_cores"])
def test_cifar10_errors_are_those_of_the_committed_summary(budget):
    networks = degradation.read(CIFAR10 / budget)
    table = {line["network"]: line for line in resnet_table6.lines([row for row, _ in networks])}
    shown = (CIFAR10 / "README.md").read_text()
    for line in table.values():
        assert f"| {' | '.join(line.values())} |" in shown
    if budget == "full_recipe":
        for name in ("plain20", "plain56", "resnet20", "resnet56"):
            errors = f"| {name} | {table[name]['training error']} % | {table[name]['test error']} % |"
            assert errors in README and errors in RESULTS
    else:
        plain20, plain56, plain110, resnet20, resnet56, resnet110 = (
            f"{float(table[f'{family}{depth}']['training error'].split()[0]):.0f}"
            for family in ("plain", "resnet")
            for depth in (20, 56, 110)
        )
        assert f"end at {plain20}, {plain56} and {plain110} % training error" in RESULTS
        assert f"of 56 and 110 ({resnet56} and {resnet110} %)\nto catch up with that of 20 ({resnet20} %)" in RESULTS
    # The summary is that of the curves.
    for row, errors in networks:
        assert list(errors["test"].values())[-1] == pytest.approx(100 * row["test_error"])


THROUGHPUT = ROOT / "experiments/results/throughput"


def step_seconds():
    """Of a training step on two cores, by network."""
    rows = json.loads((THROUGHPUT / "throughput.json").read_text())["rows"]
    return {row["network"]: row["milliseconds"]["plain56"]["median"] / 1000 for row in rows if row["work"] == "step"}


def test_what_more_steps_would_cost_follows_from_the_curves():
    """From which step on the residual network of 56 layers has the lower training error, and how long that is on two cores."""
    errors = {row["model"]: errors["train"] for row, errors in degradation.read(CIFAR10 / "full_recipe")}
    behind = [step for step, error in errors["resnet56"].items() if error >= errors["resnet20"][step]]
    passes = min(step for step in errors["resnet56"] if step > max(behind))
    step = step_seconds()
    minutes = {name: passes * step[name] / 60 for name in ("resnet20", "resnet56")}
    shown = (CIFAR10 / "README.md").read_text()
    assert f"passes resnet20 after\n  {passes:,} steps" in shown
    assert f"{minutes['resnet56']:.0f} minutes for resnet56 and {minutes['resnet20']:.0f} for resnet20" in shown


def test_expected_hours_follow_from_what_was_measured():
    step = step_seconds()
    # Of 64,000 steps, four at a time; those of 56 layers were cut.
    recipe = degradation.read(CIFAR10 / "full_recipe")
    four = {row["model"]: row["seconds"] / row["steps"] for row, _ in recipe}
    alone = float(re.search(r"resnet56, 128, 32 \(ms\) \| ([\d.]+)", (THROUGHPUT / "README.md").read_text())[1]) / 1000
    sizes = {
        depth: sum(row.multiply_adds for row in parts(create_model(f"resnet{depth}_cifar", 10), (32, 32, 3)))
        for depth in (56, 110, 152)
    }
    deeper = {depth: size / sizes[56] for depth, size in sizes.items() if depth > 56}
    cores = 2 * step["resnet20"] + step["plain56"] + step["resnet56"]  # plain20 has not been measured
    hours = {"20, 56": (cores, four["resnet56"], alone)}
    all_cores = cores + sum(deeper.values()) * (step["plain56"] + step["resnet56"])
    hours["20, 56, 110, 152"] = (all_cores, four["resnet56"] * (1 + deeper[152]), alone * deeper[152])
    for layers, seconds in hours.items():
        cells = [f"{64_000 / 3600 * value:.{digits}f}" for value, digits in zip(seconds, (1, 2, 2), strict=True)]
        assert f"| {layers} | {' | '.join(cells)} |" in RESULTS


def test_gradient_flow_is_that_of_the_committed_table():
    folder = ROOT / "experiments/results/gradient_flow"
    networks = gradient_flow.read(folder)
    shown = (folder / "README.md").read_text()
    for line in gradient_flow.table(folder) + gradient_slopes.table(folder):
        assert f"| {' | '.join(line.values())} |" in shown
    growth = {
        name: statistics.mean(network.growth for network in members)
        for (name, normalization), members in gradient_flow.by_kind(networks).items()
        if normalization == "batch"
    }
    plain = [100 * (rate - 1) for name, rate in growth.items() if name.startswith("plain")]
    assert f"by {min(plain):.0f} to {max(plain):.0f} % with every block" in RESULTS
    ends = ("resnet20", "resnet152_cifar")
    rates = [f"{100 * (growth[name] - 1):.{digits}f} %" for name, digits in zip(ends, (0, 1), strict=True)]
    assert f"In residual ones it grows by {rates[0]} (20 layers) to {rates[1]} (152)" in RESULTS
    shares = [100 * np.mean([n.shares.mean() for n in networks if (n.name, n.normalization) == (name, "batch")]) for name in ends]
    assert f"({shares[0]:.0f} to {shares[1]:.0f} %)" in RESULTS


def test_speed_table_is_that_of_the_committed_result():
    result = json.loads((THROUGHPUT / "throughput.json").read_text())
    table = throughput.markdown(result)
    assert f"\n\n{table}\n\n" in SPEED
    xeon = json.loads((THROUGHPUT / "xeon_amx/throughput.json").read_text())
    assert f"\n\n{throughput.markdown(xeon)}\n\n" in (THROUGHPUT / "README.md").read_text()
    shown = [line for line in README.splitlines() if "training step |" in line]
    assert len(shown) == 4 and set(shown) <= set(table.splitlines())


def depth_line(row):
    """A measurement of `experiments/benchmarks/depth_cost.py` as docs/speed.md shows it."""
    remat, memory = "yes" if row["remat"] else "no", f"{row['step_bytes'] / 1e6:,.0f}"
    return f"| {row['network']} | {remat} | {row['trace_seconds']} | {row['compile_seconds']} | {memory} |"


def stream_numbers(result):
    """What `experiments/benchmarks/stream_throughput.py` measured, as docs/speed.md shows it."""
    rates = {program: f"{values['median']:,.0f}" for program, values in result["images_per_second"].items()}
    yield f"{rates['plain56']} images/s by plain56, {rates['Pillow']} by a loop"
    yield f"{rates['tf.data']} by tf.data"
    yield f"in {100 * result['resnet18_waits']['share']:.1f} % of its steps"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("depth_cost/depth_cost.json", lambda result: map(depth_line, result)),
        ("stream_throughput/stream_throughput.json", stream_numbers),
    ],
)
def test_measurements_are_those_of_the_committed_results(path, line):
    for shown in line(json.loads((ROOT / "experiments/results" / path).read_text())):
        assert shown in SPEED


def test_network_table_is_true():
    table = re.findall(r"^\| (\d+) \| ([\d,]+) \| [^|]* \| ([\d,.]+) M \|", USE, re.MULTILINE)
    assert [depth for depth, _, _ in table] == ["20", "32", "44", "56", "110", "152", "1202"]
    for depth, parameters, multiply_adds in table:
        rows = parts(create_model(f"resnet{depth}_cifar", 10), (32, 32, 3))
        assert f"{sum(row.parameters for row in rows):,}" == parameters
        assert sum(row.multiply_adds for row in rows) / 1e6 == pytest.approx(float(multiply_adds.replace(",", "")), abs=0.5)


def test_shown_commands_are_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = [shlex.split(line) for line in re.findall(r"^python launch.py (.*)$", README + USE, re.MULTILINE)]
    assert {command[0] for command in commands} == set(MODES)
    for mode, *rest in commands:
        parse(rest, mode)


@pytest.mark.parametrize("page", [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/**/*.md")], ids=str)
def test_shown_files_exist(page):
    for path in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
        assert (page.parent / path).exists(), path


def test_readme_is_short_and_docs_list_all_their_pages():
    assert len(README.split()) <= 1200
    contents = (ROOT / "docs/README.md").read_text()
    assert set(re.findall(r"\]\((.*?)\)", contents)) == {path.name for path in (ROOT / "docs").iterdir()} - {"README.md"}
