import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from configs import base
from plain56 import runs
from plain56.errors import UserError
from plain56.runs import files


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
    with run.open_log(0) as append:
        for record in records:
            append(record)
    assert run.metrics() == records
    assert [record["step"] for record in run.metrics("test")] == [10, 20, 30]
    with run.open_log(20) as append:
        assert run.metrics() == records[:4]
        append(*records[2:])  # those of step 20 once more, as of a network that diverges there
    assert run.metrics() == records
    with run.open_log(20):
        assert run.metrics() == records[:4]


def test_half_written_record_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", {"seed": 0})
    first, second = records_of((10, 20), ["train"])
    with run.open_log(0) as append:
        append(first)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "spl')
    assert run.metrics() == [first]
    with run.open_log(10) as append:
        append(second)
    assert run.metrics() == [first, second]


@pytest.mark.parametrize("block", [1, 7, 1 << 13])  # a block may begin or end anywhere, and the file in one
def test_the_newest_records_are_read_from_the_end(tmp_path, monkeypatch, block):
    monkeypatch.setattr(files, "BLOCK_BYTES", block)
    run = make_run(tmp_path / "run", {"seed": 0})
    assert run.newest({"train"}) == {}
    records = [*records_of((10,), ["validation"]), *records_of(range(20, 2020, 10)), *records_of((2020,), ["gradients", "train"])]
    for record in records:
        record |= {"outputs": {"ü": 1.0} if record["split"] == "gradients" else None}
    log = run.path / "metrics.jsonl"
    log.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records) + '{"step": 2030, "spl')
    for splits in ({"train", "test"}, {"train", "validation"}, {"test", "train_clean"}):
        assert run.newest(splits) == {record["split"]: record for record in run.metrics() if record["split"] in splits}
    # What lies before the newest ones is not read.
    log.write_bytes(b"\xff" * 10**6 + log.read_bytes())
    assert run.newest({"train", "test"}) == {"test": records[-3], "train": records[-1]}
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: line 403, counted from the last one, is not a record"):
        run.newest({"train_clean"})


def test_numbers_that_are_not_finite_are_null(tmp_path):
    run = make_run(tmp_path / "run", {"seed": 0})
    with run.open_log(0) as append:
        norms = {"stem": float("inf"), "head": 1.0}
        append({"step": 1, "split": "gradients", "loss": float("nan"), "outputs": norms, "top1_error": 0.5, "seconds": 1.0})
    (record,) = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    assert record == run.metrics()[0]
    assert (record["loss"], record["outputs"], record["top1_error"]) == (None, {"stem": None, "head": 1.0}, 0.5)


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "holder", "lock"]


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
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged: line 2 is not a record"):
        run.metrics()
    (run.path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json is damaged: it must hold a JSON object, not a list"):
        run.config()


def test_summary_in_both_forms(tmp_path):
    shared = {"state": "finished", "residual": False, "seconds": 1.5}
    rows = [
        {"run": "a", "data": "digits", "model": "plain20", "test_error": 0.25} | shared,
        {"run": "b", "data": None, "model": "plain8", "test_error": None} | shared,
    ]
    assert runs.write_summary(tmp_path, lambda: rows) == rows == runs.read_summary(tmp_path)
    table = [
        "run,data,model,test_error,state,residual,seconds",
        "a,digits,plain20,0.25,finished,False,1.5",
        "b,,plain8,,finished,False,1.5",
    ]
    assert (tmp_path / "summary.csv").read_text().splitlines() == table
    assert json.loads((tmp_path / "summary.json").read_text()) == rows


@pytest.mark.parametrize(
    ("stored", "today"),
    [
        ({"train": {"seeds": 1}}, {}),  # written before several seeds became a sweep
        ({"train": {"seeds": 2}}, r"train\.seeds, which was removed: several seeds are a sweep; it must be 1"),
        ({"data": {"augment": {"colour": 0.1, "pad": 3}}}, {"data.augment.color": 0.1, "data.augment.pad": 3}),
        ({"seed": 5, "model": {"name": "plain8"}}, {"seed": 5, "model.name": "plain8"}),  # before any other key was there
        ({"data": 1, "train": [2]}, {"data": 1, "train": [2]}),  # its reader says what is wrong
    ],
)
def test_keys_of_earlier_versions(tmp_path, stored, today):
    """A key that was renamed has its value, and one that was added since has its default."""
    run = make_run(tmp_path / "run", {"seed": 0, "train": {"steps": 1}})
    (run.path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "sweep.json").write_text(json.dumps({"run": {"overrides": {"model.name": "a", "seed": 0}, "config": stored}}))
    (planned,) = runs.read_sweep(tmp_path)
    if isinstance(today, str):
        with pytest.raises(UserError, match=today):
            run.config()
        assert planned.status().state == "damaged" and "train.seeds, which was removed" in planned.damage
    else:
        defaults = runs.flatten(json.loads(json.dumps(base.get_config().to_dict())))
        others = {key: value for key, value in defaults.items() if key.split(".")[0] not in today}
        assert runs.flatten(run.config()) == runs.flatten(planned.config) == others | today
        runs.check_identity(run, stored)


VALUES = (None, True, -1, 1.5, "x", [1], {"a": 1})


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", ["step", "split", "seconds", "loss", "outputs"])
def test_record_of_another_type_is_damage(tmp_path, key, value):
    run = make_run(tmp_path / "run", {"seed": 0})
    record = {"step": 1, "split": "train", "seconds": 1.0, "loss": 0.5}
    numbers = (None, -1, 1.5)
    sound = {"step": (), "split": ("x",), "seconds": (-1, 1.5), "loss": numbers, "outputs": numbers}
    (run.path / "metrics.jsonl").write_text(json.dumps(record | {key: value}) + "\n")
    if any(type(value) is type(other) and value == other for other in sound[key]):
        assert len(run.metrics()) == 1
    else:
        with pytest.raises(UserError, match="line 1 is not a record"):
            run.metrics()


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", runs.Status._fields)
def test_status_of_another_type_counts_as_queued(tmp_path, key, value):
    run = make_run(tmp_path / "run", {"seed": 0})
    stored = runs.Status("finished", 5, "", 100, 1.0)._asdict()
    (run.path / "status.json").write_text(json.dumps(stored | {key: value}))
    sound = (key == "reason" and value == "x") or (key == "seconds" and value in (-1, 1.5) and value is not True)
    assert run.status().state == ("finished" if sound else "queued")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", ["data", "data.streamed", "data.image_shape", "data.class_names", "data.train"])
def test_environment_of_another_type_is_damage(tmp_path, key, value):
    run = make_run(tmp_path / "run", {"seed": 0})
    data = {"train": 5, "streamed": False, "image_shape": [8, 8, 1], "class_names": ["0", "1"]}
    environment = {"data": data | {key.partition(".")[2]: value}} if "." in key else {"data": value}
    (run.path / "environment.json").write_text(json.dumps(environment))
    if (key == "data.streamed" and value is True) or (key == "data" and value == {"a": 1}):
        assert run.environment() == environment
    else:
        with pytest.raises(UserError, match=r"environment\.json is damaged"):
            run.environment()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "environment.json", "status.json"])
