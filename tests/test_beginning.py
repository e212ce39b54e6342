"""What a run says when it begins."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import launch
from plain56.models import create_model
from plain56.ops import native
from plain56.training import prepare, train
from plain56.training.beginning import INSTRUCTIONS, convolved_by, describe
from tests.fixtures.sets import RGB, noise, png

ROOT = Path(__file__).parent.parent


def told(config, workdir="runs/x"):
    return describe(prepare(config), workdir)


def test_the_main_job_says_what_it_trains(tiny_config):
    tiny_config.train.stop_after = 8
    tiny_config.data.validation_examples = 48
    text = told(tiny_config)
    devices = text.pop("devices")
    assert text == {
        "network": "resnet8: 1,638 parameters; writes to runs/x",
        "data": "digits: 1,797 pictures of 10 classes: 1,300 to train, 48 to validate, 449 to test, 8×8",
        "training": "12 steps of 32 pictures (0.295 epochs), stops after 8",
    }
    slower = r"portable convolutions by XLA, which are slower \(there are several devices\)"
    assert re.fullmatch(rf"2 CPU devices, \d+ cores?; {slower}", devices)


@pytest.mark.parametrize(
    ("dtype", "lanes", "widths", "devices", "ending"),
    [
        ("float32", 4, (4, 4, 8), 1, "C++ (128-bit vectors, 4 channels at a time)"),
        ("bfloat16", 4, (4, 4, 8), 1, "C++ (128-bit vectors, 4 channels at a time)"),
        # resnet8 has seven convolutions, two in its last stage.
        ("float32", 8, (4, 4, 8), 1, "at a time), but 5 of 7 by XLA, slower: their channels are not a multiple of 8"),
        ("float32", 0, (4, 4, 8), 1, "which are slower (the C++ could not be compiled)"),
        ("bfloat16", 0, (4, 4, 8), 2, "which are slower (there are several devices)"),
        ("float64", 8, (8, 8, 8), 1, "which are slower (float64 is not float32 or bfloat16)"),
    ],
)
def test_a_run_says_what_computes_its_convolutions_and_why(dtype, lanes, widths, devices, ending, monkeypatch):
    monkeypatch.setattr(native, "lanes", lambda dtype="float32": lanes)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    model = create_model("resnet8", 10, widths=widths)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))["params"]
    assert convolved_by(dtype, shapes).endswith(ending)


@pytest.mark.parametrize(
    ("sizes", "what"),
    [((40, 64), "shrunk to 32×32"), ((8, 20), "enlarged to 32×32"), ((8, 40), "resized to 32×32"), ((32, 32), "32×32")],
)
def test_pictures_of_ones_own_are_counted_and_measured(tmp_path, tiny_config, sizes, what):
    for number, name in enumerate(("ant", "bee", "cat", "dog")):
        (tmp_path / name).mkdir()
        for i, image in enumerate(noise(75, sizes[number % 2], 64, 3)):
            (tmp_path / name / f"{i}.png").write_bytes(png(image))
    tiny_config.data.update({"name": f"folder:{tmp_path}", "image_size": 32, "mode": "stream", **RGB})
    text = told(tiny_config)["data"]
    assert text == f"folder:{tmp_path}: 300 pictures of 4 classes: 240 to train, 60 to test, {what}, read while it trains"


def test_the_names_of_instructions_are_those_of_the_source():
    source = native.SOURCE.with_name("simd.h").read_text()
    lanes = [int(number) for number in re.findall(r"constexpr int kLanes = (\d+)", source)]
    assert lanes == list(INSTRUCTIONS)
    assert re.findall(r"#\w*if defined\(__(AVX\w*)__\)\nconstexpr int kLanes", source) == ["AVX512F", "AVX"]


def test_a_run_that_goes_on_says_from_where(tiny_config, stopped_run, caplog):
    with caplog.at_level("INFO", "plain56"):
        train(tiny_config, stopped_run)
    assert "stopped goes on from step 8." in caplog.messages
    lines = [line for message in caplog.messages for line in message.splitlines() if str(stopped_run) not in line]
    assert len(lines) >= 5 and all(len(line) <= 80 for line in lines)


@pytest.mark.slow
def test_a_sweep_says_only_once_what_its_runs_have_in_common(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    flags = ["--config.sweep.depths=(8,)", "--config.model.widths=(4,4,8)", "--config.train.stop_after=2"]
    assert launch.main(["sweep", "--config=configs/sweeps/degradation.py", *flags, f"--workdir={tmp_path / 's'}"]) == 0
    said = capsys.readouterr().err
    for label, times in (("network", 2), ("data", 1), ("training", 1), ("devices", 1)):
        assert len(re.findall(rf"^{label:<10}\S", said, re.MULTILINE)) == times
    assert re.search(r"^1/2 .*plain8-seed0 loss .* error .* test ", said, re.MULTILINE)
    assert re.search(r"^2/2 100% resnet8-seed0 loss .* error .* test ", said, re.MULTILINE)
