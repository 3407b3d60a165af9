"""Published weights onto this machine: what would be fetched, whether there is room, and the fetching.

huggingface_hub does the work, one file after another: Ctrl-C ends it at once, and whole files stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from splatgen.models import weights
from splatgen.models.catalogue import Part, Published, published
from splatgen.models.weights import ModelFiles, WeightsError
from splatgen.runs import atomic

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

PATIENCE = 10.0  # seconds without an answer
SPARE = 50_000_000  # bytes of the disk that stay free
MAX_ELSEWHERE = 16_000_000  # bytes of a file that is not on the hub


@dataclass(frozen=True, kw_only=True)
class DownloadItem:
    """One file to fetch."""

    part: Part
    name: str  # in its repository
    size: int  # bytes; 0 where that is not known
    broken: bool = False  # there is one here, of another size or cut short


@dataclass(frozen=True, kw_only=True)
class DownloadPlan:
    """What it takes to have a model here."""

    name: str
    model: Published
    weights: str | None  # the folder of weights, or None for the cache
    small: bool
    without: tuple[str, ...]
    items: tuple[DownloadItem, ...]  # that are not here yet
    commits: dict[str, str]  # of the parts, by their folders

    @property
    def bytes(self) -> int:
        return sum(item.size for item in self.items)


def plan(
    name: str,
    folder: str | None = None,
    *,
    small: bool = False,
    full: bool = False,
    without: tuple[str, ...] = (),
) -> DownloadPlan:
    """Ask the hub what of a model is not here.

    small wants no weights, full wants them in full precision where there is a choice, and without leaves out
    what begins with one of it.

    Raises ValueError for an unknown name, WeightsError for what the hub has not or does not give, and
    ConnectionError when it can't be asked.
    """
    model = published(name)
    items: list[DownloadItem] = []
    commits = {}
    for part in model.parts:
        entries = weights.needed(part, small=small, without=without)
        with explained(name, model, part):
            listing = _elsewhere(part) if part.url else _on_the_hub(part)
        commits[part.folder], sizes = listing
        wanted = _wanted(name, part, entries, sizes, full=full)
        place = _place(name, part, commits[part.folder], folder)
        items += [item for file in wanted if (item := _item(part, place, file, sizes[file])) is not None]
        if not (folder or part.url) and weights.cached(part.repo, part.revision) != place:
            known = {item.name for item in items if item.part is part}
            if wanted[0] not in known:  # it costs nothing, and tells the cache which commit the branch is
                items.append(DownloadItem(part=part, name=wanted[0], size=0))
    return DownloadPlan(
        name=name,
        model=model,
        weights=folder,
        small=small,
        without=without,
        items=tuple(items),
        commits=commits,
    )


def _item(part: Part, place: Path, file: str, size: int) -> DownloadItem | None:
    """What there is to fetch of a file: nothing when it is here, whole."""
    path = place / file
    if not path.is_file():
        return DownloadItem(part=part, name=file, size=size)
    if (size and path.stat().st_size != size) or weights.torn(path):
        return DownloadItem(part=part, name=file, size=size, broken=True)
    return None


def _on_the_hub(part: Part) -> tuple[str, dict[str, int]]:
    """A repository's commit and the sizes of its files; also whether they are given to this user."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    info = HfApi().model_info(part.repo, revision=part.revision, timeout=PATIENCE, files_metadata=True)
    files = info.siblings or []
    if info.sha is None or not files:
        raise WeightsError(f"{part.repo} is empty: give another copy of the model with --prior.model")
    # The list is public also where the files are not.
    get_hf_file_metadata(hf_hub_url(part.repo, files[0].rfilename, revision=info.sha), timeout=PATIENCE)
    return info.sha, {file.rfilename: file.size or 0 for file in files}


def _elsewhere(part: Part) -> tuple[str, dict[str, int]]:
    return part.revision, dict.fromkeys(part.files, 0)


def _wanted(name: str, part: Part, entries: Sequence[str], sizes: dict[str, int], *, full: bool) -> list[str]:
    """The names of the files of a part that a model takes."""
    names: dict[str, None] = {}
    for entry in entries:
        chosen = weights.choose(entry, sizes, full=full)
        if not chosen:
            raise WeightsError(
                f"{part.repo} has no {entry.split('|')[0]} any more, which {name} takes: "
                "give another copy of the model with --prior.model"
            )
        names |= dict.fromkeys(chosen)
    return list(names)


def _place(name: str, part: Part, commit: str, folder: str | None) -> Path:
    """The folder in which a part's files lie, or will."""
    from huggingface_hub import constants

    if folder:
        return Path(folder).expanduser() / name / part.folder
    if part.url:
        return weights.elsewhere(part)
    return Path(constants.HF_HUB_CACHE) / f"models--{part.repo.replace('/', '--')}" / "snapshots" / commit


def target(folder: str | None) -> Path:
    """The folder below which everything is written."""
    from huggingface_hub import constants

    return Path(folder).expanduser() if folder else Path(constants.HF_HUB_CACHE)


