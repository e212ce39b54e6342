"""The comparison of from scratch, probe and fine-tuning: its runs begin where they should, and its table is theirs."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import transfer as experiment
from plain56 import cli, runs
from plain56.training import load_run

ROOT = Path(__file__).parent.parent


def row(approach, error, count=2, seed=0):
    return {"approach": approach, "examples_per_class": count, "seed": seed, "test_error": error}


@pytest.mark.parametrize(("finetune", "held"), [((0.30, 0.34), True), ((0.40, 0.44), False)])
def test_rule(finetune, held):
    rows = [row("scratch", 0.4), row("scratch", 0.42, seed=1), row("probe", 0.1), row("probe", 0.3, seed=1)]
    rows += [row("finetune", error, seed=seed) for seed, error in enumerate(finetune)]
    rows += [row(approach, 0.05, count=50) for approach in ("scratch", "probe", "finetune")]  # does not count
    assert experiment.check_claim(rows)[0] is held


@pytest.mark.slow
def test_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    flags = [
        f"--config={experiment.SWEEP}",
        f"--workdir={tmp_path}",
        "--config.model.name=resnet8",
        "--config.sweep.source_steps=30",
        "--config.sweep.examples_per_class=(5,)",
        "--config.sweep.seeds=(1,)",
        "--config.train.steps=4",
        "--config.optimizer.schedule.warmup_steps=0",
    ]
    status = cli.run(experiment.compare, flags)
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert status == (0 if result["held"] else 1)
    assert Path(result["figure"]).read_bytes().startswith(b"\x89PNG") and "5 per class" in captured.out
    networks = tmp_path / "networks"
    names = ["scratch-5-seed1", "probe-5-seed1", "finetune-5-seed1"]
    assert [path.name for path in sorted(networks.iterdir()) if path.is_dir()] == sorted(names)
    rows = experiment.results(networks)
    assert [{key: str(value) for key, value in found.items()} for found in rows] == runs.read_table(tmp_path, "transfer")
    for name, found in zip(names, rows, strict=True):
        assert name.startswith(f"{found['approach']}-")
        assert runs.Run(networks / name).environment()["data"]["class_names"] == ["5", "6", "7", "8", "9"]
    # After four small steps a network that began from the source is still near it, one from scratch is not.
    kernels = {name: np.asarray(load_run(networks / name).state.params["stem_conv"]["kernel"]) for name in names}
    source = np.asarray(load_run(tmp_path / "source").state.params["stem_conv"]["kernel"])
    distances = {name: np.linalg.norm(kernel - source) / np.linalg.norm(source) for name, kernel in kernels.items()}
    assert distances["probe-5-seed1"] == 0 < distances["finetune-5-seed1"] < 0.1 and distances["scratch-5-seed1"] > 0.5
    # Launched again, nothing is trained.
    assert cli.run(experiment.compare, flags) == status and experiment.results(networks) == rows
