"""Weights from outside: whatever is in them or at their path, they load or cost one sentence, and no other file is read."""

import copy
import json
import os
import shutil
import struct
import subprocess
import sys
import types
import zipfile

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs import digits
from plain56 import pretrained
from plain56.errors import UserError
from plain56.models import create_model
from plain56.runs import keys
from plain56.training import initial_weights
from plain56.weights import formats
from plain56.weights.pytorch import to_pytorch
from plain56.weights.variables import foreign
from tests.test_weights import SHAPES, VALUES, torch  # noqa: F401 (a fixture)

SHAPE = (8, 8, 1)
DESCRIPTION = {
    "model": "resnet8",
    "options": {"widths": [4, 4, 8], "epsilon": 1e-3, "shortcut": "A"},
    "image_shape": list(SHAPE),
    "mean": [0.3],
    "std": [0.25],
    "class_names": [str(i) for i in range(10)],
}
# What is sound besides the description above; of some options None means as published, as where they are left out.
SOUND = {
    "class_names": [[]],
    "mean": [[1], [0.5]],
    "std": [[1], [0.5]],
    "options.epsilon": [None, 1, 3, 8.0],
    "options.shortcut": [None],
    "options.bottleneck_stride": [None],
    **{f"options.{key}": [None, True] for key in ("remat", "zero_init")},
    # Of the published ones.
    "options.normalization": [None, "group", "layer"],
    "options.negative_slope": [None],
    "options.pre_activation": [None],
}
OPTIONS = ("epsilon", "shortcut", "widths", "normalization", "remat", "zero_init", "pre_activation", "bottleneck_stride", "dtype")
OPTIONS += ("negative_slope",)
OTHERS = ("form", "dropout", "auxiliary", "momentum", "num_classes", "name", "nonsense")
KEYS = [*DESCRIPTION, *(f"options.{key}" for key in OPTIONS + OTHERS)]


@pytest.fixture(scope="module")
def tensors():
    model = create_model("resnet8", 10, widths=(4, 4, 8))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
    generator = np.random.default_rng(0)
    positive = jax.tree.map(lambda leaf: generator.uniform(0.1, 1, leaf.shape).astype(np.float32), dict(shapes))
    return {name: np.ascontiguousarray(tensor) for name, tensor in to_pytorch("resnet8", positive).items()}


@pytest.fixture
def write(tensors, tmp_path):
    """Writes the network's tensors, some of them changed, with a description, and gives the path."""

    def write(description=DESCRIPTION, **changed):
        text = description if isinstance(description, str) else json.dumps(description)
        path = tmp_path / "weights.safetensors"
        safetensors.numpy.save_file(tensors | {key.replace("__", "."): v for key, v in changed.items()}, path, {"plain56": text})
        return path

    return write


def beginning_with(source):
    config = digits.get_config("resnet8")
    config.transfer.weights = str(source)
    return config


def refusal(path, load=pretrained.load_pretrained, **options):
    """The sentence that a source costs, which names it."""
    with pytest.raises(UserError) as refused:
        load(path, **options)
    text = str(refused.value)
    assert str(path) in text and "\n" not in text and len(text) < 1000
    return text


def described(key, value):
    description = copy.deepcopy(DESCRIPTION)
    *outer, last = key.split(".")
    (description[outer[0]] if outer else description)[last] = value
    return description


def is_sound(key, value):
    """As JSON writes it: 1 is neither true nor 1.0."""
    return json.dumps(value) in map(json.dumps, SOUND.get(key, []))


@pytest.mark.parametrize("key", KEYS)
def test_any_value_in_a_description(write, key):
    for value in VALUES + SHAPES:
        path = write(described(key, value))
        if is_sound(key, value):
            module, variables, _ = pretrained.load_pretrained(path)
            assert variables["params"]["head"]["kernel"].shape == (8, 10)
            if key == "options.epsilon" and value is not None:
                assert module.numerics.epsilon == value
        else:
            refusal(path)


