"""What is behind the splats: drawn once for the views of a group."""

import pytest
import torch

from splatgen.config import Config, ViewOptions
from splatgen.loop import step
from splatgen.runs.rng import rng
from splatgen.scene.backgrounds import backgrounds
from splatgen.scene.cameras import turntable


@pytest.mark.parametrize("name", ["random", "white-or-black", "white", "black", "grey"])
def test_the_views_of_a_group_share_one(name):
    """As MVDream (share_aug_bg), RewardSDS, DreamDPO, threestudio-3dgs and DreamGaussian have it."""
    for seed in range(20):
        found = backgrounds(name, rng(seed, 0, "background"), 8, 4)
        assert found.shape == (8, 3)
        for group in found.split(4):
            assert torch.equal(group, group[:1].expand(4, 3))


def test_groups_and_single_views_have_their_own():
    assert len(backgrounds("random", rng(0, 0, "background"), 8, 4).unique(dim=0)) == 2
    assert len(backgrounds("random", rng(0, 0, "background"), 8).unique(dim=0)) == 8


def test_white_or_black_is_an_even_chance():
    """invert_bg_prob 0.5 of DreamGaussian and threestudio-3dgs."""
    found = backgrounds("white-or-black", rng(0, 0, "background"), 4000)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(found[:, :1].expand(-1, 3), found)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.03)


def test_a_step_asks_for_one_a_group():
    config = Config(prompt="a", prior="mvdream", views=ViewOptions(count=8))
    found = step.background(config, 3, turntable(8, size=4))
    assert len(found.unique(dim=0)) == 2
    alone = Config(prompt="a", prior="sd15", views=ViewOptions(count=8))
    assert len(step.background(alone, 3, turntable(8, size=4)).unique(dim=0)) == 8
