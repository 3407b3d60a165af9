"""What is kept in int8 comes back within half a step of its row."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from splatgen.worlds.quantised import SCALE, quantised, restored


@given(st.integers(0, 2**31), st.sampled_from([(3, 5), (4, 2, 3, 3), (1, 1), (7,), ()]), st.floats(1e-6, 1e6))
def test_no_weight_moves_by_more_than_half_a_step(seed, shape, size):
    value = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    kept = quantised({"w": value, "steps": torch.tensor(3)})
    back = restored(kept)
    assert back["w"].shape == value.shape
    assert back["w"].dtype == torch.float32
    assert back["steps"] == 3
    if value.ndim < 2:
        torch.testing.assert_close(back["w"], value.half().float())
        return
    assert kept["w"].dtype == torch.int8
    step = value.flatten(1).abs().amax(1) / 127
    assert ((back["w"] - value).flatten(1).abs() <= 0.501 * step[:, None]).all()


def test_rows_of_zeros_stay_zero():
    assert not restored(quantised({"w": torch.zeros(2, 3)}))["w"].any()


def test_weights_that_were_never_quantised_are_taken_as_they_are():
    state = {"w": torch.randn(2, 3).half(), "b.scale": torch.ones(2).half()}
    back = restored(state)
    assert torch.equal(back["w"], state["w"].float())
    assert set(back) == set(state)
    assert SCALE == ".scale"