def test_keys_and_text_of_a_description(write):
    assert pretrained._load(write())[2].image_shape == SHAPE
    for key in DESCRIPTION:
        path = write({name: value for name, value in DESCRIPTION.items() if name != key})
        if key == "class_names":
            assert pretrained._load(path)[2].class_names == ()
        else:
            refusal(path)
    assert "it must have the keys model, options" in refusal(write(DESCRIPTION | {"more": 1}))
    deep = "[" * 100_000
    for text in ("", "{", "null", "3", '"x"', "[]", "[1]", deep, json.dumps(DESCRIPTION).replace("0.3", "NaN"), "9" * 5000):
        refusal(write(text))
    # Gray images have one channel, and names are as many as classes.
    refusal(write(DESCRIPTION | {"mean": [0.3] * 3, "std": [0.3] * 3}))
    refusal(write(DESCRIPTION | {"std": [0.3] * 3}))
    assert "has names for 2 classes, and its last layer has 10" in refusal(write(DESCRIPTION | {"class_names": ["a", "b"]}))
    assert "There is no network" in refusal(write(DESCRIPTION | {"model": "x" * 1_000_000}))


def test_a_description_of_an_earlier_version(monkeypatch):
    monkeypatch.setitem(keys.RENAMED, "model.residual_widths", ("model.widths", {}))
    assert formats.describe("FILE", DESCRIPTION | {"options": {"residual_widths": [4, 4, 8]}}).options == {"widths": (4, 4, 8)}


def test_a_description_is_checked_wherever_weights_are_used(write, tmp_path):
    path = write(DESCRIPTION | {"mean": 3})
    refusal(path, pretrained.predict, pictures=[])
    refusal(path, lambda source: pretrained.save_pretrained(tmp_path / "copy.safetensors", source))
    refusal(path, lambda source: initial_weights.choose(beginning_with(source)))
    refusal(path, lambda source: pretrained.evaluate_weights(digits.get_config("resnet8"), source))
    assert not (tmp_path / "copy.safetensors").exists()


def test_values_that_no_network_has(write, tensors):
    weight, variance = tensors["linear.weight"], tensors["bn1.running_var"]
    wide = np.full(weight.shape, 1e300)
    assert "'linear.weight' has values that are not finite" in refusal(write(linear__weight=wide))
    refusal(write(linear__weight=weight * np.nan))
    assert "'bn1.running_var' has negative values" in refusal(write(bn1__running_var=variance - 2))
    refusal(write(bn1__running_var=np.full_like(variance, -1e-30)))
    pretrained.load_pretrained(write(bn1__running_var=variance * 0))
    for kind in (bool, np.complex64):
        refusal(write(linear__weight=weight.astype(kind)))
    assert "is there twice" in refusal(write(**{"module.linear.bias": tensors["linear.bias"]}))
    loaded = pretrained.load_pretrained(write(linear__weight=weight.astype(np.float64)))[1]
    np.testing.assert_array_equal(loaded["params"]["head"]["kernel"], weight.T)


def test_results_that_are_not_finite_are_none(write, tensors, tmp_path):
    cv2.imwrite(str(tmp_path / "picture.png"), np.eye(8, dtype=np.uint8) * 255)
    # Each is finite, and their sum is not.
    path = write(linear__weight=np.full_like(tensors["linear.weight"], 3e38))
    assert "probabilities that are not finite" in refusal(path, pretrained.predict, pictures=[tmp_path / "picture.png"])
    config = digits.get_config("resnet8")
    config.model.widths = (4, 4, 8)
    assert "a loss that is not finite" in refusal(path, lambda source: pretrained.evaluate_weights(config, source))


def test_a_long_picture_takes_no_memory():
    with pytest.raises(UserError, match="65500×1 pixels is too long"):
        pretrained.preprocess(np.zeros((1, 65_500, 3), np.uint8), foreign("resnet50", {}))


def safetensors_file(path, header, size=0):
    """A file of zeros, which take no space on the disk, with a header of one's own."""
    header = json.dumps(header).encode() if isinstance(header, dict) else header
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return path


TYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "U8": 1, "U16": 2, "U32": 4, "U64": 8}
OTHER_TYPES = {"BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8, "F4": 0.5, "F6_E2M3": 0.75, "X": 1}


@pytest.mark.parametrize(("kind", "size"), (TYPES | OTHER_TYPES).items())
def test_types_of_safetensors(tmp_path, kind, size):
    end = int(8 * size)
    header = {"a": {"dtype": kind, "shape": [8], "data_offsets": [0, end]}}
    path = safetensors_file(tmp_path / "a.safetensors", header, end)
    if kind in OTHER_TYPES:
        refusal(path, formats.read)
    else:
        array = formats.read(path)[0]["a"]
        assert array.dtype == np.float32 and array.tolist() == [0] * 8


def test_bfloat16_keeps_its_values(tmp_path):
    import ml_dtypes

    values = np.array([1, -0.5, 3.0, 2.0**100], ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"a": values}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(formats.read(tmp_path / "a.safetensors")[0]["a"], values.astype(np.float32))


def test_odd_headers_of_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    tensor = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    assert formats.read(safetensors_file(path, {"a": tensor}, 4))[0]["a"].shape == ()
    assert "cannot be loaded as resnet8" in refusal(safetensors_file(path, {"linear.bias": tensor}, 4), model="resnet8")
    assert formats.read(safetensors_file(path, {}))[0] == {}
    for header in (
        {"a": tensor | {"shape": [2**40, 2**40]}},
        {"a": tensor | {"shape": [0, 2**63], "data_offsets": [0, 0]}},
        {"a": tensor | {"shape": [-1]}},
        {"a": tensor | {"shape": [2]}},
        {"a": tensor | {"data_offsets": [4, 0]}},
        {"a": tensor, "b": tensor},
        {"a": 3},
        {"__metadata__": {"plain56": 3}},
        {"__metadata__": []},
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"a":' * 10_000,
    ):
        refusal(safetensors_file(path, header, 4), formats.read)
    for length in (0, 7, 2**40, 2**63, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        refusal(path, formats.read)


def test_large_tensors_of_safetensors_take_no_memory(tmp_path):
    path, size = tmp_path / "a.safetensors", 1 << 42
    header = {"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    try:
        safetensors_file(path, header, size)
    except OSError:
        pytest.skip("needs a file system with files of 4 TiB")
    assert "declares 4096.0 GiB" in refusal(path, formats.read)


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu124"])
def test_a_pytorch_that_could_run_code_reads_nothing(tmp_path, monkeypatch, version):
    # Without a function `load`: it is not called.
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=version))
    (tmp_path / "a.pth").write_bytes(b"")
    text = refusal(tmp_path / "a.pth", formats.read)
    assert f"needs PyTorch 2.6 or newer to be read ({version} is installed)" in text and "pip install 'plain56[torch]'" in text


def odd_tensors(torch):  # noqa: F811
    """Tensors that are none of real numbers, one after another in memory."""
    ones = torch.ones(3)
    return {
        "sparse": torch.eye(3).to_sparse(),
        "sparse rows": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(ones, 0.1, 0, torch.quint8),
        "meta": torch.empty(3, device="meta"),
        "large meta": torch.empty(2**50, device="meta"),
        "nested": torch.nested.nested_tensor([ones, torch.ones(2)]),
        "complex": ones.to(torch.complex64),
        "half complex": ones.to(torch.complex32),
        "bool": ones.bool(),
        "large": torch.zeros(1).expand(2**50),
        "large half": torch.zeros(1).half().expand(2**50),
        "too large in float32": torch.full((3,), 1e300, dtype=torch.float64),
        "nan": ones * float("nan"),
        "text": "x",
        "nothing": None,
        "number": 3,
        "dict": {"weight": ones},
        "list": [ones],
    }


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of what it writes here
def test_tensors_of_pytorch_files(torch, tmp_path):  # noqa: F811
    for kind, tensor in odd_tensors(torch).items():
        torch.save({"a": tensor}, tmp_path / f"{kind}.pth")
        refusal(tmp_path / f"{kind}.pth", formats.read)
    for key in (0, None, b"a", 1.5, (1, 2)):
        torch.save({"a": torch.ones(3), key: torch.ones(3)}, tmp_path / "key.pth")
        assert "holds no tensors by name" in refusal(tmp_path / "key.pth", formats.read)
    ones = torch.ones(2, 3)
    for sound in (ones.half(), ones.bfloat16(), ones.double(), ones.t(), ones[:, ::2], torch.nn.Parameter(ones), ones.long()):
        torch.save({"state_dict": {"a": sound}}, tmp_path / "sound.pth")
        np.testing.assert_array_equal(formats.read(tmp_path / "sound.pth")[0]["a"], np.ones(tuple(sound.shape), np.float32))


@pytest.mark.torch
def test_a_compressed_pytorch_file_takes_no_memory(torch, tmp_path, monkeypatch):  # noqa: F811
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    assert (tmp_path / "small.pth").stat().st_size < 2**16
    monkeypatch.setattr(formats.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=2**23))
    assert "a quarter of what is free" in refusal(tmp_path / "small.pth", formats.read)


