import pytest

from plain56.analysis.complexity import count_multiply_adds, stages
from plain56.models import create_model


@pytest.mark.parametrize(
    ("name", "multiply_adds"),
    # Convolutions and the linear layer by hand from the layer table: 40.6M, 125.5M and 252.9M.
    [("resnet20", 40_551_040), ("plain56", 125_485_696), ("resnet110", 252_887_680)],
)
def test_multiply_adds(name, multiply_adds):
    assert count_multiply_adds(create_model(name, 10), (32, 32, 3)) == multiply_adds


def test_stages_follow_the_paper():
    # Section 4.2: feature maps 32, 16, 8 with 16, 32, 64 filters.
    rows = {stage.name: stage for stage in stages(create_model("resnet20", 10), (32, 32, 3))}
    assert list(rows) == ["stem", "stage1", "stage2", "stage3", "head"]
    assert [stage.output_shape for stage in rows.values()] == [(32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64), (10,)]
    assert rows["stem"].parameters == 3 * 9 * 16 + 32
    assert rows["stage1"].multiply_adds == 6 * 9 * 16 * 16 * 32 * 32
    assert sum(stage.parameters for stage in rows.values()) == 269_722


def test_projections_are_counted_with_their_stage():
    with_projections, without = (create_model("resnet14", 10, shortcut=shortcut) for shortcut in "BA")
    added = count_multiply_adds(with_projections, (16, 16, 3)) - count_multiply_adds(without, (16, 16, 3))
    assert added == 16 * 32 * 8 * 8 + 32 * 64 * 4 * 4
    parameters = [sum(stage.parameters for stage in stages(model, (16, 16, 3))) for model in (with_projections, without)]
    assert parameters[0] - parameters[1] == 2_752
