"""Weights in files: there and back, through networks that we did not write, and what must be refused."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import launch
import plain56
from plain56 import pretrained, runs, training
from plain56.data import read_picture
from plain56.errors import UserError
from plain56.machine import cache_folder
from plain56.models import create_model
from plain56.training import initial_weights
from plain56.weights import formats
from plain56.weights.pytorch import from_pytorch, to_pytorch
from plain56.weights.variables import foreign
from tests.devices import one_device

ROOT = Path(__file__).parent.parent
KINDS = [
    ("resnet20", {}),
    ("plain20", {}),
    ("resnet14", {"shortcut": "B"}),
    ("resnet14", {"shortcut": "C", "widths": (4, 8, 8)}),
    ("resnet14", {"pre_activation": True}),
    ("resnet152_cifar", {}),
    ("plain34", {}),
    pytest.param("vgg11_lrn", {}, marks=pytest.mark.slow),
    ("resnet14", {"fixup": True, "normalization": "none"}),
    ("resnet14", {"branch_scale": "learned_zero", "normalization": "group"}),
    ("plain14", {"kernel": "dirac"}),
    ("vgg16_1x1", {"form": "small"}),
    ("vgg13_bn", {"form": "small"}),
    ("googlenet", {}),
    ("googlenet", {"auxiliary": False}),
    ("googlenet_bn", {"form": "small"}),
]

# Every type of JSON, and numbers that only look right.
VALUES = [None, True, 0, 1, -1, 3, 8.0, 1e39, 10**400, "", "x", [], [1], [0.5], [True], ["x"], [None], [[1]], [{}], {}, {"a": 1}]
SHAPES = [[8, 8, 3], [8, 8], [8, 8, 1, 1], [8, 8, 0], [0, 8, 1], [8, -8, 1], [8.0, 8, 1], [8, True, 1], [8, 8, 2], [10**9] * 3]


def random_variables(name, shape, options):
    """Variables without any order among their values."""
    model = create_model(name, 7, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    generator = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: generator.standard_normal(leaf.shape, np.float32), dict(shapes))


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_there_and_back_with_the_same_bits(name, options):
    shape = (224, 224, 3) if name.startswith(("plain34", "vgg11", "googlenet")) and "form" not in options else (32, 32, 1)
    _, variables = random_variables(name, shape, options)
    tensors = to_pytorch(name, variables)
    assert len(tensors) == sum(
        leaf.shape[0] if "stage" in str(path) and "first" not in str(path) else 1
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    )
    returned = from_pytorch(name, {f"module.{key}": tensor for key, tensor in tensors.items()}, shape, **options)
    jax.tree.map(np.testing.assert_array_equal, returned, {"batch_stats": {}, **variables})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a small network on the digits, and its weights in a file."""
    from configs import digits

    folder = tmp_path_factory.mktemp("weights")
    config = digits.get_config("resnet8")
    config.model.widths = (4, 4, 8)
    config.batch_norm.epsilon = 1e-3
    config.train.batch_size, config.train.steps, config.train.steps_per_call = 32, 60, 20
    config.train.evaluate_every = config.train.checkpoint_every = 60
    config.optimizer.schedule.warmup_steps = 6
    training.train(config, folder / "run")
    pretrained.save_pretrained(folder / "digits.safetensors", folder / "run")
    return folder


