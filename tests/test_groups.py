"""A sweep over ideas: columns of config keys, groups of overrides that nothing mixes, and a thousand runs."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from configs import digits
from experiments import costs, resnet_table6
from plain56 import claim, runs, summary
from plain56.figures import degradation as figure
from plain56.figures import responses
from tests.devices import one_device

ROOT = Path(__file__).parent.parent
BASE = json.loads(json.dumps(digits.get_config("plain20").to_dict()))


def log_of(errors, step=400):
    """The lines of a log with a training and a test record, of equal errors, at each of some steps, the last one at `step`."""
    lines = []
    for number, error in enumerate(errors, start=1):
        common = {"step": step * number // len(errors), "epoch": 1.0, "loss": 2.0, "top1_error": error, "seconds": float(number)}
        lines += [json.dumps({"split": split, **common}) + "\n" for split in ("train", "test")]
    return "".join(lines)


def make_sweep(folder, members):
    """The directory that a finished sweep leaves, quickly: `[(flat overrides, errors)]`."""
    elements = {}
    for number, (overrides, errors) in enumerate(members):
        overrides = {"seed": 0, **overrides}
        name = f"{overrides['model.name']}-{number}"
        config = json.loads(json.dumps(BASE))
        for key, value in overrides.items():
            *sections, last = key.split(".")
            section = config
            for part in sections:
                section = section.setdefault(part, {})
            section[last] = value
        elements[name] = {"overrides": overrides, "config": config}
        run = folder / name
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps(config))
        (run / "metrics.jsonl").write_text(log_of(errors))
        (run / "status.json").write_text(json.dumps(runs.Status("finished", 400, "", 1000, 5.0)._asdict()))
    (folder / "sweep.json").write_text(json.dumps(elements))


def depths(groups, seeds=(0,)):
    """Members of a sweep over depths: `[(overrides, errors of plain20, plain56, resnet20 and resnet56)]`."""
    names = ("plain20", "plain56", "resnet20", "resnet56")
    return [
        ({"model.name": name, "seed": seed, **group}, [0.9, error + seed / 100])
        for group, errors in groups
        for name, error in zip(names, errors, strict=True)
        for seed in seeds
    ]


FAST, SLOW = {"optimizer.momentum": 0.9}, {"optimizer.momentum": 0.5}


def test_columns_are_the_keys_in_which_runs_differ(tmp_path):
    widths = {"model.name": "resnet20", "model.widths": [4, 4, 8], "train.log_every": 5, "data.dir": "x"}
    options = {"model.name": "resnet20", "seed": 7, "optimizer.options.nesterov": True}
    make_sweep(tmp_path, [({"model.name": "plain20"}, [0.5]), (widths, [0.5]), (options, [0.5])])
    rows = summary.summarize(tmp_path)
    keys = ["model.widths", "optimizer.options.nesterov"]  # neither the name, the seed, nor what makes no identity
    assert [key for key in rows[0] if "." in key] == keys
    assert [[row[key] for key in keys] for row in rows] == [[None, None], ["(4, 4, 8)", None], [None, True]]
    assert rows == runs.read_summary(tmp_path)
    with (tmp_path / "summary.csv").open() as file:
        assert [[row[key] for key in keys] for row in csv.DictReader(file)] == [["", ""], ["(4, 4, 8)", ""], ["", "True"]]
    # One run, or runs that differ in no such key, have no such column.
    make_sweep(tmp_path / "seeds", [({"model.name": "plain20", "seed": seed}, [0.5]) for seed in (0, 1)])
    assert not any("." in key for key in summary.summarize(tmp_path / "seeds")[0])


def test_a_key_without_an_override_has_the_configs_value(tmp_path):
    slow = {"model.name": "plain20", "optimizer.momentum": 0.5}
    make_sweep(tmp_path, [({"model.name": "plain20"}, [0.5]), (slow, [0.5])])
    assert [row["optimizer.momentum"] for row in summary.summarize(tmp_path)] == [BASE["optimizer"]["momentum"], 0.5]


def test_short_names_stand_for_one_column():
    row = {
        "run": "a",
        "steps": 1,
        "optimizer.momentum": 0.5,
        "batch_norm.momentum": 0.9,
        "train.steps": 5,
        "model.widths": "(4,)",
    }
    names = runs.short_names(row)
    assert [key for key in names if names[key] == key] == ["optimizer.momentum", "batch_norm.momentum", "train.steps"]
    assert names["model.widths"] == "widths"
    assert runs.label(row, ["model.widths", "train.steps"]) == "widths (4,), train.steps 5"
    assert runs.label(row | {"model.widths": None}, ["model.widths"]) == "default widths"


def test_tables_show_the_differing_keys(tmp_path, capsys):
    make_sweep(tmp_path, depths([(FAST, [0.01, 0.6, 0.01, 0.02]), (SLOW, [0.02, 0.7, 0.02, 0.03])]))
    assert launch.main(["sweep", "--status", f"--workdir={tmp_path}"]) == 0
    table, _, result = capsys.readouterr().out.strip().rpartition("\n")
    assert "momentum" in table and "optimizer.momentum" not in table
    assert [row["optimizer.momentum"] for row in json.loads(result)["runs"]] == [0.9] * 4 + [0.5] * 4
    assert launch.main(["report", f"--workdir={tmp_path}"]) == 0
    assert "momentum" in capsys.readouterr().out


def test_status_needs_no_jax(tmp_path):
    make_sweep(tmp_path, depths([(FAST, [0.01, 0.6, 0.01, 0.02])]))
    code = "import sys, launch; status = launch.main(sys.argv[1:]); sys.exit(status or 'jax' in sys.modules)"
    command = [sys.executable, "-c", code, "sweep", "--status", f"--workdir={tmp_path}"]
    assert subprocess.run(command, cwd=ROOT, env=one_device(), stdout=subprocess.DEVNULL).returncode == 0


def test_groups_never_mix(tmp_path):
    """Seeds of one group are averaged; the claim, the table, the choice of runs and the figure keep the groups apart."""
    make_sweep(tmp_path, depths([(FAST, [0.01, 0.6, 0.01, 0.02]), (SLOW, [0.02, 0.1, 0.02, 0.03])], seeds=(0, 1)))
    rows = summary.summarize(tmp_path)
    held, sentence = claim.judge(rows)
    first, second = sentence.splitlines()
    assert not held
    assert first.startswith("With momentum 0.9: The claim held") and "+59.0 points in plain" in first
    assert second.startswith("With momentum 0.5: The claim did not hold") and "+8.0 points in plain" in second
    assert claim.judge(rows[:8]) == claim.judge_group(rows[:8])

    found = summary.finished_runs(tmp_path)
    assert len(found) == 8 and all(row["seed"] == 0 for _, row in found)
    chosen = [(row["model"], row["optimizer.momentum"]) for _, row in summary.shallowest_and_deepest(tmp_path)]
    assert sorted(chosen) == sorted((row["model"], row["optimizer.momentum"]) for _, row in found)

    lines = resnet_table6.lines(rows)
    assert [(line["network"], line["runs"]) for line in lines[:2]] == [(f"plain20, momentum {m}", "2") for m in (0.9, 0.5)]
    assert lines[0]["training error"].startswith("1.50 ± ")
    for run, _ in found:
        (run.path / "environment.json").write_text(json.dumps({"data": {"class_names": ["0", "1"], "image_shape": [8, 8, 1]}}))
    finished = {run.path.name for run, _ in found}
    for run in runs.read_sweep(tmp_path):
        if run.run.path.name not in finished:
            run.run.write_status(runs.Status("preempted", 10))
    assert {row["model"] for row in costs.costs_of(tmp_path)} >= {"plain20, momentum 0.9", "plain20, momentum 0.5"}

    # Two networks of one kind are two curves, not one of twice the layers.
    rows = [{"run": f"plain20-{m}", "residual": False, "depth": 20, "layer": "a", "response": m} for m in (0.5, 0.9)]
    runs.write_table(tmp_path, "responses", rows)
    assert [(line["network"], line["median"]) for line in responses.table(tmp_path)] == [
        ("plain20-0.5", "0.500"),
        ("plain20-0.9", "0.900"),
    ]


def test_a_key_that_follows_the_network_makes_no_group(tmp_path):
    """The deepest networks' warm-up (configs/sweeps/degradation.py:cifar10) belongs to the same picture and claim."""
    warm = {"optimizer.schedule.warmup_steps": 400}
    members = [({"model.name": f"{family}20"}, [0.1]) for family in ("plain", "resnet")]
    members += [({"model.name": f"{family}110", **warm}, [0.5 if family == "plain" else 0.1]) for family in ("plain", "resnet")]
    make_sweep(tmp_path, members)
    rows = summary.summarize(tmp_path)
    assert "optimizer.schedule.warmup_steps" in rows[0] and runs.group_keys(rows) == []
    assert claim.judge(rows) == claim.judge_group(rows)
    figure.draw(tmp_path)
    assert texts(tmp_path / "degradation.svg").count("Plain networks") == 1


