"""The layers of the program, what a wheel holds, and what no module may use. Read from the source."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A module may import its own layer and those below; a package lends its layer to its modules.
LAYERS = (
    "__init__ atomic rng cameras splats prompts backgrounds memory machine hints snapshot config validation "
    "methods paired weights published budget steering",
    "render priors rewards formats toybox loading shapes meshes placing shap_e open_clip",
    "scores preferences guidance denoiser conditions moment inversion panel densify regularise",
    "optimise step scene checkpoint packing runs metrics evaluate video results painting editing comparing "
    "lighter looping watching showing residence",
    "cli commands doctor doctor_models fetching",
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
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


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, inside functions too; `from a import b` gives a.b."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in without_typing(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{start}.{alias.name}" for alias in node.names}
    return found


def inner(names: set[str]) -> set[str]:
    """The parts of splatgen among full names: cameras, formats, ..."""
    parts = {name.split(".")[1] for name in names if name.startswith("splatgen.")}
    return {part if part in LAYER else "__init__" for part in parts if part in LAYER or part.startswith("__")}


def part(path: Path) -> str:
    names = module_name(path).split(".")
    return names[1] if len(names) > 1 else "__init__"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_downward(path: Path) -> None:
    assert part(path) in LAYER, f"give {part(path)} a layer"
    above = {name for name in inner(imports(path)) if LAYER[name] > LAYER[part(path)]}
    assert not above, f"{module_name(path)} is in layer {LAYER[part(path)]} and imports {above}"


def test_the_imports_of_a_known_file_are_seen() -> None:
    """Guards the tests above: a reader that sees nothing would let everything pass."""
    assert {"scores", "render", "priors", "config"} <= inner(imports(ROOT / "splatgen" / "step.py"))
    assert "toybox" in inner(imports(ROOT / "splatgen" / "priors" / "toybox.py"))


def test_priors_and_rewards_do_not_know_each_other() -> None:
    for path in (ROOT / "splatgen" / "priors").rglob("*.py"):
        assert "rewards" not in inner(imports(path)), path
    for path in (ROOT / "splatgen" / "rewards").rglob("*.py"):
        models = {name for name in imports(path) if name.startswith("splatgen.priors.")}
        assert models <= {"splatgen.priors.attribute"}, path


def test_the_methods_know_no_concrete_prior_or_reward() -> None:
    kinds = ("priors", "rewards")
    files = [p for kind in kinds for p in (ROOT / "splatgen" / kind).rglob("*.py") if p.stem != "__init__"]
    models = {module_name(path) for path in files}
    for path in SOURCES:
        if LAYER[part(path)] in (2, 3) and part(path) != "evaluate":
            concrete = {name for name in imports(path) if any(f"{name}.".startswith(f"{m}.") for m in models)}
            assert not concrete, f"{module_name(path)} imports {concrete}"


def test_the_viewer_and_the_program_meet_in_snapshots_and_formats() -> None:
    for path in VIEWER:
        assert inner(imports(path)) <= {"__init__", "snapshot", "formats"}, path
    for path in SOURCES:
        roots = {name.split(".")[0] for name in imports(path)}
        assert part(path) in ("cli", "commands") or not roots & {"viewer", "splatgen_viewer"}, path


@pytest.mark.parametrize("path", [*SOURCES, *VIEWER], ids=module_name)
def test_nothing_that_runs_foreign_code(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & BANNED_MODULES
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {word.arg for word in node.keywords} & BANNED_KEYWORDS
            if name == "torch.load":  # it reads tensors only, or it is banned
                assert any(
                    word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords
                )
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
    assert {"weights/*.safetensors", "weights/*.json"} <= set(tool["package-data"]["splatgen.toybox"])


def test_installed_packages_are_importable() -> None:
    import splatgen_configs
    import splatgen_viewer

    assert splatgen_viewer.__doc__ is not None
    assert list(Path(str(splatgen_configs.__file__)).parent.glob("*.toml"))
