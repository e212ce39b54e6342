import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from plain56 import runs
from plain56.errors import UserError


def test_untouched_run_reads_as_queued(tmp_path):
    run = runs.Run(tmp_path / "run")
    assert run.status() == runs.Status("queued", 0, "", 0, 0.0)
    assert run.metrics() == []
    assert not run.path.exists()


def make_run(path, config):
    with runs.hold(path) as run:
        run.write_config(config)
    return run


def records_of(steps, splits=("train", "test")):
    return [{"step": step, "split": split, "loss": 0.5, "seconds": 1.0} for step in steps for split in splits]


def test_records_come_back_in_order_and_by_split(tmp_path):
    run = make_run(tmp_path / "run", {"seed": 0})
    records = records_of((10, 20, 30))
    with run.open_log(0, start=0.0) as append:
        for record in records:
            append(record)
    assert run.metrics() == records
    assert [record["step"] for record in run.metrics("test")] == [10, 20, 30]
    with run.open_log(20, start=0.0) as append:
        assert run.metrics() == records[:4]
        append(*records[2:])  # those of step 20 once more, as of a network that diverges there
    assert run.metrics() == records
    with run.open_log(20, start=0.0):
        assert run.metrics() == records[:4]


def test_half_written_record_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", {"seed": 0})
    first, second = records_of((10, 20), ["train"])
    with run.open_log(0, start=0.0) as append:
        append(first)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "spl')
    assert run.metrics() == [first]
    with run.open_log(10, start=0.0) as append:
        append(second)
    assert run.metrics() == [first, second]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    run = make_run(tmp_path / "run", {"seed": 0})
    with run.open_log(0, 0.0) as append:
        norms = {"stem": float("inf"), "head": 1.0}
        append({"step": 1, "split": "test", "loss": float("nan"), "norms": norms, "top1_error": 0.5, "seconds": 1.0})
    (record,) = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    assert record == run.metrics()[0]
    assert (record["loss"], record["norms"], record["top1_error"]) == (None, {"stem": None, "head": 1.0}, 0.5)


def test_event_files_hold_the_records(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(tmp_path / "run", {"seed": 0})
    records = [record | {"loss": 1 / record["step"], "top1_error": record["step"] / 100} for record in records_of((10, 20, 30))]
    with run.open_log(0, start=1e9) as append:
        for record in records[:5]:
            append(record)
    with run.open_log(20, start=1e9) as append:  # a fifth record was logged and is forgotten
        for record in records[4:]:
            append(record)
    board = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert sorted(board.Tags()["scalars"]) == ["test/loss", "test/top1_error", "train/loss", "train/top1_error"]
    for tag in board.Tags()["scalars"]:
        split, key = tag.split("/")
        expected = [(record["step"], pytest.approx(record[key])) for record in records if record["split"] == split]
        assert [(event.step, event.value) for event in board.Scalars(tag)] == expected
        assert {event.wall_time for event in board.Scalars(tag)} == {1e9 + 1}


def test_identity_leaves_out_what_changes_no_result(tmp_path):
    config = {"seed": 0, "train": {"steps": 10, "log_every": 5, "stop_after": 0}, "data": {"dir": "", "mean": (0.5,)}}
    make_run(tmp_path / "run", config)
    for section, key, value in (("train", "log_every", 1), ("train", "stop_after", 3), ("data", "dir", "/elsewhere")):
        make_run(tmp_path / "run", {**config, section: {**config[section], key: value}})
    with pytest.raises(UserError, match=r"train.steps \(10 there, 20 now\)"):
        make_run(tmp_path / "run", {**config, "train": {**config["train"], "steps": 20}})
    assert runs.read_run(tmp_path / "run").config()["train"]["steps"] == 10


def test_a_run_is_held_by_one_process_and_free_when_that_is_gone(tmp_path):
    code = """if True:
        import sys, time
        from plain56 import runs
        with runs.hold(sys.argv[1]) as run:
            run.write_config({"seed": 0})
            print(flush=True)
            time.sleep(60)"""
    run = runs.Run(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        run.write_status(runs.Status("running", 5))
        assert run.status().state == "running"
        with pytest.raises(runs.Held, match=rf"is held by process {process.pid} on .* since 20\d\d-"), runs.hold(run.path):
            pytest.fail("two hold it")
        process.kill()
    assert run.status() == runs.Status("preempted", 5, "its process ended before it could save")
    with runs.hold(run.path):
        pass


def test_folder_that_may_not_be_written():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # nothing is forbidden to root
        try:
            with pytest.raises(UserError, match="run cannot be written: Permission denied"):
                make_run(Path(folder) / "run", {"seed": 0})
        finally:
            os.seteuid(user)


def test_start_that_was_killed_at_once_is_no_stranger(tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / ".config.json.123.part").write_text("{")
    make_run(tmp_path, {"seed": 0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "lock"]


def test_mistakes_leave_nothing_behind(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not a run directory"):
        make_run(tmp_path / "full", {"seed": 0})
    with pytest.raises(UserError, match="cannot be written"):
        make_run(tmp_path / "full" / "thesis.tex" / "run", {"seed": 0})
    with pytest.raises(UserError, match="has no config.json"):
        runs.read_run(tmp_path / "none")
    with pytest.raises(UserError, match="has no sweep.json"):
        runs.read_sweep(tmp_path / "full")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "thesis.tex"]


def test_damaged_file_is_named(tmp_path):
    run = make_run(tmp_path / "run", {"seed": 0})
    (run.path / "status.json").write_text("")
    assert run.status() == runs.Status()  # it tells nothing that the checkpoint does not
    (run.path / "metrics.jsonl").write_text(
        '{"step": 1, "split": "train", "seconds": 1}\n{"step": 2, "spl\n{"step": 3, "split": "train", "seconds": 3}\n'
    )
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged: line 2 is no record"):
        run.metrics()
    (run.path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json is damaged: a list is in the place of a dict"):
        run.config()


def test_summary_in_both_forms(tmp_path):
    rows = [{"model": "plain20", "seed": 0, "test_error": 0.25}, {"model": "resnet20", "seed": 0, "test_error": None}]
    runs.write_summary(tmp_path, rows)
    assert runs.read_summary(tmp_path) == rows
    assert (tmp_path / "summary.csv").read_text() == "model,seed,test_error\nplain20,0,0.25\nresnet20,0,\n"
    assert json.loads((tmp_path / "summary.json").read_text()) == rows
