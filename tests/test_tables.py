"""Tables are readable in 80 columns: no line is longer, no number is broken or cut, and what all rows share is said once."""

import json
import os
import re
from pathlib import Path

import pytest
from rich.cells import cell_len

import launch
from experiments import googlenet_table1, resnet_table6, vgg_table3
from plain56 import cli, runs
from plain56.figures import costs, degradation, gradient_flow, gradient_slopes, transfer
from tests.test_degradation import made_up_sweep

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments/results"


def printed(capsys, monkeypatch, title, rows, width=80):
    monkeypatch.setenv("COLUMNS", str(width))
    cli.print_table(title, rows)
    return capsys.readouterr().out


def check(text, width=80):
    """No line is too long, nothing is cut, and below the headings every row of a table has its name on its only line."""
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    rows = [line.strip("│ ").split("│") for line in text.splitlines() if line.startswith("│")]
    assert rows and all(row[0].strip() for row in rows)
    return [[cell.strip() for cell in row] for row in rows]


def test_what_all_rows_share_is_said_once(capsys, monkeypatch):
    rows = [{"run": f"r{i}", "seed": 0, "reason": "", "loss": None, "train_error": f"{i}.00 %", "steps": 64_000} for i in (5, 10)]
    shown = printed(capsys, monkeypatch, "runs", rows)
    assert shown.splitlines()[:2] == ["runs", "seed 0, steps 64,000"]
    assert check(shown) == [["r5", "5.00 %"], ["r10", "10.00 %"]]
    assert "│ r5  │      5.00 % │" in shown  # numbers end in one column
    assert check(printed(capsys, monkeypatch, "one", rows[:1])) == [["r5", "0", "", "–", "5.00 %", "64,000"]]


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (0.123456, "0.1235"),
        (1234.5678, "1,235"),
        (9999, "9999"),
        (123456, "123,456"),
        (1e-5, "1e-05"),
        ((1 / 3, 2), "(0.3333, 2)"),
    ],
)
def test_numbers_are_rounded(capsys, monkeypatch, value, cell):
    assert check(printed(capsys, monkeypatch, "", [{"a": "b", "value": value}])) == [["b", cell]]


def test_long_texts_go_below_and_are_whole(capsys, monkeypatch):
    reason = "the update at step 7 gave a loss, parameters or statistics that are not finite"
    rows = [{"run": f"resnet{i}", "state": s, "reason": r} for i, s, r in ((20, "finished", ""), (56, "diverged", reason))]
    shown = printed(capsys, monkeypatch, "sweep", rows)
    assert check(shown) == [["resnet20", "finished"], ["resnet56", "diverged"]]
    assert f"reason: resnet56: {reason}" in " ".join(shown.split())


@pytest.mark.parametrize("width", [40, 80, 120])
def test_many_columns_and_long_names_lose_nothing(capsys, monkeypatch, width):
    name = "resnet152_cifar-seed{}-warmup_steps400-warmup_learning_rate1e-05-weight_decay0.0001"
    keys = [f"optimizer.key_of_{chr(97 + i)}" for i in range(20)]
    rows = [{"run": name.format(seed)} | {key: 1.2345 * (i + seed + 1) for i, key in enumerate(keys)} for seed in (0, 1)]
    shown = printed(capsys, monkeypatch, "sweep", rows, width)
    assert max(map(cell_len, shown.splitlines())) <= width and "…" not in shown
    for row in rows:
        for value in list(row.values())[1:]:
            assert re.search(rf"(?<![\d.]){value:.4g}(?![\d.])", shown)
    pieces = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
    assert name.format(0) + name.format(1) in "".join(pieces)
    assert "learning_rate1e-05-" in pieces and pieces[-1].endswith("decay0.0001")  # a number is not broken


