"""From a folder of pictures to a network in use: every way of using it gives the same classes."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import plain56
from plain56 import runs
from plain56.config import from_json
from plain56.data import open_test_split
from tests.devices import one_device
from tests.fixtures.sets import noise
from tests.killed import last_line

ROOT = Path(__file__).parent.parent
COLORS = {"blueberry": (60, 60, 200), "cherry": (200, 40, 40), "lemon": (220, 210, 60), "lime": (60, 190, 60)}
KINDS = [("jpg", "RGB"), ("png", "RGB"), ("webp", "RGB"), ("png", "P"), ("png", "RGBA"), ("jpg", "CMYK")]


def write_pictures(folder):
    """Fruits of four colors, in files of different kinds and sizes."""
    random = np.random.default_rng(0)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(20):
            suffix, mode = KINDS[number % len(KINDS)]
            height, width = (int(side) for side in random.integers(20, 70, 2))
            spots = cv2.resize(noise(1, 5, 5, 3)[0], (width, height)).astype(int) - 128
            image = Image.fromarray(np.clip(spots // 4 + color + random.integers(-20, 20, 3), 0, 255).astype(np.uint8))
            image.convert(mode).save(folder / name / f"{number:02}.{suffix}")


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """A folder with pictures, and what `launch.py` makes of them, by the names of the guide."""
    folder = tmp_path_factory.mktemp("own")
    write_pictures(folder / "pictures")
    run, weights = f"--workdir={folder / 'runs' / 'finetuned'}", folder / "finetuned.safetensors"
    in_color = ("--config.data.mean=(0.5,0.5,0.5)", "--config.data.std=(0.25,0.25,0.25)", "--config.data.image_size=16")
    small = ("--config.model.widths=(8,8,16)", "--config.train.stop_after=30", "--config.optimizer.schedule.warmup_steps=5")
    last_line("train", "--config=configs/digits.py:resnet8", *in_color, *small, f"--workdir={folder / 'runs' / 'first'}")
    data = ("--config.data.name=folder:pictures", f"--config.data.dir={folder}")
    steps = ("--config.train.steps=80", "--config.optimizer.schedule.warmup_steps=8", "--config.train.batch_size=16")
    start = f"--weights={folder / 'runs' / 'first'}"
    assert last_line("finetune", "--config=configs/finetune.py", start, *data, *steps, run)["state"] == "finished"
    for file in (weights, weights.with_suffix(".stablehlo")):
        last_line("export", run, f"--weights={file}")
    (folder / "finetuned.json").write_text((folder / "runs" / "finetuned" / "environment.json").read_text())
    return folder


@pytest.fixture(scope="module")
def tested(finetuned):
    """The paths of the pictures in the test split, and their classes."""
    config = from_json(runs.read_run(finetuned / "runs" / "finetuned").config())
    pictures, class_names = open_test_split(config.data)
    assert class_names == sorted(COLORS)
    paths = [pictures.name(i) for i in range(pictures.count)]
    return paths, [Path(path).parent.name for path in paths]


@pytest.mark.slow
def test_evaluate_predict_and_the_python_api_agree(finetuned, tested):
    paths, classes = tested
    assert sorted(classes) == sorted([*COLORS] * 4)  # a fifth of 20
    weights = f"--weights={finetuned / 'finetuned.safetensors'}"
    evaluated = last_line("evaluate", f"--workdir={finetuned / 'runs' / 'finetuned'}")
    assert evaluated["top1_error"] < 0.4
    predictions = last_line("predict", weights, *paths)["predictions"]
    assert [prediction["picture"] for prediction in predictions] == paths
    likeliest = [prediction["top5"][0] for prediction in predictions]
    assert np.mean([guess["class"] != name for guess, name in zip(likeliest, classes, strict=True)]) == evaluated["top1_error"]
    of_file = last_line("evaluate", f"--config={finetuned / 'runs' / 'finetuned' / 'config.json'}", weights)
    assert of_file["top1_error"] == evaluated["top1_error"] and of_file["loss"] == pytest.approx(evaluated["loss"], rel=1e-5)

    module, variables, preprocess = plain56.load_pretrained(finetuned / "finetuned.safetensors")
    assert preprocess.class_names == tuple(sorted(COLORS))
    with contextlib.ExitStack() as files:
        images = preprocess([files.enter_context(Image.open(path)) for path in paths])
    logits = module.apply(variables, images).logits
    probabilities = jax.nn.softmax(logits)
    assert [preprocess.class_names[i] for i in np.argmax(logits, axis=-1)] == [guess["class"] for guess in likeliest]
    np.testing.assert_allclose(probabilities.max(axis=-1), [guess["probability"] for guess in likeliest], atol=1e-5)


@pytest.mark.slow
def test_the_guides_program_runs_without_plain56(finetuned, tested, tmp_path):
    """The guide's own block in a process that can import neither plain56 nor Flax, and then the pictures of the test split."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/guide.md").read_text(), re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if "deserialize" in block]
    module, variables, preprocess = plain56.load_pretrained(finetuned / "finetuned.safetensors")
    images = preprocess(tested[0])
    mean, std = (np.array(values) for values in (preprocess.about.mean, preprocess.about.std))
    pixels = np.round((np.asarray(images) * std + mean) * 255).astype(np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    program = f"""
import sys
sys.modules.update(plain56=None, flax=None)
{block}
assert logits.shape == (2, 4) and (height, width, channels) == (16, 16, 3)
logits = network.call(np.load({str(tmp_path / "pixels.npy")!r}))
assert logits.dtype == np.float32
np.save({str(tmp_path / "logits.npy")!r}, logits)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=finetuned, env=one_device(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\['(\w+)', '\1'\]\n", done.stdout) and done.stdout.split("'")[1] in COLORS
    expected = module.apply(variables, images).logits
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=0, atol=1e-4)
