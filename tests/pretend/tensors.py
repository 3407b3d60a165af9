"""Tensors on the pretended device, and the operators on them.

For torch's C++ a `Cuda` is a CPU tensor with a dispatcher in Python, so autograd works in builds without
CUDA; for Python it says `cuda:0`. It holds another tensor with its numbers, or on meta with its shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from pretend.state import DEVICE, META, STATE, is_set, wait

aten = torch.ops.aten
READ = {  # operators after which the CPU must know a number, or a shape
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
    aten.histc.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten._linalg_check_errors.default,
}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
TAKES_NUMBER = {aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill_.Tensor, aten.fill.Tensor}
COPIES = {aten.copy_.default, aten.copy.default, aten._foreach_copy_.default}
MIXED = (
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
    "(when calling {})"
)


class Cuda(Tensor):
    """A tensor on the device; `held` has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> Cuda:
        STATE.allocate(held.untyped_storage())
        layout: Any = {"strides": held.stride(), "storage_offset": held.storage_offset(), "device": "cpu"}
        self: Cuda = Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, **layout)
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return operate(func, args, kwargs or {})

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = is_meta = property(lambda self: False)  # type: ignore[assignment]
    data = property(lambda self: self.detach(), lambda self, value: self._become(value))  # type: ignore[assignment]

    def _become(self, value: Tensor) -> None:
        if not isinstance(value, Cuda):
            raise RuntimeError("incompatible tensor type: .data of a CUDA tensor set to a CPU tensor")
        with torch._C.DisableTorchFunction():
            Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"cuda:0 {self.held!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        new = Cuda(self.held.clone()).requires_grad_(self.requires_grad)
        new.__dict__.update({k: v for k, v in self.__dict__.items() if k != "held"})
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("tensors of the pretended device are not pickled")

    def __tensor_flatten__(self) -> tuple[list[str], None]:  # with this nn.Module.to swaps parameters
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *rest: Any) -> Cuda:
        return Cuda(inner["held"])

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    def __array__(self, *rest: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()


NESTS = (tuple, list, dict)


def leaves(*trees: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries. (torch's own take any tree, and are slower.)"""
    found: list[Tensor] = []
    for z in trees:
        for a in z.values() if isinstance(z, dict) else z:
            if isinstance(a, Tensor):
                found.append(a)
            elif isinstance(a, NESTS) and a:
                found += leaves(a)
    return found


def each(function: Callable[[Tensor], Any], z: Any) -> Any:
    """The same tree with a function of its tensors."""
    if isinstance(z, Tensor):
        return function(z)
    if not isinstance(z, NESTS):
        return z
    if isinstance(z, dict):
        return {k: each(function, v) for k, v in z.items()} if z else z
    found = [each(function, a) if isinstance(a, (Tensor, *NESTS)) else a for a in z]
    return found if type(z) is list else tuple(found)


def held(z: Tensor) -> Tensor:
    return z.held if isinstance(z, Cuda) else z.to("meta") if META else z


def on_device(device: Any) -> bool | None:
    """Whether a `device=` is this one; None where nothing is said."""
    if device is None:
        return None
    return (DEVICE if isinstance(device, int) else torch.device(device)).type == "cuda"


def operate(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator: on the numbers that are held, where it has to do with the device."""
    tensors = leaves(args, kwargs)
    cuda = [z for z in tensors if isinstance(z, Cuda)]
    asked = on_device(kwargs.get("device"))
    if not (cuda or asked or (not tensors and is_set("inside"))):
        return func(*args, **kwargs)
    STATE.check()
    if cuda and len(cuda) < len(tensors):
        check(func, args, [z for z in tensors if not isinstance(z, Cuda) and z.device.type == "cpu"])
    masks = func in INDEXED and any(isinstance(z, Cuda) and z.dtype == torch.bool for z in args[1])
    if func in READ and kwargs.get("output_size") is None:  # of a repetition: that shape is known
        wait(str(func).removeprefix("aten.").removesuffix(".default"))
    elif masks and (func is aten.index.Tensor or args[2].numel() != 1):
        wait("boolean index")
    if asked:
        kwargs = {**kwargs, "device": "cpu"}
    if draws(func) and kwargs.get("generator") is None:
        kwargs = {**kwargs, "generator": torch.cuda.default_generators[0]}
    if META:
        told = without_numbers(func, args, masks)
        if told is not None:
            return told
        kwargs = {k: "meta" if k == "device" else v for k, v in kwargs.items() if k != "generator"}
        if not alters(func):
            return from_shapes(func, each(held, args), each(held, kwargs))
    same = {id(z.held): z for z in cuda}
    out = func(*each(held, args), **each(held, kwargs))
    if torch.Tag.inplace_view in func.tags:  # t_ and others change what the wrapper says of itself
        with no_dispatch():
            func(*args, **kwargs)
        return args[0]
    return each(lambda z: same[id(z)] if id(z) in same else Cuda(z), out)


@functools.cache
def draws(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


@functools.cache
def alters(func: Any) -> bool:
    """Whether an operator writes into tensors, or gives views of them, or something else than tensors."""
    schema = func._schema
    plain = all(z.alias_info is None for z in (*schema.arguments, *schema.returns))
    return not plain or any("Tensor" not in str(z.type) or "[]" in str(z.type) for z in schema.returns)


MADE: dict[Any, Any] = {}  # shapes of what operators made of shapes: networks ask for the same ones often


def from_shapes(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator makes of tensors on meta."""
    key = (func, frozen(args), frozen(kwargs))
    if key not in MADE:
        MADE[key] = each(lambda z: Layout((z.shape, z.stride(), z.dtype)), func(*args, **kwargs))
    made = MADE[key]
    return made.new() if isinstance(made, Layout) else tuple(z and z.new() for z in made)


class Layout(tuple[Any, ...]):
    """Shape, strides and type of a tensor."""

    def new(self) -> Cuda:
        shape, stride, dtype = self
        return Cuda(torch.empty_strided(shape, stride, dtype=dtype, device="meta"))


def frozen(z: Any) -> Any:
    """Arguments as a key."""
    if isinstance(z, Tensor):
        return z.shape, z.stride(), z.dtype
    if isinstance(z, list | tuple):
        return tuple(map(frozen, z))
    return tuple((k, frozen(v)) for k, v in z.items()) if isinstance(z, dict) else (type(z), z)


def check(func: Any, args: Any, loose: list[Tensor]) -> None:
    """Raise what CUDA does for an operator that also gets tensors of the CPU."""
    name, numbers = func._schema.name, [z for z in loose if not z.dim()]
    told = zip(func._schema.arguments, args, strict=False)
    written = [z for argument, z in told if argument.alias_info and argument.alias_info.is_write]
    if func in COPIES:
        wait("copy between devices")
        return
    if func in INDEXED and isinstance(args[0], Cuda):
        if any(not isinstance(z, Cuda) for z in leaves(args[1])):
            wait("index from the CPU")
        loose = [z for z in args[2:3] if not isinstance(z, Cuda) and z.dim()]
    elif all(isinstance(z, Cuda) for z in leaves(written)):
        takes = func in TAKES_NUMBER or torch.Tag.pointwise in func.tags or "_foreach" in name
        if takes and len(numbers) <= 1 + ("where" in name):  # kernels take one number from the CPU
            loose = [z for z in loose if z.dim()]
    if loose:
        raise RuntimeError(MIXED.format(func))


def readable(z: Tensor) -> Tensor:
    """What is read of shapes: true, 1.0, and the first place of whatever is counted."""
    return torch.full(z.shape, int(z.dtype.is_floating_point or z.dtype == torch.bool), dtype=z.dtype)


def without_numbers(func: Any, args: Any, masks: bool) -> Any:
    """The output of operators whose shape or value depends on numbers: as if all were true."""
    z = args[0].held if args and isinstance(args[0], Cuda) else None
    if z is None:
        return None
    if func in (aten._local_scalar_dense.default, aten.equal.default):
        return readable(z).item() if func is aten._local_scalar_dense.default else True
    if func is aten.nonzero.default:
        return Cuda(torch.empty(z.numel(), z.dim(), dtype=torch.long, device="meta"))
    return Cuda(z.flatten(0, args[1][0].dim() - 1).clone()) if masks and func is aten.index.Tensor else None


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operators that torch's functions make."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it would import it, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})