def test_names_in_brackets_and_wide_letters(capsys, monkeypatch):
    rows = [{"class": "[red]猫[/red] :cat:", "probability": "99.00 %"}, {"class": "犬" * 30, "probability": "1.00 %"}]
    assert check(printed(capsys, monkeypatch, "[bold]picture", rows))[0][0] == "[red]猫[/red] :cat:"


def test_tables_of_the_command_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(ROOT)
    for arguments in (["describe", "resnet152"], ["describe", "googlenet"], ["describe", "vgg16"]):
        assert launch.main(arguments) == 0
        check(without_json(capsys))
    for name in ("degradation:cifar10", "landmarks:cifar10", "vgg:imagenet", "transfer"):
        config = f"--config=configs/sweeps/{name.replace(':', '.py:') if ':' in name else name + '.py'}"
        depths = ["--config.sweep.depths=(20,110,152)"] if name.startswith("degradation") else []
        assert launch.main(["sweep", config, *depths, "--dry_run", f"--workdir={tmp_path / 'none'}"]) == 0
        check(without_json(capsys))


def without_json(capsys):
    """What was printed, without its last line, which must be a JSON object."""
    *lines, last = capsys.readouterr().out.splitlines()
    assert isinstance(json.loads(last), dict)
    return "\n".join(lines)


@pytest.mark.slow
def test_all_networks_are_described_in_lines_of_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert launch.main(["describe", "--all"]) == 0
    rows = check(without_json(capsys))
    assert len(rows) == 33 and all(len(row) == 6 for row in rows)


def test_tables_of_a_sweep(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    errors = {(family, depth): [0.1, 1 / 3] for family in ("plain", "resnet") for depth in (20, 110, 1202)}
    made_up_sweep(tmp_path, errors)
    cut = runs.Run(tmp_path / "resnet1202-seed1")
    cut.write_status(runs.Status("failed", 63_999, "OSError: " + "no space left on device " * 8, 19_421_274, 123_456.789))
    for arguments in (["report"], ["sweep", "--status"]):
        assert launch.main([*arguments, f"--workdir={tmp_path}"]) == 0
        assert len(check(re.sub(r"(?m)^(figure|report): .*", "", without_json(capsys)))) % 12 == 0
    assert cli.run(resnet_table6.tabulate, [f"--workdir={tmp_path}"]) == 0
    check(re.sub(r"(?m)^figure: .*", "", without_json(capsys)))


def errors_by_depth(folder):
    return resnet_table6.lines([row for row, _ in degradation.read(folder)])


@pytest.mark.parametrize(
    ("title", "table", "folder"),
    [
        ("cost", costs.table, "landmarks"),
        ("gradient at initialization", gradient_flow.table, "gradient_flow"),
        ("growth of the gradient with each block", gradient_slopes.table, "gradient_flow"),
        ("test error (%), mean and range over the seeds", transfer.table, "transfer"),
        ("error (%)", errors_by_depth, "cifar10_degradation/two_cores"),
    ],
)
def test_tables_of_kept_results(capsys, monkeypatch, title, table, folder):
    rows = table(RESULTS / folder)
    shown = printed(capsys, monkeypatch, title, rows)
    check(shown)
    for row in rows:
        for cell in row.values():
            assert cell in shown


def test_tables_of_the_papers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(googlenet_table1.compare, []) == 0
    assert len(check(without_json(capsys))) == 12
    lines = [
        {"run": name, "test scale": side, "top-1": "10.0", "top-5": "1.0", "paper's top-1, ImageNet": top1, "paper's top-5": top5}
        for name, (side, top1, top5) in vgg_table3.PAPER.items()
    ]
    assert len(check(printed(capsys, monkeypatch, "test error (%)", lines))) == 12


def test_a_pipe_has_80_columns(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda *descriptor: os.terminal_size((0, 0)))
    cli.print_table("", [{f"column {i}": i for i in range(30)}])
    assert 70 < max(map(cell_len, capsys.readouterr().out.splitlines())) <= 80
