"""The rooms of the program and what passes between them, read from the source.

A room is a folder of splatgen/. Rooms stand in one order, and a room imports itself and those before it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Bottom up.
ROOMS = (
    "config", "runs", "scene", "models", "rasterizer", "formats",
    "worlds", "priors", "rewards", "guidance", "loop", "sweeps", "commands",
)  # fmt: skip
FLOOR = {room: floor for floor, room in enumerate(ROOMS)}
MOST_ROOMS, MOST_FILES, MOST_LINES = 13, 4, 350
SOURCES = sorted((ROOT / "splatgen").rglob("*.py"))
VIEWER = sorted((ROOT / "viewer").rglob("*.py"))
BANNED_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "yaml"}
BANNED_CALLS = {"eval", "exec", "compile", "torch.load", "torch.save", "np.load", "numpy.load", "os.system"}
BANNED_KEYWORDS = {"trust_remote_code", "allow_pickle", "shell"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def without_typing(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`, which never run."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from without_typing(child)


def imports(path: Path, *, typing: bool = False) -> set[str]:
    """Full names of what a file imports, inside functions too; `from a import b` gives a.b."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(tree(path)) if typing else without_typing(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{start}.{alias.name}" for alias in node.names}
    return found


def rooms(names: set[str]) -> set[str]:
    """The rooms among full names; a name that splatgen itself gives, such as __version__, is of none."""
    return {name.split(".")[1] for name in names if name.startswith("splatgen.")} & {*ROOMS}


def room(path: Path) -> str | None:
    """The room of a file; None for the files at the door, splatgen/__init__.py and cli.py."""
    parts = path.relative_to(ROOT / "splatgen").parts
    return parts[0] if len(parts) > 1 else None


def test_the_rooms_are_few_and_nothing_lies_about() -> None:
    entries = [p for p in (ROOT / "splatgen").iterdir() if p.name != "__pycache__"]
    folders = {p.name for p in entries if any(p.rglob("*.py"))}
    files = {p.name for p in entries if p.is_file()}
    assert folders == {*ROOMS}, "give a new room its floor in ROOMS"
    assert len(folders) <= MOST_ROOMS
    assert len(files) <= MOST_FILES, files


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=module_name)
def test_every_room_says_what_belongs_there_and_what_does_not(path: Path) -> None:
    plate = ast.get_docstring(tree(path)) or ""
    assert plate.splitlines()[:1] > [""], f"{path}: say in its first line what belongs here"
    assert "\nNot here: " in plate, f"{path}: say in a line `Not here: ...` what does not"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_downward(path: Path) -> None:
    here = room(path)
    if here is None:
        return  # the door may know every room
    names = imports(path, typing=True)
    assert not {n for n in names if re.fullmatch(r"splatgen\.(__\w+__|cli\b.*)", n)}, (
        "nothing imports the door"
    )
    above = {name for name in rooms(names) if FLOOR[name] > FLOOR[here]}
    assert not above, f"{module_name(path)} is below {above} and imports it"


def test_no_file_is_long() -> None:
    """Kernels excepted, which are one thing each."""
    long = {module_name(p) for p in SOURCES if len(p.read_text("utf-8").splitlines()) > MOST_LINES}
    assert not {name for name in long if ".rasterizer._" not in name}


def test_the_plan_of_the_house_is_that_of_the_folders() -> None:
    page = ROOT / "docs" / "architecture.md"
    text = page.read_text(encoding="utf-8")
    picture = text.split("```text")[1].split("```")[0]
    assert all(re.search(rf"\b{name}\b", picture) for name in ROOMS)
    for link in re.findall(r"\]\((\.\./[^)]+)\)", text):
        assert (page.parent / link).exists(), f"{link} is not there"


def test_tests_lie_in_folders_named_after_rooms() -> None:
    folders = {p.name for p in (ROOT / "tests").iterdir() if any(p.glob("**/test_*.py"))} - {"__pycache__"}
    assert folders <= {*ROOMS, "viewer", "benchmarks", "gpu", "pretend"}  # gpu: on a pretended device


def test_the_imports_of_a_known_file_are_seen() -> None:
    """Guards the tests above: a reader that sees nothing would let everything pass."""
    source = ROOT / "splatgen"
    assert {"guidance", "rasterizer", "priors", "config"} <= rooms(imports(source / "loop" / "step.py"))
    assert "worlds" in rooms(imports(source / "priors" / "toybox.py"))


