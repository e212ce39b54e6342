"""Real processes, really killed: the run must end as if nothing had happened."""

import signal

import pytest

from plain56 import runs
from tests.killed import assert_native, launched, result, same, train_whole

SEVERAL = (("call", 4, 0.01), ("save", 2, 0.03), ("record", 6, 0.0))  # at the last, half of its line is in the file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("resident", (("start", 1, 0.5), ("compile", 1, 1.0), *SEVERAL, ("evaluate", 2, 0.005))),
        ("streamed", SEVERAL),
        ("pmap", SEVERAL),
        ("finetuned", (("compile", 1, 1.0), *SEVERAL)),
    ],
)
def test_killed_run_ends_with_the_same_bits(tmp_path, kind, kills):
    whole = train_whole(tmp_path, kind)
    assert [record["step"] for record in whole[1] if record["split"] == "train"] == list(range(6, 121, 6))
    for moment, occurrence, delay in kills:
        assert launched(tmp_path / "run", moment, occurrence, delay, kind) == -signal.SIGKILL, moment
    assert launched(tmp_path / "run", kind=kind) == 0
    assert same(result(tmp_path / "run"), whole)
    if kind != "pmap":
        assert_native(runs.read_run(tmp_path / "run"))
