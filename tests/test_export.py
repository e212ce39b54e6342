"""Weights are exported in as many bits as are asked for."""

import jax
import numpy as np
import pytest
import safetensors.numpy

import launch
import plain56
from plain56 import training
from plain56.errors import UserError
from plain56.pretrained import save_pretrained


def test_kernels_in_float16_take_half_and_decide_alike(tmp_path, tiny_config):
    training.train(tiny_config, tmp_path / "run")
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save_pretrained(whole, tmp_path / "run")
    assert launch.main(["export", f"--workdir={tmp_path / 'run'}", f"--weights={half}", "--dtype=float16"]) == 0
    tensors = safetensors.numpy.load_file(half)
    assert {tensor.dtype.name for tensor in tensors.values() if tensor.ndim == 4} == {"float16"}
    assert {tensor.dtype.name for tensor in tensors.values() if tensor.ndim == 1} == {"float32"}
    kernels = sum(tensor.size for tensor in tensors.values() if tensor.ndim > 1)
    assert whole.stat().st_size - half.stat().st_size == pytest.approx(2 * kernels, abs=100)
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype(np.float32)
    networks = map(plain56.load_pretrained, (whole, half))
    one, other = (jax.jit(module.apply)(variables, images).logits for module, variables, _ in networks)
    np.testing.assert_allclose(one, other, rtol=0, atol=5e-3 * float(abs(one).max()))
    assert np.mean(one.argmax(-1) == other.argmax(-1)) > 0.95


def test_what_float16_cannot_hold_is_refused(tmp_path, tiny_config, capsys):
    training.train(tiny_config, tmp_path / "run")
    save_pretrained(tmp_path / "it.safetensors", tmp_path / "run")
    with safetensors.safe_open(tmp_path / "it.safetensors", "numpy") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["conv1.weight"] = np.full_like(tensors["conv1.weight"], 1e5)
    safetensors.numpy.save_file(tensors, tmp_path / "it.safetensors", about)
    for file, dtype, sentence in (
        ("half.safetensors", "float16", "has values in conv1.weight that float16 cannot hold"),
        ("program.stablehlo", "float16", "Only a .safetensors file can have kernels in float16, not program.stablehlo"),
        ("half.safetensors", "int8", "The dtype of kernels must be float32 or float16, not 'int8'"),
    ):
        with pytest.raises(UserError, match=sentence):
            save_pretrained(tmp_path / file, tmp_path / "it.safetensors", dtype=dtype)
        assert not (tmp_path / file).exists()
