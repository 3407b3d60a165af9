"""The pretended device catches what a GPU does not forgive, and gives what it gives otherwise."""

import threading

import pytest
import torch
from pretend import STATE, counted, limited
from pretend.device import NAME
from pretend.tensors import Cuda
from torch import nn
from torch.nn.functional import conv2d, embedding, scaled_dot_product_attention

pytestmark = pytest.mark.skipif(torch.cuda.get_device_name() != NAME, reason="of the pretended device")
D = "cuda"


def x():
    return torch.randn(3, 4, device=D)


def cpu(*shape):
    return torch.randn(*shape)


TWO_DEVICES = "two devices"
MISTAKES = {
    "an operand from the CPU": (lambda: x() + cpu(4), TWO_DEVICES),
    "a part from the CPU": (lambda: torch.cat([x(), cpu(3, 4)]), TWO_DEVICES),
    "the CPU's generator for the device": (
        lambda: torch.randn(3, device=D, generator=torch.Generator()),
        "'cuda' device type for generator",
    ),
    "the device's generator for the CPU": (
        lambda: torch.randn(3, generator=torch.Generator(D)),
        "'cpu' device type for generator",
    ),
    "the CPU's generator in place": (
        lambda: x().normal_(generator=torch.Generator()),
        "'cuda' device type for generator",
    ),
    "numpy of a tensor on the device": (lambda: x().numpy(), "Use Tensor.cpu"),
    "the device's index into the CPU": (lambda: cpu(5)[torch.tensor([0], device=D)], TWO_DEVICES),
    "an index from the CPU": (lambda: x().index_select(0, torch.tensor([0])), TWO_DEVICES),
    "token numbers on the CPU": (lambda: embedding(torch.tensor([0]), x()), TWO_DEVICES),
    "a number from the CPU in a stack": (lambda: torch.stack([x()[0, 0], torch.tensor(1.0)]), TWO_DEVICES),
    "a sum on the CPU": (lambda: cpu(3).add_(x()[0, 0]), TWO_DEVICES),
    "the device's number for the CPU's tensor": (lambda: torch.ones(3, 4) * x()[0, 0], None),
    "two numbers from the CPU": (
        lambda: x().clamp(torch.tensor(0.0), torch.tensor(1.0)),
        TWO_DEVICES,
    ),
    "weights on the CPU": (
        lambda: conv2d(torch.randn(1, 3, 4, 4, device=D), cpu(3, 3, 1, 1)),
        TWO_DEVICES,
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_caught(name):
    mistake, words = MISTAKES[name]
    with pytest.raises((RuntimeError, TypeError), match=words):
        mistake()


def test_what_a_gpu_takes_is_taken():
    a = x()
    assert (a * torch.tensor(2.0)).is_cuda
    assert a[torch.tensor([0, 1])].shape == (2, 4)
    assert torch.where(a > 0, a, 0.0).is_cuda
    assert a.masked_fill(a > 0, torch.tensor(1.0)).is_cuda


def test_training_has_the_numbers_of_the_cpu():
    ours = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2)).to(D)
    theirs = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
    theirs.load_state_dict({name: value.cpu() for name, value in ours.state_dict().items()})
    given, losses = x(), []
    for net, data in ((ours, given), (theirs, given.cpu())):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = net(data).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_attention_a_copied_network_and_other_threads_stay_on_the_device():
    q, k, v = (torch.randn(1, 2, 5, 4, device=D, requires_grad=True) for _ in range(3))
    scaled_dot_product_attention(q, k, v).sum().backward()
    assert q.grad.is_cuda
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.zeros(3, device=D).is_cuda))
    thread.start()
    thread.join()
    assert seen == [True]


def test_waits_are_counted_where_they_are():
    a = x()
    with counted() as waits:
        float(a.sum())
        a[a > 0]
        torch.tensor([1.0], device=D)
        torch.randn(2).to(D, non_blocking=True)  # from memory that is not pinned
        torch.randn(2).pin_memory().to(D, non_blocking=True)
        a.clone().mul_(2.0)
    kinds = sorted(what for what, _ in waits.elements())
    assert kinds == ["_local_scalar_dense", "boolean index", "copy to the device", "copy to the device"]
    assert all("test_pretended.py" in where for _, where in waits)


def test_memory_is_that_of_live_storages_and_runs_out():
    before = STATE.now
    a = torch.empty(1024, device=D)
    b = a[:512].view(2, 256)
    assert STATE.now == before + 4096
    del a
    assert STATE.now == before + 4096
    del b
    assert STATE.now == before
    with limited(before + 4096):
        torch.empty(1024, device=D)
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            torch.empty(1025, device=D)


def test_a_lost_device_answers_nothing():
    a = x()
    STATE.lost = True
    try:
        with pytest.raises(torch.AcceleratorError, match="CUDA error"):
            a + a
    finally:
        STATE.lost = False
    assert isinstance(a + a, Cuda)