def test_a_run_equals_its_export(trained, monkeypatch, capsys):
    error = runs.Run(trained / "run").metrics("test")[-1]["top1_error"]
    networks = [plain56.load_pretrained(source) for source in (trained / "run", trained / "digits.safetensors")]
    jax.tree.map(np.testing.assert_array_equal, *(variables for _, variables, _ in networks))
    module, variables, preprocess = networks[1]
    assert module == networks[0][0] and module.numerics.epsilon == 1e-3
    from configs import digits
    from plain56.data import load_dataset

    test = load_dataset(digits.get_config().data).test
    logits = jax.jit(module.apply)(variables, jnp.concatenate([preprocess(image) for image in test.images])).logits
    assert np.mean(np.argmax(logits, -1) != test.labels) == pytest.approx(error)
    monkeypatch.chdir(ROOT)
    config = ["--config=configs/digits.py:resnet8", "--config.batch_norm.epsilon=1e-3"]
    assert launch.main(["evaluate", *config, f"--weights={trained / 'digits.safetensors'}"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["top1_error"] == error


def test_an_exported_program_needs_jax_alone(trained, tmp_path):
    arguments = [f"--workdir={trained / 'run'}", f"--weights={tmp_path / 'digits.stablehlo'}"]
    environment = one_device()  # for which there is native code
    subprocess.run([sys.executable, "launch.py", "export", *arguments], check=True, cwd=ROOT, env=environment)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    program = f"""
import sys, jax.export, numpy as np
program = jax.export.deserialize(open({str(tmp_path / "digits.stablehlo")!r}, "rb").read())
np.save({str(tmp_path / "logits.npy")!r}, program.call(np.load({str(tmp_path / "images.npy")!r})))
assert "plain56" not in sys.modules and "flax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment)
    module, variables, preprocess = pretrained.load_pretrained(trained / "run")
    expected = module.apply(variables, jnp.concatenate([*map(preprocess, images)])).logits
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11_bn", "googlenet_bn", "resnet18", "googlenet"])
def test_every_family_is_exported_without_native_code(tmp_path, monkeypatch, name):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    shape = (224, 224, 3)
    model, variables = random_variables(name, shape, {})
    assert "plain56.Convolution" in jax.jit(model.apply).lower(variables, jnp.zeros((1, *shape))).as_text()
    about = formats.About(name, {}, shape, (0.5,) * 3, (0.5,) * 3)
    (tmp_path / "weights.safetensors").write_bytes(formats.serialize(to_pytorch(name, jax.tree.map(np.abs, variables)), about))
    pretrained.save_pretrained(tmp_path / "program.stablehlo", tmp_path / "weights.safetensors")
    program = jax.export.deserialize((tmp_path / "program.stablehlo").read_bytes())
    assert "plain56.Convolution" not in program.mlir_module()
    assert set(program.platforms) == {"cpu", "cuda", "rocm", "tpu"}


def test_pictures_that_are_not_square():
    about = formats.About("resnet8", {}, (28, 20, 1), (0.0,), (1 / 255,))
    picture = np.arange(28 * 20, dtype=np.uint8).reshape(28, 20, 1)
    np.testing.assert_allclose(pretrained.preprocess(picture, about)[0], picture, atol=1e-4)
    # The middle is cut out along the longer side.
    np.testing.assert_allclose(pretrained.preprocess(np.pad(picture, ((0, 0), (6, 6), (0, 0))), about)[0], picture, atol=1e-4)
    assert pretrained.preprocess(np.zeros((90, 50, 1), np.uint8), about).shape == (1, 28, 20, 1)


def test_a_list_of_pictures_is_a_batch(trained, tmp_path):
    import cv2
    from PIL import Image

    gray = np.random.default_rng(0).integers(0, 256, (12, 10), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "picture.png"), gray)
    _, _, preprocess = plain56.load_pretrained(trained / "digits.safetensors")
    kinds = [tmp_path / "picture.png", str(tmp_path / "picture.png"), Image.fromarray(gray), gray, jnp.asarray(gray)[..., None]]
    batch = preprocess(kinds)
    assert batch.shape == (5, 8, 8, 1) and preprocess(gray).shape == (1, 8, 8, 1)
    for image in batch:
        np.testing.assert_array_equal(image, preprocess(gray)[0])
    with pytest.raises(UserError, match="A list of pictures must not be empty"):
        preprocess([])


def test_classes_have_names_in_the_order_of_the_logits(trained, tmp_path):
    digits = tuple(map(str, range(10)))
    for source in (trained / "run", trained / "digits.safetensors"):
        assert plain56.load_pretrained(source)[2].class_names == digits
    assert plain56.load_pretrained(trained / "run", num_classes=3)[2].class_names == ("0", "1", "2")
    named = changed(trained, tmp_path / "named.safetensors", lambda tensors: None, class_names=[f"the {name}" for name in digits])
    assert plain56.load_pretrained(named)[2].class_names == tuple(f"the {name}" for name in digits)


def test_a_new_last_layer_for_other_classes(trained):
    _, old, _ = pretrained.load_pretrained(trained / "run")
    module, variables, preprocess = pretrained.load_pretrained(trained / "run", num_classes=3)
    assert module.apply(variables, preprocess(np.zeros((8, 8, 1), np.uint8))).logits.shape == (1, 3)
    same = jax.tree.map(np.array_equal, variables["params"] | {"head": 0}, old["params"] | {"head": 0})
    assert jax.tree.all(same)


def test_predict_names_the_classes(trained, tmp_path, monkeypatch, capsys):
    import cv2
    from sklearn.datasets import load_digits

    digits = load_digits()
    names = [str(tmp_path / f"{i}.png") for i in range(10)]
    for i, name in enumerate(names):
        cv2.imwrite(name, np.kron(np.round(digits.images[i] * (255 / 16)), np.ones((8, 8))).astype(np.uint8))
    assert launch.main(["predict", f"--weights={trained / 'digits.safetensors'}", *names]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["predictions"]
    assert [result["picture"] for result in results] == names
    module, variables, preprocess = pretrained.load_pretrained(trained / "run")
    originals = np.round(digits.images[:10] * (255 / 16)).astype(np.uint8)[..., None]
    expected = jnp.argmax(module.apply(variables, jnp.concatenate([*map(preprocess, originals)])).logits, axis=-1)
    assert [result["top5"][0]["class"] for result in results] == list(map(str, expected.tolist()))
    for result in results:
        probabilities = [guess["probability"] for guess in result["top5"]]
        assert probabilities == sorted(probabilities, reverse=True) and 0.5 < sum(probabilities) < 1.0001


def changed(trained, path, change, **described):
    tensors, about = formats.read(trained / "digits.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, path, {"plain56": json.dumps(about._asdict() | described)})
    return path


def test_what_is_wrong_with_a_file_costs_one_sentence(trained, tmp_path):
    good = (trained / "digits.safetensors").read_bytes()
    cases = {
        "absent.safetensors": (None, "There are no weights"),
        "short.safetensors": (good[:-100], "cannot be read as a safetensors file"),
        "page.safetensors": (b"<html>not found</html>", "cannot be read as a safetensors file"),
        "weights.bin": (good, "must end in .safetensors, .pth"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            pretrained.load_pretrained(tmp_path / name)
    nan = changed(trained, tmp_path / "nan.safetensors", lambda t: t["linear.bias"].__setitem__(0, np.nan))
    with pytest.raises(UserError, match="'linear.bias' has values that are not finite"):
        pretrained.load_pretrained(nan)
    less = changed(trained, tmp_path / "less.safetensors", lambda t: t.pop("linear.bias"))
    with pytest.raises(UserError, match="'linear.bias' is missing"):
        pretrained.load_pretrained(less)
    more = changed(trained, tmp_path / "more.safetensors", lambda t: t.update(extra=np.zeros(3)))
    with pytest.raises(UserError, match="'extra' is left over"):
        pretrained.load_pretrained(more)
    with pytest.raises(UserError, match="holds resnet8 with the options .*; neither can be changed"):
        pretrained.load_pretrained(trained / "digits.safetensors", "resnet14")
    safetensors.numpy.save_file(initial_weights.read(trained / "run")[0], tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="does not say which network it holds"):
        pretrained.load_pretrained(tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"'layer1.0.bn1.running_mean' for resnet8 must have shape \(16,\), not \(4,\)"):
        pretrained.load_pretrained(tmp_path / "foreign.safetensors", "resnet8")


def test_weights_for_other_classes_or_another_network_are_not_evaluated(trained, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = f"--weights={trained / 'digits.safetensors'}"
    assert launch.main(["evaluate", "--config=configs/digits.py:resnet14", file]) == 2
    assert "holds resnet8, and the config asks for resnet14" in capsys.readouterr().err
    assert launch.main(["evaluate", "--config=configs/digits.py:resnet8", "--config.data.image_size=9", file]) == 2
    assert "is for images of 8×8×1, and those of the data set are 9×9×1" in capsys.readouterr().err
    assert (
        launch.main(
            ["evaluate", "--config=configs/digits.py:resnet8", "--config.model.shortcut=B", "--config.model.widths=(4,4,9)", file]
        )
        == 2
    )
    assert "The config asks for widths (4, 4, 9), and the weights" in capsys.readouterr().err
    assert launch.main(["evaluate", file]) == 2
    assert "--config is missing" in capsys.readouterr().err
    assert launch.main(["export", f"--workdir={trained / 'run'}", "--weights=weights.pth"]) == 2
    assert "must end in .safetensors or .stablehlo, not 'weights.pth'" in capsys.readouterr().err


def test_a_run_whose_data_section_is_damaged(trained, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    good = json.loads((run / "environment.json").read_text())
    data = good["data"]
    damaged = [{"data": value} for value in VALUES]
    damaged += [{"data": data | {key: value}} for key in ("image_shape", "class_names") for value in VALUES]
    damaged += [{"data": data | {"image_shape": shape}} for shape in SHAPES]
    damaged += [{"data": {name: data[name] for name in data if name != key}} for key in ("image_shape", "class_names")]
    for change in damaged:
        (run / "environment.json").write_text(json.dumps(good | change))
        with pytest.raises(UserError) as refused:
            pretrained.load_pretrained(run)
        assert "\n" not in str(refused.value)
    (run / "environment.json").write_text(json.dumps(good))
    pretrained.load_pretrained(run)


def test_without_pytorch_its_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"needs PyTorch 2.6 or newer .*; install it by: pip install 'plain56\[torch\]'"):
        pretrained.load_pretrained(tmp_path / "weights.pth", "resnet18")


def test_a_hugging_face_repository(trained, monkeypatch):
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        if repository == "nobody/nothing":
            raise OSError("404 Client Error.")
        return str(trained / "digits.safetensors")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))
    _, variables, _ = pretrained.load_pretrained("somebody/digits.small")
    jax.tree.map(np.testing.assert_array_equal, variables, pretrained.load_pretrained(trained / "run")[1])
    with pytest.raises(UserError, match="nobody/nothing cannot be taken from the Hugging Face hub: 404 Client Error"):
        pretrained.load_pretrained("nobody/nothing")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'plain56\[hub\]'"):
        pretrained.load_pretrained("somebody/digits.small")
    assert asked == [("somebody/digits.small", "model.safetensors"), ("nobody/nothing", "model.safetensors")]


@pytest.fixture
def torch(monkeypatch):
    """PyTorch, out of the environment that `make bench` sets up where this one has none."""
    folder = cache_folder() / "torch"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder / "lib" / version / "site-packages")])
    return pytest.importorskip("torch")


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("option", ["A", "B"])
def test_a_pytorch_cifar_network_and_ours_load_each_other(torch, tmp_path, option):
    from safetensors.torch import load_file

    from tests.fixtures.cifar_network import ResNet

    torch.manual_seed(0)
    network = ResNet(20, option)
    for _ in range(3):  # statistics that matter
        network(torch.randn(16, 3, 32, 32) * 2 + 1)
    network.eval()
    images = torch.randn(4, 3, 32, 32)
    expected = network(images).detach().numpy()
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "foreign.th")
    module, variables, _ = pretrained.load_pretrained(tmp_path / "foreign.th", "resnet20", shortcut=option)
    logits = jax.jit(module.apply)(variables, images.numpy().transpose(0, 2, 3, 1)).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    about = foreign("resnet20", {"shortcut": option})
    (tmp_path / "ours.safetensors").write_bytes(formats.serialize(to_pytorch("resnet20", variables), about))
    other = ResNet(20, option)
    counts = {name: tensor for name, tensor in network.state_dict().items() if name.endswith("num_batches_tracked")}
    other.load_state_dict(load_file(tmp_path / "ours.safetensors") | counts, strict=True)
    np.testing.assert_array_equal(other.eval()(images).detach().numpy(), expected)


@pytest.mark.slow
@pytest.mark.torch
def test_a_hostile_or_damaged_pytorch_file_is_refused(torch, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hostile"),)

    torch.save({"conv1.weight": torch.nn.Parameter(torch.zeros(3))}, tmp_path / "good.th")
    good = (tmp_path / "good.th").read_bytes()
    torch.save({"weights": Hostile()}, tmp_path / "zipped.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "pickled.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    (tmp_path / "page.pth").write_bytes(b"<html>not found</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "short.th").write_bytes(good[: len(good) // 2])
    for name, message in {
        "zipped.pth": "is refused: it holds more than tensors",
        "pickled.pth": "is refused: it holds more than tensors",
        "page.pth": "it is damaged, or something else",
        "empty.pth": "it is damaged, or something else",
        "short.th": "it is damaged, or something else",
        "list.pth": "holds no tensors by name",
        "good.th": "more are missing in the tensors for resnet8",
    }.items():
        with pytest.raises(UserError, match=message):
            pretrained.load_pretrained(tmp_path / name, "resnet8")
    assert not (tmp_path / "hostile").exists()


def test_pictures_of_every_kind_are_read_by_what_they_are(tmp_path):
    from PIL import Image

    smooth = Image.fromarray(np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8))
    smooth.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    smooth.convert("L").save(tmp_path / "gray.jpg", quality=95)
    smooth.save(tmp_path / "picture.gif")
    (tmp_path / "picture.gif").rename(tmp_path / "gif.jpg")
    for name in ("cmyk.jpg", "gray.jpg", "gif.jpg"):
        with Image.open(tmp_path / name) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        np.testing.assert_allclose(read_picture(tmp_path / name, 3), expected, atol=2, err_msg=name)
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="page.jpg is not a picture that can be read"):
        read_picture(tmp_path / "page.jpg", 3)
    with pytest.raises(UserError, match="absent.jpg cannot be read: No such file"):
        read_picture(tmp_path / "absent.jpg", 3)


def test_a_thousand_classes_are_imagenets():
    names = pretrained._class_names(None, 1000)
    assert len(names) == 1000
    # Well-known places in the usual order.
    assert [names[i] for i in (0, 207, 281, 817, 999)] == ["tench", "golden retriever", "tabby", "sports car", "toilet tissue"]
