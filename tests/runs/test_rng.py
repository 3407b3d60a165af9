"""The same arguments give the same numbers; anything else gives others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.runs.rng import rng


def numbers(*args):
    return torch.rand(8, generator=rng(*args)).tolist()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**7), st.text(max_size=20))
def test_the_numbers_depend_on_nothing_but_the_arguments(seed, step, purpose):
    first = numbers(seed, step, purpose)
    torch.rand(3)
    torch.manual_seed(1)
    assert numbers(seed, step, purpose) == first


@pytest.mark.parametrize(
    "other", [(1, 2, "noise"), (0, 3, "noise"), (0, 2, "time"), (0, 2, "noise "), (2, 0, "noise")]
)
def test_each_argument_matters(other):
    assert numbers(0, 2, "noise") != numbers(*other)


def test_digits_do_not_run_into_each_other():
    assert numbers(1, 23, "x") != numbers(12, 3, "x")


def test_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    numbers(0, 0, "noise")
    assert torch.equal(torch.get_rng_state(), before)
