"""Results as Python has them, which show themselves in a notebook. No torch here."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatgen.commands.common.execution import files
from splatgen.runs import run_folder
from splatgen.runs.run_folder import Run
from splatgen.sweeps.ledger import read_sweep

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from splatgen.loop.loop import Result
    from splatgen.scene.splats import Splats

KINDS = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A run that has ended, and where its files are."""

    folder: Path
    status: str  # done or stopped
    step: int
    prompt: str
    rewards: dict[str, float]  # reward/NAME, holdout/NAME of the finished object

    @classmethod
    def of(cls, result: Result) -> RunResult:
        """What a loop came to, with what run.json says of it."""
        data = run_folder.read(result.run)
        return cls(
            folder=result.run.folder,
            status=result.status,
            step=result.step,
            prompt=str(data.get("prompt", "")),
            rewards=dict(data.get("rewards") or {}),
        )

    @property
    def files(self) -> dict[str, Path]:
        """What the run left, by kind: splats, turntable, preview, metrics, config, metadata."""
        return {kind: Path(path) for kind, path in files(Run(folder=self.folder)).items()}

    def splats(self) -> Splats:
        """The finished object; ValueError where there is none, because the run was stopped."""
        from splatgen import formats

        if "splats" not in self.files:
            raise ValueError(f"{self.folder} has no splats, its run is {self.status}: `splatgen resume` it")
        return formats.load(self.files["splats"])

    def _repr_html_(self) -> str:
        shown = next((self.files[kind] for kind in ("turntable", "preview") if kind in self.files), None)
        rewards = ", ".join(f"{name.partition('/')[2]} {value:.3f}" for name, value in self.rewards.items())
        caption = f"{self.prompt} ({self.status}, step {self.step}{'; ' if rewards else ''}{rewards})"
        return figure(shown, f"{caption}: {self.folder}")


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A sweep or a comparison: its folder, and its table as Markdown."""

    folder: Path
    table: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A run each, in the plan's order: prompt, method, seed, folder, status, error, numbers by name."""
        return [dataclasses.asdict(outcome) for outcome in read_sweep(self.folder).outcomes]

    def _repr_html_(self) -> str:
        sheet = self.folder / "sheet.png"
        table = f"<pre>{html.escape(self.table)}</pre>"
        return table + figure(sheet if sheet.is_file() else None, str(self.folder))

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.folder}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What runs measured: a row each, the file of them, and the table of means as Markdown."""

    rows: list[dict[str, Any]]  # run, prompt, method, seed, status, views, and numbers by name
    path: Path
    table: str

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.path}"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What cameras saw."""

    rgb: NDArray[np.uint8]  # [B, H, W, 3]

    def __len__(self) -> int:
        return len(self.rgb)

    def png(self) -> bytes:
        """All of them side by side."""
        import numpy as np
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(np.concatenate(list(self.rgb), 1)).save(file, format="PNG")
        return file.getvalue()

    def _repr_html_(self) -> str:
        return f'<img src="{embedded(self.png(), "image/png")}">'


def figure(path: Path | None, caption: str) -> str:
    """A picture or film inside the page, and a line below it."""
    line = f"<figcaption>{html.escape(caption)}</figcaption>"
    if path is None:
        return f"<figure>{line}</figure>"
    source = embedded(path.read_bytes(), KINDS[path.suffix])
    film = path.suffix == ".mp4"
    tag = "video autoplay loop muted controls" if film else "img"
    return f'<figure><{tag} src="{source}">{"</video>" if film else ""}{line}</figure>'


def embedded(content: bytes, kind: str) -> str:
    """A data: address, so that a notebook that is sent on shows it too."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
