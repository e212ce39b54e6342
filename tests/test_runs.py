import json

import pytest

from plain56 import runs
from plain56.errors import UserError


def test_untouched_run_reads_as_queued(tmp_path):
    run = runs.Run(tmp_path / "run")
    assert run.status() == runs.Status("queued", 0, "", 0, 0.0)
    assert run.metrics() == []
    assert not run.path.exists()


def test_records_come_back_in_order_and_by_split(tmp_path):
    run = runs.open_run(tmp_path / "run", {"seed": 0})
    records = [{"step": step, "split": split, "loss": 0.5} for step in (10, 20, 30) for split in ("train", "test")]
    for record in records:
        run.append(record)
    assert run.metrics() == records
    assert [record["step"] for record in run.metrics("test")] == [10, 20, 30]
    run.drop_records_after(20)
    assert run.metrics() == records[:4]


def test_half_written_record_is_left_out(tmp_path):
    run = runs.open_run(tmp_path / "run", {"seed": 0})
    run.append({"step": 10, "split": "train"})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "spl')
    assert [record["step"] for record in run.metrics()] == [10]
    run.drop_records_after(10)
    run.append({"step": 20, "split": "train"})
    assert [record["step"] for record in run.metrics()] == [10, 20]


def test_identity_leaves_out_what_changes_no_result(tmp_path):
    config = {"seed": 0, "train": {"steps": 10, "log_every": 5, "stop_after": 0}, "data": {"dir": "", "mean": (0.5,)}}
    runs.open_run(tmp_path / "run", config)
    for section, key, value in (("train", "log_every", 1), ("train", "stop_after", 3), ("data", "dir", "/elsewhere")):
        runs.open_run(tmp_path / "run", {**config, section: {**config[section], key: value}})
    with pytest.raises(UserError, match=r"train.steps \(10 there, 20 now\)"):
        runs.open_run(tmp_path / "run", {**config, "train": {**config["train"], "steps": 20}})
    assert runs.read_run(tmp_path / "run").config()["train"]["steps"] == 10


def test_mistakes_leave_nothing_behind(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not a run directory"):
        runs.open_run(tmp_path / "full", {"seed": 0})
    with pytest.raises(UserError, match="cannot be written"):
        runs.open_run(tmp_path / "full" / "thesis.tex" / "run", {"seed": 0})
    with pytest.raises(UserError, match="has no config.json"):
        runs.read_run(tmp_path / "none")
    with pytest.raises(UserError, match="has no sweep.json"):
        runs.read_sweep(tmp_path / "full")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "thesis.tex"]


def test_damaged_file_is_named(tmp_path):
    run = runs.open_run(tmp_path / "run", {"seed": 0})
    (run.path / "status.json").write_text("")
    with pytest.raises(UserError, match=r"status.json is damaged"):
        run.status()


def test_summary_in_both_forms(tmp_path):
    rows = [{"model": "plain20", "seed": 0, "test_error": 0.25}, {"model": "resnet20", "seed": 0, "test_error": None}]
    runs.write_summary(tmp_path, rows)
    assert runs.read_summary(tmp_path) == rows
    assert (tmp_path / "summary.csv").read_text() == "model,seed,test_error\nplain20,0,0.25\nresnet20,0,\n"
    assert json.loads((tmp_path / "summary.json").read_text()) == rows
