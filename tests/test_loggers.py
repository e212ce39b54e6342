"""Loggers get every record, by TensorBoard's and wandb's own files and a user's function; a broken one costs a warning."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plain56 import runs
from plain56.errors import UserError
from plain56.training import loggers, train
from tests.devices import one_device
from tests.killed import FLAGS

ROOT = Path(__file__).parent.parent
# It keeps the records in the file that the test reads, and can be told to fail.
SOURCE = """
import json
from pathlib import Path

class Logger:
    def __init__(self, workdir, config):
        self.file = (workdir / "own.jsonl").open("a")
        self.file.write(json.dumps([config.model.name, len((workdir / "metrics.jsonl").read_text().splitlines())]) + "\\n")

    def write(self, record):
        self.file.write(json.dumps(record) + "\\n")

    def close(self):
        self.file.write("closed\\n")
        self.file.close()

class Failing(Logger):
    def write(self, record):
        super().write(record)
        raise ConnectionError("no route to host")

class Unclosable(Logger):
    def close(self):
        super().close()
        raise OSError("gone")

def refusing(workdir, config):
    raise ConnectionError("no route to host")

def returning_nothing(workdir, config):
    pass

constant = 3
"""


@pytest.fixture
def own(own_folder):
    """A current folder with the module `own_loggers`."""
    (own_folder / "own_loggers.py").write_text(SOURCE)
    return own_folder


def without_times(records):
    return [{key: value for key, value in record.items() if key not in ("seconds", "images_per_second")} for record in records]


def shown(board_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(board_folder), size_guidance={"scalars": 0}).Reload()
    return [(tag, event.step, event.value, event.wall_time) for tag in board.Tags()["scalars"] for event in board.Scalars(tag)]


def test_event_files_hold_the_records(tmp_path, tiny_config):
    with runs.hold(tmp_path / "run") as run:
        run.write_config(tiny_config.to_dict())
    records = [
        {"step": step, "split": split, "loss": 1 / step, "top1_error": step / 100, "seconds": 1.0}
        for step in (10, 20, 30)
        for split in ("train", "test")
    ]
    norms = {"step": 30, "split": "gradients", "loss": None, "outputs": {"stem": None, "head": 1.0}, "seconds": 1.0}
    for step, written in ((0, records[:5]), (20, [*records[4:], norms])):  # a fifth record was logged and is forgotten
        with run.open_log(step) as append, loggers.open_loggers(tiny_config, run.path, start=1e9) as write:
            for record in written:
                write(append(record))
    numbers = [
        (f"{record['split']}/{key}", record["step"], np.float32(record[key]), 1e9 + 1)
        for record in records
        for key in ("loss", "top1_error")
    ]
    assert sorted(shown(run.path / "tensorboard")) == sorted([*numbers, ("gradients/outputs.head", 30, 1.0, 1e9 + 1)])


def test_event_files_equal_the_records_of_a_run(finished_run):
    records = [
        (f"{record['split']}/{key}", record["step"], np.float32(record[key]))
        for record in runs.read_run(finished_run).metrics()
        for key in record.keys() - {"step", "split", "seconds"}
    ]
    assert sorted(event[:3] for event in shown(finished_run / "tensorboard")) == sorted(records)


def test_own_logger_gets_every_record_and_what_comes_after_a_resume(own, tiny_config):
    tiny_config.train.loggers = ("own_loggers:Logger",)
    tiny_config.train.stop_after = 8
    train(tiny_config, own / "run")
    tiny_config.train.stop_after = 0
    train(tiny_config, own / "run")
    lines = (own / "run" / "own.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert records == runs.read_run(own / "run").metrics()
    kept = sum(record["step"] <= 8 for record in records)
    assert lines[0] == '["resnet8", 0]' and lines[kept + 1 : kept + 3] == ["closed", f'["resnet8", {kept}]']
    assert lines[-1] == "closed"
    assert not (own / "run" / "tensorboard").exists()


def test_no_loggers_and_loggers_are_no_part_of_the_identity(tmp_path, tiny_config, stopped_run):
    tiny_config.train.loggers = ()
    before = sorted((stopped_run / "tensorboard").iterdir())
    assert train(tiny_config, stopped_run).state == "finished"
    assert sorted((stopped_run / "tensorboard").iterdir()) == before


@pytest.mark.parametrize(("name", "records"), [("Failing", 1), ("Unclosable", None)])
def test_broken_logger_costs_a_warning_and_no_training(own, tiny_config, caplog, name, records, finished_run):
    tiny_config.train.loggers = (f"own_loggers:{name}", "tensorboard")
    assert train(tiny_config, own / "run").state == "finished"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    reason = {"Failing": "ConnectionError: no route to host", "Unclosable": "OSError: gone"}[name]
    assert warning == (
        f"The logger 'own_loggers:{name}' failed ({reason}); it gets no more records, and metrics.jsonl has them all."
    )
    written = runs.read_run(own / "run").metrics()
    assert without_times(written) == without_times(runs.read_run(finished_run).metrics())
    lines = (own / "run" / "own.jsonl").read_text().splitlines()
    assert len(lines) == 2 + (len(written) if records is None else records) and lines[-1] == "closed"
    assert {event[1] for event in shown(own / "run" / "tensorboard")} == {record["step"] for record in written}


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("absent_one:f", "but the module absent_one cannot be imported: ModuleNotFoundError: No module named 'absent_one'"),
        ("own_loggers:f", "but the module own_loggers has no function f"),
        ("own_loggers:constant", "which must be a function, not a value of type int"),
    ],
)
def test_logger_that_is_not_there_is_told_before_anything_is_written(own, tiny_config, reference, sentence):
    tiny_config.train.loggers = ("tensorboard", reference)
    with pytest.raises(UserError) as error:
        train(tiny_config, own / "run")
    assert str(error.value) == f"train.loggers is {reference!r}, {sentence}."
    assert not (own / "run").exists()


def test_logger_that_cannot_begin_stops_the_run_which_goes_on_without_it(own, tiny_config):
    for name, sentence in (
        ("refusing", "cannot begin: ConnectionError: no route to host; leave it out of train.loggers to go on."),
        ("returning_nothing", "must return an object with write(record) and close(); NoneType has no write."),
    ):
        tiny_config.train.loggers = ("tensorboard", f"own_loggers:{name}")
        with pytest.raises(UserError) as error:
            train(tiny_config, own / "run")
        assert str(error.value) == f"The logger 'own_loggers:{name}' {sentence}"
        assert runs.read_run(own / "run").status().state == "failed"
    tiny_config.train.loggers = ()
    assert train(tiny_config, own / "run").state == "finished"


@pytest.mark.parametrize("values", [("tensorbord",), ("wandb", "wandb"), "wandb", (3,), ("a:b:c",), ("",)])
def test_wrong_names_are_told(tmp_path, tiny_config, values):
    with tiny_config.ignore_type():
        tiny_config.train.loggers = values
    with pytest.raises(UserError, match="train.loggers must be a tuple of different loggers: 'tensorboard', 'wandb' or 'package"):
        train(tiny_config, tmp_path / "run")


def test_missing_wandb_is_told_before_anything_is_written(tmp_path, tiny_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # such a folder, which offline runs leave, is a module to Python
    monkeypatch.setitem(sys.modules, "wandb", None)
    tiny_config.train.loggers = ("wandb",)
    with pytest.raises(UserError, match=r"train.loggers has 'wandb', .* install it by: pip install 'plain56\[wandb\]'\."):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def offline_files(run):
    """What each offline file of wandb in a run directory holds, in the order of their beginning."""
    return [list(wandb_records(file)) for file in sorted((run / "wandb").glob("offline-run-*/*.wandb"))]


def wandb_records(file):
    """The protocol buffers in one of wandb's files: a header of 7 bytes, then a log in the format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (room := 32768 - at % 32768) < 7:  # a block's end that has no room for a part
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def history(records):
    """All numbers that wandb's records show: {(name, step): value}."""
    rows = [
        {"/".join(item.nested_key) or item.key: item.value_json for item in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    return {(name, int(row["_step"])): float(value) for row in rows for name, value in row.items() if not name.startswith("_")}


@pytest.mark.slow
def test_wandb_holds_the_records_under_one_name_after_a_resume(tmp_path):
    """Offline, in processes of their own, as a user has them."""
    pytest.importorskip("wandb")
    flags = [*FLAGS, "--config.train.loggers=('wandb',)", f"--workdir={tmp_path / 'run'}"]
    environment = one_device() | {"WANDB_MODE": "offline"}
    environment.pop("WANDB_PROJECT", None)
    for stop in (["--config.train.stop_after=12"], []):
        done = subprocess.run(
            [sys.executable, "launch.py", "train", *flags, *stop], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "wandb" not in (done.stdout + done.stderr).replace(tmp_path.name, "")  # which is the test's name
    first, second = offline_files(tmp_path / "run")
    metrics = runs.read_run(tmp_path / "run").metrics()
    expected = {(name, record["step"]): value for record in metrics for name, value in loggers.scalars(record).items()}
    assert history(second) == pytest.approx(expected)
    assert history(first) == pytest.approx({key: value for key, value in expected.items() if key[1] <= 12})
    started = [next(record.run for record in records if record.HasField("run")) for records in (first, second)]
    assert {run.run_id for run in started} == {(tmp_path / "run" / "wandb" / "id").read_text()}
    assert {(run.project, run.display_name) for run in started} == {("plain56", "run")}
    config = {update.key: json.loads(update.value_json) for update in started[0].config.update}
    assert config["train"]["loggers"] == ["wandb"] and config["model"]["name"] == "resnet8"
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and not (ROOT / "wandb").exists()