def texts(svg):
    """What a figure says: its letters are outlines, each line of them after a comment."""
    return [line for text in re.findall("<!-- (.*?) -->", svg.read_text(), re.DOTALL) for line in text.splitlines()]


def test_the_figure_has_a_column_for_each_group(tmp_path):
    wide = {"model.widths": [32, 64, 128], "optimizer.momentum": 0.9}
    groups = [(FAST, [0.01, 0.6, 0.01, 0.02]), (SLOW, [0.02, 0.7, 0.02, 0.03]), (wide, [0.01, 0.5, 0.01, 0.01])]
    make_sweep(tmp_path, depths(groups, seeds=(0, 1)))
    summary.summarize(tmp_path)
    figure.draw(tmp_path)
    shown = texts(tmp_path / "degradation.svg")
    titles = ["momentum 0.9", "momentum 0.5", "widths (32, 64, 128), momentum 0.9"]
    assert [text for text in shown if "momentum" in text] == titles
    assert [shown.count(f"{family} networks") for family in ("Plain", "Residual")] == [3, 3]
    # And the same from the tables that are kept of it.
    figure.write_curves(tmp_path)
    (tmp_path / "kept").mkdir()
    for name in ("summary.csv", "curves.csv"):
        shutil.copy(tmp_path / name, tmp_path / "kept")
    figure.draw(tmp_path / "kept")
    assert (tmp_path / "kept" / "degradation.svg").read_bytes() == (tmp_path / "degradation.svg").read_bytes()