@pytest.fixture
def odd_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pipe", "pipe.safetensors", "pipe.pth", "pipe.h5"):
        os.mkfifo(name)
    (tmp_path / "dangling.safetensors").symlink_to("nowhere")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "folder.stablehlo").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "no_run").mkdir()
    (tmp_path / "no_run" / "config.json").write_text('{"model": 3}')


PATHS = ["~nosuchuser/x", "~nosuchuser/x.safetensors", "x" * 300, "x" * 300 + ".h5", "x" * 9000, "a\0b", "a\0b.pth", "", "."]
PATHS += ["pipe", "pipe.safetensors", "pipe.pth", "pipe.h5", "dangling.safetensors", "loop.safetensors", "folder", "no_run"]
PATHS += ["folder.safetensors", "file", "file/x.safetensors", "/dev/null", "/dev/zero"]


@pytest.mark.usefixtures("odd_paths")
@pytest.mark.parametrize("path", PATHS, ids=lambda path: repr(path[:20]))
def test_odd_paths_of_weights(path):
    for use in (lambda: formats.read(path), lambda: initial_weights.choose(beginning_with(path))):
        with pytest.raises(UserError) as refused:
            use()
        assert "\n" not in str(refused.value)


TARGETS = ["~nosuchuser/x.safetensors", "x" * 300 + ".safetensors", "a\0b.safetensors", "a\0b.stablehlo", "folder.safetensors"]
TARGETS += ["folder.stablehlo", "file/x.safetensors", "pipe.safetensors", "loop.safetensors", "", ".", "x.pth"]


@pytest.mark.usefixtures("odd_paths")
@pytest.mark.parametrize("path", TARGETS, ids=lambda path: repr(path[:20]))
def test_odd_paths_to_write(write, tmp_path, path):
    source = write()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as refused:
        pretrained.save_pretrained(path, source)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_home_is_understood_where_weights_are_written(write, tmp_path, monkeypatch):
    source = write()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    pretrained.save_pretrained("~/new/copy.safetensors", source)
    assert (tmp_path / "home" / "new" / "copy.safetensors").exists()
    jax.tree.map(np.testing.assert_array_equal, formats.read("~/new/copy.safetensors")[0], formats.read(source)[0])
    # As other files: for all whom the user lets read them.
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "home" / "new" / "copy.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_leaves_nothing(write, tmp_path):
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    source, disk = write(), tmp_path / "disk"
    disk.mkdir()
    program = f"""
from plain56 import pretrained
from plain56.errors import UserError
try:
    pretrained.save_pretrained({str(disk / "x.safetensors")!r}, {str(source)!r})
except UserError as error:
    print(error)
"""
    script = f'mount -t tmpfs -o size=4k none {disk} || exit 77; {sys.executable} -c "$1"; ls -A {disk}'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", program]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip(f"needs a disk of one's own: {done.stderr}")
    assert done.stdout == f"{disk / 'x.safetensors'} cannot be written: No space left on device.\n", done.stderr
