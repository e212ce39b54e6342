"""The stage of every layer, and the order of the stages."""

import jax.numpy as jnp
import pytest
from flax import linen as nn

from plain56.models import create_model, stack


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet8", {"pre_activation": True}, "stem stage1_first stage2_first stage3_first head_norm head"),
        ("vgg11", {"form": "small"}, "block1 block2 block3 block4 block5 head"),
        ("googlenet", {"form": "small"}, "stem inception3 inception4 inception5 head"),
    ],
)
def test_stages_come_from_the_images_to_the_classes(name, options, expected):
    stages = stack.stages(create_model(name, 10, **options), (16, 16, 3))
    assert list(dict.fromkeys(stages.values())) == [stage.removesuffix("_first") for stage in expected.split()]


def test_auxiliary_heads_belong_to_the_last_stage():
    stages = stack.stages(create_model("googlenet", 10, form="small"), (16, 16, 3))
    assert {layer for layer, stage in stages.items() if stage == "head"} == {"auxiliary4a", "auxiliary4d", "head"}


def test_a_network_that_declares_nothing_has_stages():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            x = nn.Conv(4, (2, 2), name="patch_embed")(images)
            x = nn.Dropout(0.5, deterministic=not train, name="noise")(x)
            x = nn.Dense(3, name="patch_mix")(x)
            return nn.Dense(2, name="last")(jnp.mean(x, axis=(1, 2)))

    assert stack.stages(Network(), (8, 8, 1)) == {"patch_embed": "patch", "patch_mix": "patch", "last": "last"}
