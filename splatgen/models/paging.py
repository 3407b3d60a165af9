"""Networks that take turns on the GPU: one whose turn it is comes from the CPU, and others make room for it.

Weights are frozen, so the CPU keeps them and nothing ever goes back; what is trained beside them stays on the
GPU. A turn begins with a call, so whatever a gradient needs of an earlier turn has to be over by then.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

PAGE = "splatgen_page"


class Page:
    """A network's frozen weights, on the CPU for good and on the device for a while."""

    def __init__(self, network: nn.Module, device: str) -> None:
        """Take a network that is on the CPU; whatever of it is called first begins its turn."""
        self.device = device
        self.desk: Desk | None = None
        self.loaded = False
        self._kept = [
            (module, name, _pinned(value))
            for module in network.modules()
            for name, value in (*module._parameters.items(), *module._buffers.items())
            if value is not None
        ]
        self.bytes = sum(value.nbytes for _, _, value in self._kept)
        for part in (network, *network.children()):  # an autoencoder's halves are called by themselves
            part.register_forward_pre_hook(lambda *_: self.begin())

    def begin(self) -> None:
        """Come to the device, after others have made room."""
        if self.desk is not None:
            self.desk.make_room(self)
        if not self.loaded:
            self._put({id(v): v.to(self.device, non_blocking=True) for _, _, v in self._kept})
            self.loaded = True

    def leave(self) -> None:
        """Only the CPU's copy is left."""
        if self.loaded:
            self._put({})
            self.loaded = False

    def _put(self, there: dict[int, Tensor]) -> None:
        for module, name, value in self._kept:
            new = there.get(id(value), value)
            if name in module._parameters:
                module._parameters[name] = nn.Parameter(new, requires_grad=False)
            else:
                module._buffers[name] = new


class Desk:
    """Pages that share so many bytes of a device; who was longest without a turn goes first."""

    def __init__(self, pages: Iterable[Page], room: int) -> None:
        self.pages, self.room = list(pages), room
        for page in self.pages:
            page.desk = self
            page.leave()

    def make_room(self, coming: Page) -> None:
        """Send others away until there is room for one, which is the latest from now on."""
        self.pages.remove(coming)
        taken = coming.bytes + sum(page.bytes for page in self.pages if page.loaded)
        for page in self.pages:
            if taken > self.room and page.loaded:
                page.leave()
                taken -= page.bytes
        self.pages.append(coming)


def take_turns(owners: Iterable[object], room: float) -> None:
    """Let the networks of priors and rewards that are paged share so many GiB, as no others do now."""
    Desk(pages_of(*owners), int(room * 2**30))


def paged(network: nn.Module, device: str) -> None:
    """Let a network on the CPU come to a device when it is called."""
    setattr(network, PAGE, Page(network, device))


def begin(network: nn.Module) -> None:
    """Where a network takes turns, let it have its own now."""
    page = getattr(network, PAGE, None)
    if page is not None:
        page.begin()


def home(network: nn.Module) -> torch.device:
    """The device on which a network computes, wherever its weights are now."""
    page = getattr(network, PAGE, None)
    return next(network.parameters()).device if page is None else torch.device(page.device)


def pages_of(*owners: object) -> list[Page]:
    """The pages among the networks that priors and rewards hold."""
    networks = (value for owner in owners for value in vars(owner).values() if isinstance(value, nn.Module))
    return [cast("Page", getattr(network, PAGE)) for network in networks if hasattr(network, PAGE)]


def _pinned(value: Tensor) -> Tensor:
    return value.detach().pin_memory() if torch.cuda.is_available() else value.detach()
