"""The pretended device itself: torch's functions that name it, and what stands in torch.cuda."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import sys
import threading
import time
import types
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pretend.state import DEVICE, META, STATE, TOTAL, setting, wait
from pretend.tensors import Cuda, Operators, each, held, leaves, on_device, readable

NAME = "Pretended GPU"


class Up(torch.autograd.Function):
    """From the CPU to the device."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        STATE.check()
        wait("copy to the device")
        return Cuda(torch.empty_like(z, device="meta") if META else z.detach().clone())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return cast("Tensor", Down.apply(g))  # type: ignore[no-untyped-call]


class Down(torch.autograd.Function):
    """From the device to the CPU."""

    @staticmethod
    def forward(ctx: Any, z: Cuda) -> Tensor:
        wait("copy to the CPU")
        return readable(z.held) if META else z.held.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return cast("Tensor", Up.apply(g))  # type: ignore[no-untyped-call]


def to(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Tensor.to, whose arguments are another tensor, a dtype, or a device and a dtype; then two flags."""
    first = args[0] if args else kwargs.pop("other", None)
    names: tuple[str, ...] = ("dtype",) if isinstance(first, torch.dtype) else ("device", "dtype")
    if isinstance(first, Tensor):
        kwargs, args, names = {**kwargs, "device": first.device, "dtype": first.dtype}, args[1:], ()
    kwargs |= dict(zip((*names, "non_blocking", "copy"), args, strict=False))
    there, soon = on_device(kwargs.get("device")), kwargs.pop("non_blocking", False)
    if there is None or there == isinstance(z, Cuda):
        kwargs = {k: v for k, v in kwargs.items() if k != "device" or not there}
        return Tensor.to(z, **kwargs) if kwargs else z
    if z.device.type == "meta" and not META:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")
    free = there and soon and z.untyped_storage()._cdata in STATE.pinned
    with setting("quiet", True) if free else contextlib.nullcontext():
        z = (Up if there else Down).apply(z)  # type: ignore[no-untyped-call]
    rest = {k: v for k, v in kwargs.items() if k not in ("device", "copy")}
    return Tensor.to(z, **rest) if rest else z


MOVES: dict[Any, Any] = {
    Tensor.to: to,
    Tensor.cuda: lambda z: to(z, "cuda"),
    Tensor.cpu: lambda z: to(z, "cpu"),
    Tensor.pin_memory: lambda z: STATE.pin(z if META else z.clone()),
}


class Functions(TorchFunctionMode):
    """Sees every call of torch's functions, and those that name the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":  # shape, dtype, grad: a third of all calls
            return func(*args)
        kwargs = dict(kwargs or {})
        if func in MOVES:
            return MOVES[func](*args, **kwargs)
        if kwargs.pop("pin_memory", False):
            return STATE.pin(func(*args, **kwargs))
        if kwargs.get("non_blocking") and func is Tensor.copy_ and isinstance(args[0], Cuda):
            args = (args[0], args[1].to(DEVICE, non_blocking=True))
        asked = on_device(kwargs.get("device"))
        own = any(type(z) is Cuda for z in args) or any(isinstance(z, Cuda) for z in leaves(args, kwargs))
        if own and asked is False:  # zeros_like(x, device="cpu")
            args, own = each(held, args), False
        kind, generator = "cuda" if asked or own else "cpu", kwargs.get("generator")
        if generator is not None and generator.device.type != kind:
            raise RuntimeError(
                f"Expected a '{kind}' device type for generator but found '{generator.device.type}'"
            )
        if asked:
            kwargs = {**kwargs, "device": "meta" if META and "tensor" not in name else "cpu"}
        with setting("inside", bool(asked or own)):
            out = func(*args, **kwargs)
        if isinstance(out, Cuda) or not isinstance(out, Tensor) or not (asked or name == "new_tensor"):
            return out
        filled = "empty" not in name and not out.is_meta  # empty_like of meta
        return Up.apply(out) if filled else Cuda(out)  # type: ignore[no-untyped-call]


class Generator(torch.Generator):
    """torch.Generator of either device; the numbers are the CPU's."""

    of: torch.device

    def __new__(cls, device: Any = "cpu") -> Generator:
        made: Any = super().__new__
        self: Generator = made(cls, "cpu")
        self.of = DEVICE if on_device(device) else torch.device(device)
        return self

    device = property(lambda self: self.of)  # type: ignore[assignment]


class Event:
    """torch.cuda.Event: the CPU's clock, since here everything is done when it was asked for."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.time = 0.0

    def record(self, stream: Any = None) -> None:
        STATE.check()
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        wait("event")

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.time - self.time)


def stand_ins() -> dict[str, Any]:
    """What stands in torch.cuda; a function for each name: torch.compile's tables want none twice."""
    generator = Generator("cuda")
    properties = types.SimpleNamespace(name=NAME, total_memory=TOTAL, major=9, minor=0)
    values = {
        **dict.fromkeys(("_lazy_init", "init", "set_device", "empty_cache", "ipc_collect")),
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), True),
        "device_count": 1, "current_device": 0, "get_device_properties": properties,
        "get_device_name": properties.name, "get_device_capability": (9, 0),
    }  # fmt: skip
    memory = {"memory_allocated": "now", "memory_reserved": "now"}
    memory |= {"max_memory_allocated": "peak", "max_memory_reserved": "peak"}
    return {
        **{name: lambda *args, _=value, **kwargs: _ for name, value in values.items()},
        **{name: lambda *args, _=which, **kwargs: getattr(STATE, _) for name, which in memory.items()},
        "mem_get_info": lambda *args, **kwargs: (STATE.limit - STATE.now, STATE.limit),
        "reset_peak_memory_stats": lambda *args, **kwargs: setattr(STATE, "peak", STATE.now),
        "set_per_process_memory_fraction": lambda share, *args: setattr(STATE, "limit", int(share * TOTAL)),
        "set_sync_debug_mode": lambda mode: setattr(STATE, "warns", mode == "warn"),
        "synchronize": lambda *args, **kwargs: wait("synchronize"),
        "device": contextlib.nullcontext,
        "Event": Event,
        "_initialized": True,
        "default_generators": (generator,),
        "manual_seed": generator.manual_seed,
        "manual_seed_all": generator.manual_seed,
        "get_rng_state": lambda *args, **kwargs: generator.get_state(),
        "set_rng_state": lambda state, *args, **kwargs: generator.set_state(state),
    }


