"""What `make bench` runs, and how it tells what it measured. The times are not tested."""

import contextlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import throughput, turns
from plain56.figures import throughput as figure
from plain56.models import create_model, layers

EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9004
stepping\t: 1
flags\t\t: fpu sse2 fma avx avx2 avx512f avx512dq avx512_bf16 amx_tile avx512_vnni
power management:

processor\t: 1
model name\t: another
"""


def test_machine_is_described_by_what_linux_says():
    machine = turns.parse_cpuinfo(EPYC)
    flags = ["fma", "avx2", "avx512f", "avx512_bf16", "amx_tile"]
    assert machine == {"processor": "AMD EPYC 9004", "family": "25", "model": "17", "stepping": "1", "flags": flags}
    line = turns.machine_line(machine | {"cores": 2, "system": "Linux", "gpu": None})
    named = "AMD EPYC 9004 (family 25, model 17, stepping 1, fma, avx2, avx512f, avx512_bf16, amx_tile)"
    assert line == f"{named}, 2 cores, Linux"
    assert turns.machine_line(machine | {"cores": 2, "system": "Linux", "gpu": "NVIDIA H200"}) == f"{line}, NVIDIA H200"


@pytest.mark.parametrize("text", ["", "processor\t: 0\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd\n"])
def test_machine_without_such_names_is_described(text):
    machine = turns.parse_cpuinfo(text)
    assert machine.pop("processor") and machine == {"family": None, "model": None, "stepping": None, "flags": []}
    shown = turns.machine_line(machine | {"processor": "arm", "cores": 8, "system": "Darwin", "gpu": None})
    assert shown == "arm, 8 cores, Darwin"


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0, 10.0], [5.0, 1.0], [4.0]])
def test_summary_has_numpys_quartiles(values):
    summary = turns.summary(values)
    expected = np.quantile(values, [0.25, 0.5, 0.75])
    np.testing.assert_allclose([summary[key] for key in ("lower_quartile", "median", "upper_quartile")], expected, atol=5e-4)


@pytest.mark.parametrize(("found", "name"), [("return [GPU()]", "NVIDIA H200"), ("raise RuntimeError(platform)", None)])
def test_gpu_is_the_one_that_jax_finds(found, name, tmp_path, monkeypatch):
    (tmp_path / "jax.py").write_text(f"class GPU:\n    device_kind = 'NVIDIA H200'\n\ndef devices(platform):\n    {found}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert turns.find_gpu() == name


def test_gpu_that_is_not_there_is_a_mistake(monkeypatch, capsys):
    monkeypatch.setattr(throughput, "find_gpu", lambda: None)
    monkeypatch.setattr(sys, "argv", ["throughput", "--device=gpu"])
    with pytest.raises(SystemExit):
        throughput.main()
    assert "--device=gpu must have a GPU that JAX can use" in capsys.readouterr().err


@pytest.mark.parametrize(("device", "shape"), [("cpu", ["8", "224", "1000", "1"]), ("gpu", ["256", "224", "1000", "20"])])
def test_each_device_has_its_programs(device, shape, monkeypatch):
    monkeypatch.setattr(throughput, "python_with", lambda *packages: "python")
    commands = {program: throughput.command_of(program, "resnet50", device) for program in throughput.PROGRAMS[device]}
    assert ("torch.compile, CUDA graphs" in commands) == (device == "gpu")
    assert ("plain56, bfloat16" in commands) == ("plain Flax" in commands) == (device == "cpu")
    assert commands["torch.compile"][2:] == ["torch.compile", "resnet50", device, *shape]
    assert commands["plain56"][-3:] == ["--run=plain56", "--networks=resnet50", f"--device={device}"]


def test_programs_of_the_cpu_find_no_gpu_and_a_failure_is_a_sentence(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    tells = "import json, os; print(json.dumps({'seen': os.environ['CUDA_VISIBLE_DEVICES'], 'jax': os.environ['JAX_PLATFORMS']}))"
    commands = {"works": lambda: [sys.executable, "-c", tells], "fails": lambda: [sys.executable, "-c", "exit('no memory')"]}
    for device, seen in (("cpu", {"seen": "", "jax": "cpu"}), ("gpu", {"seen": "0", "jax": "cuda,cpu"})):
        with contextlib.ExitStack() as stack:
            running, versions, sentences = turns.start_all(commands, stack, lambda line: None, device)
        assert list(running) == ["works"] and versions == seen
        assert sentences == ["fails could not be run: no memory"]


class Turns:
    """A program whose turns take the given milliseconds, and which ends when there are no more."""

    def __init__(self, *milliseconds):
        self.left = list(milliseconds)

    def turn(self, work):
        if not self.left:
            raise throughput.Failed("out of memory")
        return [self.left.pop(0)]


def test_measurements_become_rows_a_table_and_a_figure(tmp_path, monkeypatch):
    programs = {"plain56": Turns(*[2.0, 1.0] * 3), "PyTorch": Turns(8.0, 1.0, 4.0, 1.0, 5.0, 1.0), "torch.compile": Turns(4.0)}
    monkeypatch.setattr(throughput, "start_all", lambda *_: (programs, {}, ["torch.compile, CUDA graphs could not be run: why"]))
    rows, _, sentences = throughput.measure("resnet50", "gpu", 3, lambda line: None)
    assert sentences == [
        "resnet50: torch.compile, CUDA graphs could not be run: why",
        "resnet50: torch.compile ended in round 1: out of memory",
    ]
    machine = turns.parse_cpuinfo("") | {"processor": "arm", "cores": 8, "system": "Linux", "gpu": "NVIDIA H200"}
    result = {"device": "gpu", "machine": machine, "rows": rows}
    assert throughput.markdown(result).splitlines() == [
        "| network, batch, image | work | plain56 (ms) | PyTorch | torch.compile | torch.compile, CUDA graphs |",
        "|---|---|---:|---:|---:|---:|",
        "| resnet50, 256, 224 | training step | 2.0 | 2.50 (2.25–3.25) | – | – |",
        "| resnet50, 256, 224 | forward pass | 1.0 | 1.00 (1.00–1.00) | – | – |",
        "",
        "arm, 8 cores, Linux, NVIDIA H200",
    ]
    (tmp_path / "throughput.json").write_text(json.dumps(result))
    assert figure.draw(tmp_path).exists()


@pytest.mark.parametrize("repeats", [1, 20])
def test_loop_does_the_work_so_many_times(repeats):
    loop = jax.jit(throughput.repeated(lambda carry, inputs: (carry + inputs, carry), repeats))
    assert loop(0, 3)[0] == 3 * repeats


def test_plain_flax_has_nothing_of_ours(monkeypatch):
    def written():
        model, x = create_model("resnet20", 10), jnp.ones((2, 32, 32, 3))
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        return variables, str(jax.make_jaxpr(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x))

    ours, text = written()
    assert "custom_vjp" in text and "scan[" in text
    for name in ("_convolve", "BatchNorm", "scan_blocks"):
        monkeypatch.setattr(layers, name, getattr(layers, name))  # to be restored
    throughput._write_as_plain_flax()
    plain, text = written()
    assert "custom_vjp" not in text and "scan[" not in text
    size, plain_size = (sum(leaf.size for leaf in jax.tree.leaves(variables)) for variables in (ours, plain))
    assert size == plain_size
