"""The command line as a user meets it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import launch
import plain56
from plain56 import cli, runs, training
from plain56.cli.flags import parse
from tests.killed import wait_until
from tests.test_models import PARAMETERS

ROOT = Path(__file__).parent.parent
DIGITS = "--config=configs/digits.py"
SWEEP = "--config=configs/sweeps/degradation.py"
ONE_OF_TWO = ["--coordinator=localhost:1", "--num_processes=2", "--process_id=0"]
WIDE = "--config.model.widths=(16,8,64)"

MISTAKES = [
    ([], "No mode was given; it must be one of train, evaluate, sweep, report, describe"),
    (["tarin"], "There is no mode 'tarin'"),
    (["train"], "--config is missing"),
    (["train", DIGITS], "--workdir is missing"),
    (
        ["train", "--config=configs/nosuch.py"],
        "There is no file 'configs/nosuch.py'; --config must be a file of your own or one of configs/base.py, ",
    ),
    (["train", "--config=LICENSE"], "The command cannot be read"),
    (["train", "--config.seed=1"], "--config is missing"),
    (["train", DIGITS, "--config.train.stepz=1"], "no key 'train.stepz' in the config; the nearest is 'train.steps'"),
    (["train", DIGITS, "--config.foo=1"], "There is no key 'foo'"),
    (["train", DIGITS, "--config.train.steps=many"], "invalid literal for int() with base 10: 'many'"),
    (["train", DIGITS, "--config.data.augment.flip=maybe"], "maybe"),
    (["train", DIGITS, "resnet20", "--workdir=W"], "'resnet20' must be a flag"),
    (["train", DIGITS, "--nosuch=1"], "Unknown command line flag 'nosuch'"),
    (["train", f"{DIGITS}:resnet57", "--workdir=W"], "nearest is 'resnet56'"),
    (["train", f"{DIGITS}:reznet56", "--workdir=W"], "nearest is 'resnet56'"),
    (["train", f"{DIGITS}:resnet020", "--workdir=W"], "nearest is 'resnet20'"),
    (["train", DIGITS, "--config.train.batch_size=-3", "--workdir=W"], "train.batch_size must be an integer from 1"),
    (["train", DIGITS, "--config.train.batch_size=33", "--workdir=W"], "must be a multiple of 2, not 33"),
    (["train", DIGITS, "--config.train.accumulate=3", "--workdir=W"], "2 devices in train.accumulate = 3 parts"),
    (["train", DIGITS, "--config.parallelism=tmap", "--workdir=W"], "parallelism must be 'jit' or 'pmap', not 'tmap'"),
    (["train", DIGITS, "--process_id=0", "--workdir=W"], "it lacks --coordinator and --num_processes"),
    (["train", DIGITS, *ONE_OF_TWO, "--distributed", "--workdir=W"], "--distributed must be left out"),
    (["train", DIGITS, *ONE_OF_TWO[:2], "--process_id=2", "--workdir=W"], "--process_id must be from 0 to 1"),
    (["train", DIGITS, "--coordinator=here", *ONE_OF_TWO[1:], "--workdir=W"], "--coordinator must be HOST:PORT"),
    (["sweep", SWEEP, "--distributed", "--workdir=W"], "--distributed belongs to train"),
    (
        ["train", DIGITS, "--config.optimizer.learning_rate=nan", "--workdir=W"],
        "must be a positive number below 1e38, not nan",
    ),
    (["train", DIGITS, "--config.data.mean=abc", "--workdir=W"], "in [0, 1], not ('abc',)"),
    (
        ["train", DIGITS, "--config.data.std=(0.3,0.3)", "--workdir=W"],
        "data.std must have as many numbers as data.mean, 1, not 2",
    ),
    (["train", DIGITS, "--config.train.steps=40", "--workdir=W"], "warmup_steps must be below train.steps, 40, not 40"),
    (
        ["train", "--config=configs/cifar10.py", "--config.optimizer.schedule.warmup_steps=9", "--workdir=W"],
        "warmup_learning_rate must be positive, not 0",
    ),
    (["train", DIGITS, "--config.optimizer.schedule.boundaries=(3,2)", "--workdir=W"], "rising positive integers"),
    (["train", DIGITS, "--config.data.name=mnist", "--config.data.dir=W", "--workdir=W"], "pip install 'plain56[prepare]'"),
    (["train", DIGITS, WIDE, "--workdir=W"], "widths may not decrease"),
    (["train", DIGITS, "--workdir=configs"], "configs exists and is not a run directory"),
    (["evaluate", "--workdir=W"], "is not a run directory"),
    (["report", "--workdir=W"], "is neither a sweep nor a run directory"),
    (["sweep", DIGITS, "--workdir=W"], "configs/digits.py is not a sweep"),
    (["sweep", SWEEP, "--config.seed=1", "--workdir=W"], "--config.seed is chosen by the sweep itself"),
    (["sweep", SWEEP, "--config.sweep.seeds=(0.5,)", "--workdir=W"], "do not fit the config"),
    (["sweep", f"{SWEEP}:cifar10", "--config.sweep.depths=('deep',)", "--workdir=W"], "holds a value of the wrong type"),
    (["sweep", SWEEP, "--workdir=configs"], "configs exists and is not a sweep directory"),
    (["train", DIGITS, "--workdir="], "--workdir is missing"),
    (["train", DIGITS, "--config.transfer.freeze=('stage9',)", "--workdir=W"], "'stage9', which fits no stage or layer"),
    (["evaluate", DIGITS, "--workdir=W"], "--config must be left out here"),
    (["sweep", f"{SWEEP}:mnist", "--workdir=W"], "must be one of digits, cifar10_short, cifar10, imagenet, not 'mnist'"),
    (["sweep", SWEEP, "--config.sweep.depths=(20,57)", "--workdir=W"], "nearest is 'plain56'"),
    (["sweep", SWEEP, "--config.sweep.depths=()", "--workdir=W"], "The sweep is empty"),
    (["sweep", SWEEP, "--config.sweep.seeds=(1,1)", "--workdir=W"], "names a run twice: plain20-seed1"),
    (["sweep", f"{SWEEP}:cifar10", "--config.data.dir=W", "--workdir=W"], "'cifar10' is not prepared"),
    (["sweep", SWEEP, "--workdir=W", "--index=4"], "--index is 4; it must be from 0 to 3"),
    (["sweep", SWEEP, "--workdir=W", "--index=-1"], "index=-1"),
    (["sweep", SWEEP, "--workdir=W", "--index=1", "--workers=2"], "only one of them may be given"),
    (["sweep", SWEEP, "--workdir=W", "--workers=0"], "workers=0"),
    (["sweep", "--workdir=W"], "is not a sweep directory"),
    (["sweep", "--status", "--workdir=W"], "is not a sweep directory"),
    (["train", DIGITS, "--workdir=W", "--workers=2"], "--workers belongs to sweep"),
    (["train", "--config=W.json", "--workdir=W"], "which does not hold a run's config: there is no such file"),
    (
        ["train", DIGITS, "--config.data.augment.enlarge=(1.0,2.0)", "--workdir=W"],
        "pad is 1 and data.augment.enlarge is (1.0, 2.0)",
    ),
    (["train", DIGITS, "--config.data.augment.area=(0.5,2.0)", "--workdir=W"], "with 0.001 ≤ least ≤ most ≤ 1"),
    (
        ["train", DIGITS, "--config.data.augment.color=0.1", "--workdir=W"],
        "color must be 0 for gray images, not 0.1",
    ),
    (["train", DIGITS, "--config.train.warm_start=configs", "--workdir=W"], "configs is not a run directory"),
    (["train", DIGITS, "--config.data.mean=(0.1,0.2)", "--workdir=W"], "one number (gray) or three (RGB)"),
    (["train", DIGITS, "--config.data.name=folder:W", "--workdir=W"], "There is no folder"),
    (["train", DIGITS, "--config.data.test_split=val", "--workdir=W"], "The digits have only the splits 'train' and 'test'"),
    (
        ["train", DIGITS, "--config.data.test_share=1.0", "--workdir=W"],
        "data.test_share must be a number between 0 and 1, not 1.0",
    ),
    (["describe"], "describe takes one network"),
    (["describe", "resnet20", DIGITS], "describe takes one network"),
    (["describe", "reznet56"], "nearest is 'resnet56'"),
    (["describe", "resnet20", "--all"], "--all describes every network as published"),
    (["describe", DIGITS, "--all"], "--all describes every network as published"),
    (["describe", "--list", "resnet20"], "--list names all that there is"),
    (["describe", "--list", "--all"], "--list names all that there is"),
    (["train", DIGITS, "--workdir=W", "--list"], "--list belongs to describe"),
    (["describe", "--all", "--image_size=64"], "--all describes every network as published"),
    (["describe", "--all", "--num_classes=10"], "--all describes every network as published"),
    (["train", DIGITS, "--workdir=W", "--all"], "--all belongs to describe"),
    (["describe", "vgg16", "--image_size=32"], "needs images of at least 224×224 pixels, not 32×32"),
    (["describe", "resnet56", "--image_size=2"], "4×4 pixels, not 2×2"),
    (["describe", "resnet56", "--image_size=-2"], "image_size=-2"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_mistakes_cost_one_sentence(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    workdir = tmp_path / "run"
    assert launch.main([argument.replace("=W", f"={workdir}") for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not hold a run's config"),
        ("[]", "does not hold a run's config"),
        ("{}", "it names no network"),
        ('{"model": {"name": "resnet20"}, "train": {"stepz": 1}}', "whose key 'train.stepz' does not exist"),
    ],
)
def test_json_that_is_no_config(tmp_path, capsys, content, message):
    (tmp_path / "config.json").write_text(content)
    for flag in ([f"--config={tmp_path}/config.json"], ["--config", f"{tmp_path}/config.json"]):
        assert launch.main(["train", *flag, f"--workdir={tmp_path / 'deep' / 'run'}"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "deep").exists()


def test_mistake_of_a_sweep_by_workers_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = [SWEEP, "--config.data.name=folder:nowhere", f"--workdir={tmp_path / 'sweep'}", "--workers=2"]
    assert launch.main(["sweep", *flags]) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert cli.run(lambda options, arguments: pytest.fail("an experiment ran"), ["--dry_run"]) == 2


def launched(*arguments, **options):
    return subprocess.run([sys.executable, "launch.py", *arguments], cwd=ROOT, capture_output=True, text=True, **options)


def test_status_reaches_the_shell():
    result = launched("train", "--config=configs/digits.py:resnet57", "--workdir=runs/never")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert not (ROOT / "runs" / "never").exists()


def test_help_is_quick_because_it_imports_no_jax():
    code = "import launch, sys; status = launch.main(['--help']); sys.exit(status or 10 * ('jax' in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "launch.py train" in result.stdout
    assert "--workdir" in result.stdout


def test_recipes_are_found_from_any_folder_but_a_users_own_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags in (["--config=configs/digits.py:plain32"], ["--config", "configs/digits.py:plain32"]):
        config = parse(flags)[0].config
        assert (config.model.name, config.data.name) == ("plain32", "digits")
    own = "from plain56.configs import cifar10\n\n\ndef get_config(name):\n    return cifar10.get_config(name)\n"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text(own)
    assert parse(["--config=configs/digits.py:plain32"])[0].config.data.name == "cifar10"
    # The other recipes are still there, and are made of the shipped ones.
    assert parse(["--config=configs/sweeps/degradation.py"])[0].config.data.name == "digits"


def test_version(capsys):
    assert launch.main(["--version"]) == 0
    assert capsys.readouterr().out == f"plain56 {plain56.__version__}\n"


def described(capsys, *arguments):
    """What `describe` prints, and its last line as a dictionary."""
    assert launch.main(["describe", *arguments]) == 0
    printed = capsys.readouterr().out
    return printed, json.loads(printed.splitlines()[-1])


def test_describe_prints_the_stages_and_one_json_line():
    result = launched("describe", "resnet56", check=True)
    assert re.search(r"total +│ +│ +853,018 │ +125.486 │ +4.260 │ +249 │", result.stdout)
    last = json.loads(result.stdout.splitlines()[-1])
    assert (last["image_shape"], last["num_classes"]) == ([32, 32, 3], 10)
    assert (last["parameters"], last["multiply_adds"]) == (853_018, 125_485_696)
    assert last["effective_depth"] == 29 and "Effective depth: 29 layers" in result.stdout
    assert [stage["receptive_field"] for stage in last["stages"]] == [3, 39, 109, 249, None]


def test_describe_takes_the_published_size_unless_told(capsys):
    _, published = described(capsys, "vgg11")
    assert (published["image_shape"], published["num_classes"]) == ([224, 224, 3], 1000)
    _, other = described(capsys, "resnet18", "--image_size=64", "--num_classes=200")
    assert (other["image_shape"], other["num_classes"]) == ([64, 64, 3], 200)
    assert other["parameters"] == 11_689_512 - 800 * 513
    _, small = described(capsys, "--config=configs/digits.py:vgg11")
    assert (small["image_shape"], small["num_classes"]) == ([32, 32, 1], 10)


def test_describe_shows_auxiliary_heads_and_what_reductions_save(capsys):
    printed, result = described(capsys, "googlenet")
    assert result["parameters"] == 13_378_280
    assert "auxiliary4a *" in printed
    assert "* only in training" in printed
    assert re.search(r"total +│ +5.85 │ +24.16 │ +76 % │ +1,103.97 │ +3,947.85 │ +72 % │", printed)
    assert len(result["savings"]) == 9


def test_describe_says_what_is_not_in_the_paper(capsys):
    line = "not in the paper: a plain network of bottlenecks"
    assert line in described(capsys, "plain50")[0]
    for name in ("plain34", "resnet50", "plain50_cifar"):
        assert line not in described(capsys, name)[0]


def test_describe_all(capsys, monkeypatch):
    monkeypatch.setattr("plain56.models.list_models", lambda: ["plain20", "vgg11_bn"])
    printed, result = described(capsys, "--all")
    assert re.search(r"10 classes, 32×32 .*?plain20 +│ +20 │ +269,722 │ +40.551 │ +1.491 │ +81 │", printed, re.DOTALL)
    images = "1000 classes, 224×224 "
    assert re.search(rf"{images}.*?vgg11_bn +│ +11 │ +132,868,840 │ +7,609.090 │ +65.595 │ +150 │", printed, re.DOTALL)
    assert [network["layers"] for network in result["networks"]] == [20, 11]


@pytest.mark.slow
def test_describe_all_has_every_published_network(capsys):
    networks = {network["model"]: network for network in described(capsys, "--all")[1]["networks"]}
    assert set(networks) == set(PARAMETERS)
    for name, ((num_classes, image_shape), parameters) in PARAMETERS.items():
        network = networks[name]
        assert (network["num_classes"], tuple(network["image_shape"])) == (num_classes, image_shape)
        assert network["parameters"] == parameters


def test_describe_takes_a_config(capsys):
    flags = ["--config=configs/digits.py:resnet56", "--config.model.shortcut=B", "--image_size=8"]
    assert described(capsys, *flags)[1]["parameters"] == 855_770 - 2 * 9 * 16


def test_a_config_file_that_fails_is_a_mistake(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def get_config():\n    return 1 / 0\n")
    assert launch.main(["train", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.endswith("division by zero.\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_interrupted_run_saves_first_and_goes_on(tmp_path, number):
    workdir = f"--workdir={tmp_path / 'run'}"
    flags = ["--config=configs/digits.py:plain8", "--config.model.widths=(4,4,4)", "--config.train.batch_size=32", workdir]
    flags.append("--config.train.steps=100000")
    # Tests that run in the background of a shell ignore Ctrl-C; this process does not.
    listen = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import launch, signal, sys; {listen}; sys.exit(launch.main(sys.argv[1:]))"
    run = runs.Run(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", code, "train", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(process, lambda: run.metrics("train"))
            # Another launch on the same directory is told which process holds it.
            other = launched("train", *flags)
            assert other.returncode == 2
            assert re.match(
                rf"error: {run.path} is held by process {process.pid} on .*; wait for it to end, or stop it.\n", other.stderr
            )
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 75
    stopped = re.search(
        rf"Interrupted \(stopped by {number.name}, after saving at step (\d+)\); the same command goes on", errors
    )
    saved = int(stopped[1])
    assert (run.status().state, run.status().step) == ("preempted", saved)
    assert (run.checkpoints / str(saved)).is_dir()
    records = run.metrics("train")
    assert [record["step"] for record in records] == list(range(20, saved + 1, 20)), "the interruption left a record"
    stop = saved - saved % 20 + 40
    continued = launched("train", *flags, f"--config.train.stop_after={stop}", check=True)
    assert json.loads(continued.stdout.splitlines()[-1])["step"] == stop
    assert [record["step"] for record in run.metrics("train")] == list(range(20, stop + 1, 20))
    assert run.metrics("train")[: len(records)] == records


def test_train_then_evaluate(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    small = ["--config.train.steps=10", "--config.optimizer.schedule.warmup_steps=2", "--config.model.widths=(4,4,4)"]
    trained = launched("train", "--config=configs/digits.py:plain8", *small, workdir, check=True)
    status = json.loads(trained.stdout.splitlines()[-1])
    assert (status["state"], status["step"]) == ("finished", 10)
    # A run needs neither TensorFlow nor PyTorch.
    imported = "bool({'tensorflow', 'torch'} & set(sys.modules))"
    code = f"import launch, sys; sys.exit(launch.main(['evaluate', {workdir!r}]) or {imported})"
    evaluated = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    result = json.loads(evaluated.stdout.splitlines()[-1])
    assert (result["step"], result["examples"]) == (10, 449)
    for told in (evaluated, trained):  # a run ends with its newest loss and errors
        assert f"{100 * result['top1_error']:.2f} %" in told.stdout
    assert f"{result['loss']:.4f}" in trained.stdout
    shown = trained.stderr.splitlines()[-1]
    assert re.fullmatch(rf"100% plain8 loss [\d.]+ error [\d.]+% test {100 * result['top1_error']:.1f}% [\d,]+ img/s", shown)


@pytest.mark.slow
def test_diverged_run_exits_with_1(tmp_path):
    flags = ["--config.optimizer.learning_rate=1e30", "--config.optimizer.schedule.warmup_learning_rate=1e30"]
    result = launched("train", "--config=configs/digits.py:plain8", *flags, f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 1
    assert json.loads(result.stdout.splitlines()[-1])["state"] == "diverged"
    assert "diverged: the update at step" in result.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_streams_may_be_closed(closed):
    shown = subprocess.run(["sh", "-c", f"{sys.executable} launch.py describe resnet20 {closed}"], cwd=ROOT, capture_output=True)
    if closed == "2>&-":
        assert shown.returncode == 0 and b"total" in shown.stdout
    else:
        told = b"error: The result could not be printed (it is closed); all else is done.\n"
        assert (shown.returncode, shown.stderr) == (1, told)


@pytest.mark.parametrize("full", [">/dev/full", "2>/dev/full"])
def test_streams_may_be_full(full, tmp_path, tiny_config):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.to_dict()))
    train = f"{sys.executable} launch.py train --config={tmp_path / 'config.json'} --workdir={tmp_path / 'run'}"
    shown = subprocess.run(["sh", "-c", f"{train} {full}"], cwd=ROOT, capture_output=True, text=True)
    assert runs.Run(tmp_path / "run").status().state == "finished"
    if full == "2>/dev/full":
        assert shown.returncode == 0 and json.loads(shown.stdout.splitlines()[-1])["state"] == "finished"
    else:
        last = "error: The result could not be printed (No space left on device); all else is done."
        assert shown.returncode == 1 and shown.stderr.splitlines()[-1] == last


def test_ascii_locale():
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    shown = subprocess.run([sys.executable, "launch.py", "describe", "resnet8"], cwd=ROOT, env=environment, capture_output=True)
    assert shown.returncode == 0 and b"32?32?3 images" in shown.stdout, shown.stderr


@pytest.mark.parametrize(("stream", "status"), [("stdout", 0), ("stderr", 2)])
def test_reader_that_leaves_changes_no_exit_status(stream, status):
    arguments = ["describe", "resnet20" if status == 0 else "resnet21"]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, stream: subprocess.PIPE}
    with subprocess.Popen([sys.executable, "launch.py", *arguments], cwd=ROOT, **streams) as process:
        getattr(process, stream).close()
        errors = b"" if stream == "stderr" else process.stderr.read()
    assert (process.returncode, errors) == (status, b"")


def test_lack_of_memory_is_told_in_a_sentence(finished_run, monkeypatch, capsys):
    def too_large(config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nMore.")

    monkeypatch.setattr(training.evaluate, "prepare", too_large)
    assert launch.main(["evaluate", f"--workdir={finished_run}"]) == 2
    reason = "not enough memory (RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes); use a device with more memory"
    assert f"error: There is {reason}" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["train", cli.WEIGHTS_EXPERIMENT])
def test_a_directory_is_in_the_users_home(mode):
    options, _ = parse(["--workdir=~/runs"], mode)
    assert options.workdir == str(Path.home() / "runs")
