"""Weights are exported in as many bits as are asked for."""

import numpy as np
import pytest
import safetensors.numpy

import launch
import plain56
from plain56 import pretrained, training
from plain56.errors import UserError


def test_kernels_in_float16_make_half_a_file_and_the_same_decisions(tmp_path, tiny_config):
    training.train(tiny_config, tmp_path / "run")
    half = tmp_path / "half.safetensors"
    assert launch.main(["export", f"--workdir={tmp_path / 'run'}", f"--weights={half}", "--dtype=float16"]) == 0
    tensors = safetensors.numpy.load_file(half)
    assert {tensor.dtype.name for tensor in tensors.values() if tensor.ndim == 4} == {"float16"}
    assert {tensor.dtype.name for tensor in tensors.values() if tensor.ndim == 1} == {"float32"}
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype(np.float32)
    networks = map(plain56.load_pretrained, (tmp_path / "run", half))
    one, other = (module.apply(variables, images).logits for module, variables, _ in networks)
    np.testing.assert_allclose(one, other, rtol=0, atol=5e-3 * float(abs(one).max()))


def test_values_that_float16_cannot_hold_are_refused():
    tensors = {"conv1.weight": np.full((1, 1, 3, 3), 1e5, np.float32)}
    with pytest.raises(UserError, match="runs/it has values in conv1.weight that float16 cannot hold; export it as float32"):
        pretrained._with_kernels(tensors, "float16", "runs/it")
