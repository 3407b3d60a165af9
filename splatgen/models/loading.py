"""Networks out of files: strictly, in the asked precision, and from this machine only.

diffusers and transformers fill in random numbers for weights that a file lacks, with a warning; here that is
an error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch

from splatgen.models import paging
from splatgen.models.budget import LoadOptions
from splatgen.models.recompute import recompute_layers
from splatgen.models.weights import WeightsError

N = TypeVar("N", bound=torch.nn.Module)


def torch_dtype(load_options: LoadOptions) -> torch.dtype:
    """The precision of a run's networks."""
    found: torch.dtype = getattr(torch, load_options.precision)
    return found


def component(kind: type[N], folder: Path, subfolder: str = "", *, dtype: torch.dtype) -> N:
    """A network of diffusers or transformers from a folder in their layout, on the CPU, frozen.

    Takes weights in half precision (`*.fp16.safetensors`) where there are no others. Raises WeightsError for
    what is missing, damaged or of another architecture.
    """
    place = folder / subfolder
    if not (place / "config.json").is_file():
        raise WeightsError(f"{place} has no config.json: give a folder in diffusers' layout, fetched whole")
    with explained(kind, place), quiet():
        network, report = kind.from_pretrained(  # type: ignore[attr-defined]
            place,
            dtype=dtype,
            variant=_variant(place),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    check_report(kind, place, report)
    check_finite(cast("N", network), place)
    return frozen(cast("N", network))


def frozen(network: N) -> N:
    """The network in evaluation mode, without gradients for its weights."""
    network.eval().requires_grad_(False)
    return network


def check_report(kind: type, place: Path, report: Any) -> None:
    """Raise WeightsError unless every weight of a network came from the file, and none was left over."""
    for what, words in (
        ("missing_keys", "lacks"),
        ("mismatched_keys", "has another shape of"),
        ("unexpected_keys", "has, and the architecture has not,"),
    ):
        keys = sorted(map(str, report[what]))
        if keys:
            raise WeightsError(
                f"{place} does not fit {kind.__name__}: it {words} {keys[0]} and {len(keys) - 1} "
                "others; give weights of that architecture"
            )


def _variant(place: Path) -> str | None:
    stems = [path.stem for path in place.glob("*.safetensors")]  # NAME, NAME.fp16, NAME.fp16-00001-of-00002
    whole = any("." not in stem for stem in stems)
    return "fp16" if not whole and any(".fp16" in stem for stem in stems) else None


@contextlib.contextmanager
def explained(what: type | str, place: Path) -> Iterator[None]:
    """What libraries raise for files that they cannot read, as a WeightsError of one line."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    plain = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
    known = (*plain, SafetensorError, StrictDataclassError)
    try:
        yield
    except Exception as error:
        unknown = not isinstance(error, known) and type(error) is not Exception  # tokenizers raises that
        if unknown or isinstance(error, WeightsError) or "out of memory" in str(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        name = what if isinstance(what, str) else what.__name__
        raise WeightsError(
            f"{name} can't be loaded from {place}: {reason}; fetch it again, or give another model"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and warnings: what is wrong with weights is an error here."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are about the bars themselves
        for library in libraries:
            library.set_verbosity(logging.ERROR)
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, (level, bars) in zip(libraries, before, strict=True):
                library.set_verbosity(level)
                if bars:
                    library.enable_progress_bar()


class Lazy(Generic[N]):
    """A network that is loaded when it is wanted and can be let go."""

    def __init__(self, load: Callable[[], N]) -> None:
        self._load = load
        self._network: N | None = None

    def get(self) -> N:
        if self._network is None:
            self._network = self._load()
        return self._network

    def release(self) -> None:
        """Let it go; `get` loads it again."""
        self._network = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def placed(network: N, load_options: LoadOptions, *, device: str | None = None) -> N:
    """The network on the run's device, or another, in the layout and with the memory that were asked for.

    Where networks take turns it stays on the CPU until its own comes; not so on a device that is named.
    """
    if load_options.channels_last and all(
        p.dim() < 5 for p in network.parameters()
    ):  # no convolution of films
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if load_options.paged and device is None:
        paging.paged(network, load_options.device)
    else:
        network.to(device or load_options.device)
    if load_options.checkpointing and getattr(network, "_supports_gradient_checkpointing", False):
        network.enable_gradient_checkpointing()  # type: ignore[operator]
        if hasattr(network, "decoder"):  # an autoencoder
            recompute_layers(network)
    return network


def compiled(denoiser: N, load_options: LoadOptions) -> N:
    """The denoiser, compiled at its first call where that was asked for."""
    if load_options.compile:
        denoiser.compile()
    return denoiser


def read_json(path: Path) -> dict[str, Any]:
    """A configuration; raises WeightsError for one that is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is missing or damaged: fetch the model again") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds no settings: fetch the model again")
    return found


def read_tensors(path: Path) -> dict[str, Any]:
    """What a .safetensors, .pt, .pth, .ckpt or .bin file holds, on the CPU: tensors by name, or nested so.

    Nothing is unpickled but tensors and plain containers. Raises WeightsError for anything else.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: fetch it again, or give another file")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        with explained("weights", path):
            return dict(load_file(path))
    try:
        with explained("weights", path):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (EOFError, torch.serialization.pickle.UnpicklingError) as error:  # type: ignore[attr-defined]
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors, which is never run: give a file of tensors"
        ) from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds a {type(found).__name__}: give a file of tensors by name")
    return found


def fill(network: N, tensors: Mapping[str, Any], path: Path) -> N:
    """Put tensors into a network that wants exactly them, and freeze it; raises WeightsError otherwise."""
    wanted = network.state_dict()
    report = {
        "missing_keys": wanted.keys() - tensors.keys(),
        "unexpected_keys": tensors.keys() - wanted.keys(),
        "mismatched_keys": {
            name
            for name in wanted.keys() & tensors.keys()
            if getattr(tensors[name], "shape", None) != wanted[name].shape
        },
    }
    check_report(type(network), path, report)
    network.load_state_dict(dict(tensors), assign=any(p.is_meta for p in network.parameters()))
    check_finite(network, path)
    return frozen(network)


def check_finite(network: torch.nn.Module, place: Path) -> None:
    """Raise WeightsError for a network with a weight that is not finite, as a broken merge has.

    A sum is finite if all its terms are, and takes less memory than a look at each.
    """
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.sum(dtype=torch.float32).isfinite():
            bad = int((~value.isfinite()).sum())
            if bad:
                raise WeightsError(
                    f"{place} has {bad:,} of {value.numel():,} numbers in {name} that are not finite in "
                    f"{str(value.dtype).removeprefix('torch.')}: fetch it again, or try --prior.dtype float32"
                )
