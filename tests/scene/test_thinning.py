"""Fewer splats that cover as much: chances that sum, who stays, and how much larger they are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splatgen.scene.splats import Splats
from splatgen.scene.thinning import curve, inclusion, thinned


def cloud(count: int, seed: int = 0) -> Splats:
    g = torch.Generator().manual_seed(seed)
    return Splats(
        means=torch.randn(count, 3, generator=g),
        quats=torch.randn(count, 4, generator=g),
        scales=torch.randn(count, 3, generator=g) - 3,
        opacities=torch.randn(count, generator=g),
        sh=torch.randn(count, 1, 3, generator=g),
    )


@given(
    count=st.integers(2, 300),
    share=st.floats(0.01, 0.99),
    spread=st.floats(0.0, 8.0),
    seed=st.integers(0, 99),
)
def test_chances_sum_and_are_proportional_below_one(count, share, spread, seed):
    g = torch.Generator().manual_seed(seed)
    weights = (spread * torch.randn(count, generator=g, dtype=torch.float64)).softmax(0)
    most = max(1, min(count - 1, int(share * count)))
    chances = inclusion(weights, most)
    assert float(chances.sum()) == pytest.approx(most, rel=1e-9)
    assert bool(((chances >= 0) & (chances <= 1)).all())
    open_ = chances < 1 - 1e-12
    ratio = chances[open_] / weights[open_]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    if bool((~open_).any()) and len(ratio):
        assert float(weights[~open_].min()) >= float(1 / ratio[0]) * (1 - 1e-9)


@given(count=st.integers(1, 300), most=st.integers(1, 300), seed=st.integers(0, 20))
def test_as_many_as_asked_for_in_their_order_and_larger(count, most, seed):
    splats = cloud(count, seed)
    found = thinned(splats, most)
    assert len(found) == min(count, most)
    rows = [int((splats.means == mean).all(-1).nonzero()[0, 0]) for mean in found.means]
    assert rows == sorted(set(rows))
    grown = found.scales - splats.scales[rows]
    torch.testing.assert_close(grown, grown[:, :1].expand_as(grown))
    assert bool((grown >= -1e-6).all())


def cover(splats: Splats) -> torch.Tensor:
    return splats.opacities.sigmoid() * splats.scales.topk(2, dim=-1).values.sum(-1).exp()


def test_all_together_cover_as_much():
    splats = cloud(20_000)
    found = thinned(splats, 4_000)
    assert float(cover(found).sum()) == pytest.approx(float(cover(splats).sum()), rel=0.05)


def test_what_covers_much_stays_as_it_is():
    splats = cloud(1000)
    splats.scales[:10] = 3.0
    found = thinned(splats, 100)
    assert torch.equal(found.scales[:10], splats.scales[:10])
    assert torch.equal(found.means[:10], splats.means[:10])


def test_no_region_is_left_bare():
    """Of a cloud whose file goes from left to right, every eighth keeps its share."""
    splats = cloud(8000)
    splats.scales[:], splats.opacities[:] = -3.0, 0.0
    splats.means[:] = torch.rand(8000, 3, generator=torch.Generator().manual_seed(1))
    splats = splats.select(splats.means[:, 0].argsort())
    found = thinned(splats, 800)
    counts = torch.histc(found.means[:, 0], 8, 0, 1)
    assert bool((counts - 100).abs().max() < 20)
    assert found.scales.unique().tolist() == pytest.approx([-3.0 + 0.5 * math.log(10)])


def test_the_curve_keeps_neighbours_together():
    means = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0))
    ordered = means[curve(means).argsort()]
    steps = ordered.diff(dim=0).norm(dim=-1)
    assert float(steps.mean()) < 0.3 * float(means.diff(dim=0).norm(dim=-1).mean())
    assert curve(torch.zeros(3, 3)).tolist() == [0, 0, 0]