def test_priors_and_rewards_do_not_know_each_other() -> None:
    for path in (ROOT / "splatgen" / "priors").rglob("*.py"):
        assert "rewards" not in rooms(imports(path)), path
    for path in (ROOT / "splatgen" / "rewards").rglob("*.py"):
        assert "priors" not in rooms(imports(path)), path


def test_only_tables_and_choices_of_kernels_import_by_name() -> None:
    """What is imported by a string escapes the tests above, so whoever does it is named here."""
    found = {
        module_name(path)
        for path in SOURCES
        if any(isinstance(n, ast.Attribute) and n.attr == "import_module" for n in ast.walk(tree(path)))
    }
    kernels, door = "splatgen.rasterizer.cpu", "splatgen.cli"
    assert found == {"splatgen.models.registry", "splatgen.formats", kernels, door}


@pytest.mark.parametrize("room", ROOMS)
def test_a_string_that_names_a_module_points_down_too(room: str) -> None:
    """Of the tables: a loader stands in its own room."""
    for path in (ROOT / "splatgen" / room).rglob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = re.fullmatch(r"splatgen\.(\w+)[\w.]*(:\w+)?", node.value)
                if named and named[1] in FLOOR:
                    assert FLOOR[named[1]] <= FLOOR[room], f"{path}: {node.value}"


def test_the_front_door_imports_no_torch() -> None:
    code = "import sys, splatgen, splatgen.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_only_their_tables_know_concrete_priors_and_rewards() -> None:
    """By name, in strings that are looked up when asked for; whoever wants a model asks the table."""
    kinds = ("priors", "rewards")
    files = [p for kind in kinds for p in (ROOT / "splatgen" / kind).rglob("*.py") if p.stem != "__init__"]
    models = {module_name(path) for path in files} - {"splatgen.rewards.ensemble"}
    for path in SOURCES:
        if room(path) not in kinds:
            concrete = {name for name in imports(path) if any(f"{name}.".startswith(f"{m}.") for m in models)}
            assert not concrete, f"{module_name(path)} imports {concrete}"


def test_the_viewer_and_the_program_meet_in_snapshots_and_formats() -> None:
    for path in VIEWER:
        met = {name for name in imports(path) if name.startswith("splatgen.")}
        assert all(name.startswith(("splatgen.loop.snapshot.", "splatgen.formats")) for name in met), path
    for path in SOURCES:
        roots = {name.split(".")[0] for name in imports(path)}
        assert room(path) == "commands" or not roots & {"viewer", "splatgen_viewer"}, path


@pytest.mark.parametrize("path", [*SOURCES, *VIEWER], ids=module_name)
def test_nothing_that_runs_foreign_code(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & BANNED_MODULES
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            refused = {word.arg for word in node.keywords if ast.unparse(word.value) == "False"}
            keywords = {word.arg for word in node.keywords} & BANNED_KEYWORDS - refused
            if name == "torch.load":  # it reads tensors only, or it is banned
                assert any(
                    word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords
                )
                continue
            if name == "np.load":  # arrays only, and said so
                assert "allow_pickle" in refused, f"{path}:{node.lineno}"
                continue
            assert name not in BANNED_CALLS, f"{path}:{node.lineno} calls {name}"
            assert not keywords, f"{path}:{node.lineno} passes {keywords}"


def test_a_wheel_holds_every_package_its_data_and_no_tests() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent for path in SOURCES if path.name == "__init__.py"}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(tool["packages"]) == packages | {"splatgen_viewer", "splatgen_configs"}
    assert tool["package-dir"]["splatgen_viewer"] == "viewer"
    assert tool["package-dir"]["splatgen_configs"] == "configs"
    assert "*.toml" in tool["package-data"]["splatgen_configs"]
    weights = {"weights/*.safetensors", "weights/*.json"}
    assert weights <= set(tool["package-data"]["splatgen.worlds.toybox"])
    assert weights | {"catalogue.json", "gallery.webp"} <= set(tool["package-data"]["splatgen.worlds.shelf"])


def test_installed_packages_are_importable() -> None:
    import splatgen_configs
    import splatgen_viewer

    assert splatgen_viewer.__doc__ is not None
    assert list(Path(str(splatgen_configs.__file__)).parent.glob("*.toml"))