def install() -> None:
    """From here on there is a device, for the rest of the process."""
    if torch.cuda.is_available():
        raise RuntimeError("there is a real CUDA device: use that one")
    torch.cuda.__dict__.update(stand_ins())
    torch.Generator = Generator  # type: ignore[misc]
    torch.version.cuda = "12.8"
    optimizer: Any = sys.modules["torch.optim.optimizer"]
    optimizer._foreach_supported_types.append(Cuda)
    metadata: Any = importlib.metadata
    version, cast_init = metadata.version, torch.autocast.__init__
    metadata.version = lambda name: version(name).replace("+cpu", "+cu128")
    torch.autocast.__init__ = lambda self, device_type, *args, **kwargs: cast_init(  # type: ignore[method-assign]
        self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs
    )
    _follow_threads()
    importlib.import_module("pretend.kernels")
    _modes().__enter__()


def _modes() -> contextlib.ExitStack:
    stack, modes = contextlib.ExitStack(), (Operators, Functions)
    for mode in modes:
        stack.enter_context(cast("Any", mode)())
    return stack


def _follow_threads() -> None:
    """Modes are of a thread: let new ones, and backward passes, have them too."""
    graph, base = cast("Any", torch.autograd.graph), cast("Any", threading.Thread)
    engine, start = graph._engine_run_backward, base._bootstrap_inner

    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        with Functions(), setting("inside", any(isinstance(z, Cuda) for z in tensors)):
            return engine(tensors, *args, **kwargs)

    def bootstrap(thread: threading.Thread) -> None:
        with _modes():
            start(thread)

    graph._engine_run_backward = cast("Any", torch.autograd)._engine_run_backward = backward
    base._bootstrap_inner = bootstrap
