"""What there is to look at of a run that is not done: its last good step, out of the loop or a checkpoint."""

from __future__ import annotations

from pathlib import Path

from splatgen import formats
from splatgen.config import Config, from_dict, read_file
from splatgen.loop import object_edit, results
from splatgen.runs import checkpoint, lock
from splatgen.runs.run_folder import Run
from splatgen.runs.version import __version__
from splatgen.scene.parameters import saved_splats
from splatgen.scene.placement import placement
from splatgen.scene.splats import Splats


def write(run: Run, splats: Splats, config: Config) -> None:
    """splats.ply and preview.png of splats before the cameras, of a run that is an edit or none."""
    if config.source:
        object_edit.write_object(run, splats, config.output, config.edit.fit)
    else:
        results.write_object(run, splats, config.output)


def from_checkpoint(run: Run) -> tuple[Path, int]:
    """The splats of the newest checkpoint as a file in the run's folder, and their step.

    They become splats.ply, with a preview, where the process of the run is gone; while it is at work, which
    writes that itself, step-000123.ply. Raises FileNotFoundError without a checkpoint, ValueError for damage.
    """
    config = from_dict(read_file(run.config_json))
    found = checkpoint.load_latest(run.checkpoints)
    checkpoint.expect(found, run.checkpoints, ("splats",))
    with checkpoint.explained(run.checkpoints):
        splats = saved_splats(found)
    if lock.holder(run.folder) is None:
        with lock.held(run.folder):
            write(run, splats, config)
        return run.splats_ply, found.step
    if config.source:
        splats = placement(object_edit.load_source(run), config.edit.fit).put_back(splats)
    path = run.folder / f"step-{found.step:06d}.ply"
    formats.save(splats, path, comments=[f"splatgen {__version__} {run.id} step {found.step}"])
    return path, found.step


def before_the_cameras(run: Run, splats: Splats) -> Splats:
    """The splats of a run's file where its prior saw them: those of an edit stand where its source does."""
    config = from_dict(read_file(run.config_json))
    return placement(object_edit.load_source(run), config.edit.fit).place(splats) if config.source else splats