def test_one_group_is_drawn_as_without_groups(tmp_path):
    for name, group in (("none", {}), ("one", SLOW)):
        make_sweep(tmp_path / name, depths([(group, [0.01, 0.6, 0.01, 0.02])]))
        summary.summarize(tmp_path / name)
        figure.draw(tmp_path / name)
    assert (tmp_path / "none" / "degradation.svg").read_bytes() == (tmp_path / "one" / "degradation.svg").read_bytes()


def test_too_many_groups_for_a_figure(tmp_path, capsys):
    make_sweep(tmp_path, [({"model.name": "plain20", "optimizer.momentum": n / 100}, [0.1]) for n in range(17)])
    assert launch.main(["report", f"--workdir={tmp_path}"]) == 0
    captured = capsys.readouterr()
    assert "have 17 groups of overrides; the figure shows at most 16" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["figure"] is None


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thousand")
    errors = [1 / n for n in range(1, 101)]
    make_sweep(folder, [({"model.name": "plain20", "optimizer.momentum": n / 1000}, errors) for n in range(1000)])
    return folder


def test_a_thousand_runs_are_read_only_as_far_as_a_row_needs(thousand, monkeypatch):
    """The rows are those of the whole logs, of which only the ends are read, and every file is read once."""
    slow = [{record["split"]: record for record in run.view().records} for run in runs.read_sweep(thousand)]
    read, opened = [], []
    real_open = Path.open

    def counting_open(path, mode="r", *arguments, **choices):
        opened.append(path)
        file = real_open(path, mode, *arguments, **choices)
        if path.name == "metrics.jsonl":
            real_read = file.read
            monkeypatch.setattr(file, "read", lambda size: read.append(size) or real_read(size), raising=False)
        return file

    monkeypatch.setattr(Path, "open", counting_open)
    rows = summary.summarize(thousand)
    for row, last in zip(rows, slow, strict=True):
        assert (row["train_error"], row["train_loss"]) == (last["train"]["top1_error"], last["train"]["loss"])
        assert (row["test_error"], row["state"]) == (last["test"]["top1_error"], "finished")
    whole = sum(path.stat().st_size for path in thousand.glob("*/metrics.jsonl"))
    assert 0 < sum(read) < whole / 2
    files = [path for path in opened if path.parent.parent == thousand]
    assert len(files) == len(set(files)) == 3000  # config, status and log
    assert [path.name for path in opened].count("sweep.json") == 1


def test_damage_in_one_of_a_thousand_runs(thousand, tmp_path, capsys):
    folder = tmp_path / "sweep"
    folder.mkdir()
    elements = json.loads((thousand / "sweep.json").read_text())
    names = list(elements)[:4]
    (folder / "sweep.json").write_text(json.dumps({name: elements[name] for name in names}))
    for name in names:
        shutil.copytree(thousand / name, folder / name)
    (folder / names[0] / "config.json").write_text(json.dumps(elements[names[1]]["config"]))
    (folder / names[1] / "metrics.jsonl").write_bytes((folder / names[1] / "metrics.jsonl").read_bytes() + b"{}\n")
    middle = (folder / names[2] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / names[2] / "metrics.jsonl").write_text("".join([*middle[:50], "\0\n", *middle[51:]]))
    states = [row["state"] for row in summary.summarize(folder)]
    # A row needs only the end of a log. Whoever reads all of it says what is wrong.
    assert states == ["damaged", "damaged", "finished", "finished"]
    assert launch.main(["report", f"--workdir={folder}"]) == 0
    assert f"{names[2]} is left out" in capsys.readouterr().err
    assert "3 damaged, 1 finished" in (folder / "report.html").read_text()