@pytest.mark.parametrize("kind", ["folder", "loop", "pipe", "bytes", "deep", "NaN"])
def test_something_else_in_place_of_a_file(tmp_path, name, kind):
    run = make_run(tmp_path / "run", {"seed": 0})
    file = run.path / name
    file.unlink(missing_ok=True)
    if kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(name)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.write_bytes({"bytes": b"\xff\n", "deep": b'{"a": ' * 3000 + b"\n", "NaN": b'{"data": NaN}\n'}[kind])
    read = {"config.json": run.config, "metrics.jsonl": run.metrics, "environment.json": run.environment}
    if name == "status.json":
        assert run.status() == runs.Status()
    else:
        with pytest.raises(UserError, match=rf"{name} (is damaged|cannot be read)"):
            read[name]()
    state = runs.SweepRun(run, {}, {"seed": 0}).view().status.state
    assert state == ("damaged" if name in ("config.json", "metrics.jsonl") else "queued")


NO_FLOCK = """if True:
    import errno, fcntl, os, sys, time
    def refuse(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock = refuse
    from plain56 import runs
    with runs.hold(sys.argv[1]) as run:
        run.write_config({"seed": 0})
        print(run.holder(), flush=True)
        time.sleep(float(sys.argv[2]))"""


def test_where_there_is_no_flock_a_killed_process_holds_nothing(tmp_path):
    command = [sys.executable, "-W", "error", "-c", NO_FLOCK, str(tmp_path / "run")]
    with subprocess.Popen([*command, "60"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith(f"process {process.pid} on ")
        second = subprocess.run([*command, "0"], capture_output=True, text=True)
        assert f"is held by process {process.pid} on" in second.stderr
        process.kill()
    third = subprocess.run([*command, "0"], capture_output=True, text=True)
    assert third.returncode == 0, third.stderr


@pytest.mark.parametrize("text", ["~nosuchuser/x", "a" * 300, "a\0b"])
def test_what_can_be_no_path(text):
    with pytest.raises(UserError, match="cannot be a path"):
        runs.user_path(text)


def test_a_sweep_keeps_the_numbers_of_its_runs(tmp_path):
    def elements(*names, steps=1):
        overrides = {"model.name": "resnet8", "seed": 0}
        return {name: {"overrides": overrides, "config": {"train": {"steps": steps, "log_every": steps}}} for name in names}

    assert runs.write_sweep(tmp_path, elements("a", "b")) == ["a", "b"]
    assert runs.write_sweep(tmp_path, elements("c", "a")) == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"has a different run b: train\.steps \(1 there, 2 now\)"):
        runs.write_sweep(tmp_path, elements("d", "b", steps=2))
    assert [run.run.path.name for run in runs.read_sweep(tmp_path)] == ["a", "b", "c"]


def test_the_last_writer_of_a_summary_has_seen_what_the_others_have(tmp_path):
    """Writers who read the runs before they wait for each other would put back an older state."""
    code = """if True:
        import json, sys, time
        from pathlib import Path
        from plain56 import runs
        folder, mine = Path(sys.argv[1]), sys.argv[2]
        (folder / mine).touch()
        def rows():
            seen = sorted(path.name for path in folder.glob("run*"))
            time.sleep(0.5 if mine == "run0" else 0)
            return [{"run": " ".join(seen), "data": None, "model": "", "state": "", "residual": False, "seconds": 0.0}]
        runs.write_summary(folder, rows)"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"run{i}"]) for i in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert runs.read_summary(tmp_path)[0]["run"] == "run0 run1 run2"