def check_room(plans: Sequence[DownloadPlan], folder: str | None) -> None:
    """Raise OSError unless what is to be fetched fits on the disk, with a little to spare."""
    into = target(folder)
    existing = next(path for path in (into.absolute(), *into.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing} can't be written to: name another folder with --weights")
    wanted, free = sum(each.bytes for each in plans), shutil.disk_usage(existing).free - SPARE
    if wanted > free:
        names = ", ".join(each.name for each in plans if each.items)
        lack = (wanted - free) / 1e9
        raise OSError(
            f"{names}: {wanted / 1e9:.2f} GB to fetch into {into}, which lacks {lack:.2f} GB of room: free "
            "that much, or name a folder on another disk with --weights"
        )


def fetch(made: DownloadPlan, tell: Callable[[str], None] = lambda _: None) -> ModelFiles:
    """Fetch what a plan lists; whole files stay when it is interrupted. Returns where the model is then.

    Raises what `plan` does, and OSError for the disk.
    """
    first = {part.folder for part in made.model.parts}
    for number, item in enumerate(made.items, 1):
        tell(f"{made.name} {number}/{len(made.items)}: {item.name}, {item.size / 1e6:,.1f} MB")
        with explained(made.name, made.model, item.part):
            if item.part.url:
                _download(item, _place(made.name, item.part, made.commits[item.part.folder], made.weights))
            else:
                _from_the_hub(made, item, named=item.part.folder in first)
        first.discard(item.part.folder)
    return weights.find(made.name, made.weights, small=made.small, without=made.without)


def _from_the_hub(made: DownloadPlan, item: DownloadItem, *, named: bool) -> None:
    """Fetch a file; named asks by branch, so that the cache notes which commit that is."""
    from huggingface_hub import hf_hub_download

    local = _place(made.name, item.part, "", made.weights) if made.weights else None
    hf_hub_download(
        item.part.repo,
        item.name,
        revision=item.part.revision if named else made.commits[item.part.folder],
        local_dir=local,
        force_download=item.broken,
        etag_timeout=PATIENCE,
    )


def _download(item: DownloadItem, folder: Path) -> None:
    """Fetch the one file of a part that is not on the hub; its hash decides whether it is the one."""
    from urllib.request import urlopen

    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if constants.is_offline_mode():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    with urlopen(item.part.url, timeout=PATIENCE) as answer:
        data: bytes = answer.read(MAX_ELSEWHERE + 1)
    if hashlib.sha256(data).hexdigest() != item.part.sha256:
        raise WeightsError(f"{item.part.url} is not the file that was published (its SHA-256 is another)")
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(folder / item.name, data)


@contextlib.contextmanager
def explained(name: str, model: Published, part: Part) -> Iterator[None]:
    """What the hub and the network raise, as a WeightsError or a ConnectionError of one line."""
    from http.client import HTTPException
    from urllib.error import URLError

    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise WeightsError(_gated(name, model, part)) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(_gone(name, part)) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"{part.repo} has no revision {part.revision} any more: update splatgen"
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(name, model, part, error) from error
    except errors.OfflineModeIsEnabled as error:
        raise ConnectionError(f"{name} can't be fetched while HF_HUB_OFFLINE is set: unset it") from error
    except WeightsError:
        raise
    # a ValueError is an answer that is no JSON, a RuntimeError what the hub's transfer library raises
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ValueError, RuntimeError) as error:  # type: ignore[attr-defined]
        raise ConnectionError(_unreachable(name, part, error)) from error
    except (URLError, HTTPException, TimeoutError) as error:
        raise ConnectionError(_unreachable(name, part, error)) from error


def _gated(name: str, model: Published, part: Part) -> str:
    page = model.gate or f"https://huggingface.co/{part.repo}"
    return (
        f"{name} is given to those who accepted its licence ({model.licence}): accept it at {page}, then "
        f"`hf auth login` (or set HF_TOKEN) and `splatgen fetch {name}` again"
    )


def _gone(name: str, part: Part) -> str:
    return (
        f"the hub has no {part.repo} any more, or does not show it to you: give another copy of {name} with "
        "--prior.model, or put its files into WEIGHTS/NAME and use --weights"
    )


def _refused(name: str, model: Published, part: Part, error: HfHubHTTPError) -> Exception:
    """What an HTTP status means that the hub's library has no error of its own for."""
    status = error.response.status_code
    if status == 403 and model.gate:
        return WeightsError(_gated(name, model, part))
    if status in (401, 403):
        return WeightsError(
            f"the hub refuses {part.repo} to this login ({status}): `hf auth login` again, or unset HF_TOKEN"
        )
    if status in (404, 410):
        return WeightsError(_gone(name, part))
    return ConnectionError(f"{name}: {_host(part)} answers {status}: try again later; {_STAYS}")


_STAYS = "what was fetched whole stays"


def _unreachable(name: str, part: Part, error: Exception) -> str:
    cause = error.__cause__ or error
    kind = type(cause).__name__
    if "Timeout" in kind or "timed out" in str(cause):
        what = f"does not answer within {PATIENCE:g} s"
    elif isinstance(cause, ValueError):
        what = "does not answer as a hub does: look at HF_ENDPOINT and the proxy"
    else:
        what = f"can't be reached ({' '.join(str(cause).split())[:120] or kind})"
    return f"{name}: {_host(part)} {what}; {_STAYS}, and the same command goes on"


def _host(part: Part) -> str:
    from huggingface_hub import constants

    return urlsplit(part.url or constants.ENDPOINT).netloc
