"""Real processes, really killed: the run must end as if nothing had happened."""

import signal

import pytest

from tests.killed import launched, result, same


@pytest.mark.slow
def test_run_killed_at_six_moments_ends_with_the_same_bits(tmp_path):
    assert launched(tmp_path / "whole") == 0
    whole = result(tmp_path / "whole")
    assert [record["step"] for record in whole[1] if record["split"] == "train"] == list(range(6, 121, 6))
    for moment, occurrence, delay in (
        ("start", 1, 0.5),  # while importing
        ("compile", 1, 1.0),
        ("call", 4, 0.01),
        ("save", 2, 0.03),
        ("record", 6, 0.0),  # half of its line is in the file
        ("evaluate", 2, 0.005),
    ):
        assert launched(tmp_path / "run", moment, occurrence, delay) == -signal.SIGKILL, moment
    assert launched(tmp_path / "run") == 0
    assert same(result(tmp_path / "run"), whole)
