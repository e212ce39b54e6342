"""`sweep --dry_run --time`: which networks are timed, and what their runs have left to do."""

import itertools
import json

import pytest

import launch
from plain56 import duration
from plain56.errors import UserError
from plain56.training import cadence

SWEEP = """
from configs import digits

def get_config():
    config = digits.get_config("resnet8")
    config.train.batch_size, config.train.steps = 32, 8
    config.train.log_every = config.train.evaluate_every = config.train.checkpoint_every = 4
    config.optimizer.schedule.warmup_steps = 2
    return config

def sweep(config):
    for width in (4, 8):
        for seed in (0, 1):
            yield {"model.widths": (4, 4, width), "optimizer.momentum": seed / 2, "seed": seed}
"""


@pytest.mark.parametrize(("step", "last"), [(0, 12), (3, 12), (4, 13), (11, 12)])
def test_examples_to_evaluate_are_those_of_the_cadence(tiny_config, step, last):
    sizes = {"train": 100, "validation": 10, "test": 1}
    for every, clean in itertools.product((1, 3, 4, 20), (0, 5)):
        tiny_config.train.steps, tiny_config.train.evaluate_every, tiny_config.train.evaluate_train_every = last, every, clean
        due = [name for done in range(step + 1, last + 1) for name in cadence.due(tiny_config.train, done, last)]
        expected = sum(sizes.get(name.removesuffix("_clean"), 0) for name in due)
        assert duration._examples_to_evaluate(tiny_config, step, sizes) == expected


def test_each_network_is_timed_once_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    timed = []
    real = duration._seconds
    monkeypatch.setattr(duration, "_seconds", lambda config: timed.append(config.model.widths) or real(config))
    (tmp_path / "ideas.py").write_text(SWEEP)
    flags = ["sweep", f"--config={tmp_path / 'ideas.py'}", f"--workdir={tmp_path / 'sweep'}"]
    assert launch.main([*flags, "--dry_run", "--time", "--workers=2"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])["time"]
    assert timed == [(4, 4, 4), (4, 4, 8)]
    assert [(row["network"], row["model.widths"], row["runs"], row["steps"]) for row in result["networks"]] == [
        ("resnet8", "(4, 4, 4)", 2, 16),
        ("resnet8", "(4, 4, 8)", 2, 16),
    ]
    assert all(row["seconds_per_step"] > 0 for row in result["networks"])
    assert result["hours"] == pytest.approx(sum(row["hours"] for row in result["networks"]))
    assert "one process on all cores" in out and "2 workers share these cores" in out
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_only_what_is_left_is_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(duration, "_seconds", lambda config: (0.0, 3600.0, 0.0, {"test": 1}))
    (tmp_path / "ideas.py").write_text(SWEEP)
    flags = ["sweep", f"--config={tmp_path / 'ideas.py'}", f"--workdir={tmp_path / 'sweep'}"]
    assert launch.main([*flags, "--index=0"]) == 0
    assert launch.main([*flags, "--index=2", "--config.train.stop_after=4"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*")}
    capsys.readouterr()
    # From the config, and from the directory, whose runs are now to stop after step 4.
    for again, expected in ((flags, [(1, 8, 8.0), (2, 12, 12.0)]), (["sweep", flags[-1]], [(1, 4, 4.0), (1, 4, 4.0)])):
        assert launch.main([*again, "--dry_run", "--time"]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])["time"]
        assert [(row["runs"], row["steps"], row["hours"]) for row in result["networks"]] == expected
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*")} == before


def test_time_is_for_what_is_not_run(tmp_path, capsys, tiny_config):
    assert launch.main(["sweep", "--time", f"--workdir={tmp_path}"]) == 2
    assert "--time belongs to --dry_run" in capsys.readouterr().err
    tiny_config.transfer.probe = True
    with pytest.raises(UserError, match="a linear probe .* has none"):
        duration.measure([(tiny_config, 0)])
