"""Where a step's time goes: convolutions are counted as the papers count them, and no moment is counted twice or left out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import programs, throughput

ROOT = Path(__file__).parent.parent
PROGRAM = """
from experiments.benchmarks import profile_step
profile_step.SECONDS, profile_step.STEP_SECONDS, profile_step.ARRAY_MEGABYTES = 0.02, 0.5, (4,)
profile_step.main()
"""
# A loop over blocks, as XLA prints it; a line of the second computation is what one operation consists of.
HLO = """
%fused_computation (param_0: f32[3,8]) -> f32[8] {
  ROOT %maximum.1 = f32[8]{0} maximum(%a, %b)
}
ENTRY %main.5 (Arg_0: f32[2,8]) -> (f32[8], s32[]) {
  %ffi_call.1 = f32[2,4]{1,0} custom-call(%x, %w), custom_call_target="plain56.Convolution", metadata={op_name="a(b)/dot(c)"}
  %ffi_call.2 = f32[2,4]{1,0} custom-call(%x, %g), custom_call_target="plain56.ConvolutionKernelGradient"
  %while.3 = (s32[], f32[2,8]{1,0}, /*index=2*/f32[4]{0}) while(%tuple.1), condition=%c, body=%b
  %bitcast_dynamic-update-slice_fusion.6 = f32[3,8]{1,0} fusion(%stack, %ffi_call.1), kind=kLoop, calls=%fused_computation
  %dynamic-slice.2 = f32[8]{0} dynamic-slice(%stack, %i), dynamic_slice_sizes={8}
  %dot.4 = f32[8,10]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %convolution.9 = f32[8,10]{1,0:T(8,128)} convolution(%x, %y), window={size=3x3}
  ROOT %copy.7 = f32[8]{0} copy(%y)
}
"""
GROUPS = {
    "ffi_call.1": "plain56.Convolution",
    "ffi_call.2": "plain56.ConvolutionKernelGradient",
    "while.3": None,
    "bitcast_dynamic-update-slice_fusion.6": programs.SCAN,
    "dynamic-slice.2": programs.SCAN,
    "dot.4": programs.PRODUCTS,
    "convolution.9": programs.PRODUCTS,
    "maximum.1": programs.LOOPS,
    "copy.7": programs.LOOPS,
}


@pytest.mark.parametrize(
    # By hand; as HRank counts (Lin et al. 2020); and as torchvision's table says, where the last layer is no convolution.
    ("name", "multiply_adds", "count"),
    [("resnet20", 0.0406e9, 19), ("resnet56", 0.12549e9, 55), ("resnet50", 4.09e9 - 2048 * 1000, 53)],
)
def test_convolutions_are_those_of_the_paper(name, multiply_adds, count):
    batch_size, side = 2, throughput.NETWORKS[name][1]
    found = programs.convolutions_of(throughput.create(name), (batch_size, side, side, 3))
    assert found.total() == count
    total = sum(count * shape.multiply_adds for shape, count in found.items())
    assert total / batch_size == pytest.approx(multiply_adds, rel=2e-3)


def test_convolutions_of_a_scan_count_one_by_one():
    found = programs.convolutions_of(throughput.create("resnet20"), (128, 32, 32, 3))
    assert {str(shape): count for shape, count in found.items()} == {
        "3×3/1 32×32 3→16": 1,
        "3×3/1 32×32 16→16": 6,
        "3×3/2 32×32 16→32": 1,
        "3×3/1 16×16 32→32": 5,
        "3×3/2 16×16 32→64": 1,
        "3×3/1 8×8 64→64": 5,
    }


def test_operations_are_grouped_by_what_they_do():
    operations = programs.operations(HLO)
    assert {name: programs.group_of(name, operation) for name, operation in operations.items()} == GROUPS


def test_moments_are_divided_among_what_runs():
    # One thread: a from 1 to 4, nothing, then b from 6 to 8. Another: c from 2 to 4, and a again from 7 to 8; d takes no time.
    events = [("a", 1, 4), ("b", 6, 8), ("c", 2, 4), ("a", 7, 8), ("d", 3, 3)]
    assert programs.add_up(events, 10) == {
        "a": {"calls": 2, "summed": 4, "milliseconds": 1 + 1 + 0.5},
        "b": {"calls": 1, "summed": 2, "milliseconds": 1 + 0.5},
        "c": {"calls": 1, "summed": 2, "milliseconds": 1},
        "d": {"calls": 1, "summed": 0, "milliseconds": 0},
        programs.NOTHING: {"calls": 0, "summed": 0, "milliseconds": 10 - 3 - 2},
    }


@pytest.mark.slow
def test_profile_of_a_small_network(tmp_path):
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler here")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # two devices
    command = [sys.executable, "-c", PROGRAM, "--networks=resnet20", f"--folder={tmp_path}"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    *tables, last = done.stdout.splitlines()
    assert json.loads(last) == {"folder": str(tmp_path)}
    assert all(len(line) <= 80 for line in tables if str(tmp_path) not in line)
    result = json.loads((tmp_path / "profile.json").read_text())
    assert result["machine"] and set(result["versions"]) == {"jax", "jaxlib"}
    assert all(row["gflops"] > 0 for row in result["peak"])
    assert all(row["read"] > 0 and row["read_and_write"] > 0 for row in result["bandwidth"])
    (network,) = result["networks"]
    first, *others = network["convolutions"]
    assert first["input_gradient"] is None and len(others) == 5
    # Winograd's algorithm makes a quarter of the multiplications that are counted.
    works = [row[work] for row in others for work in ("forward", "input_gradient", "kernel_gradient")]
    assert all(0 < work["share_of_peak"] < 4 * 1.2 for work in works)
    assert sum(network["sums"].values()) > 0
    step = network["step"]
    assert 0 < step["share_of_peak"] < 4 * 1.2
    assert 0 < step["parallel_efficiency"] < 1.2
    groups = {row["group"]: row for row in step["groups"]}
    assert all(0 <= row["share"] <= 1.2 for row in groups.values())
    assert sum(row["share"] for row in groups.values()) == pytest.approx(1, abs=1e-3)
    calls = {group: row["calls"] for group, row in groups.items() if group.startswith("plain56.Convolution")}
    numbers = {"Convolution": 19, "ConvolutionInputGradient": 18, "ConvolutionKernelGradient": 19}
    assert calls == {f"plain56.{name}.float32": number for name, number in numbers.items()}
    assert groups[programs.SCAN]["calls"] > 0 and groups[programs.LOOPS]["calls"] > 0
