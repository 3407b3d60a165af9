"""What the README says can be typed can be typed."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from splatgen import cli
from splatgen.commands import generate
from splatgen.config import presets

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
SPLATGEN = [words for line in LINES if "splatgen" in (words := shlex.split(line, comments=True))[0]]


def test_the_readme_shows_every_verb():
    assert {words[1] for words in SPLATGEN} == set(cli.VERBS)


@pytest.mark.parametrize("words", [w for w in SPLATGEN if w[1] == "generate"], ids=" ".join)
def test_generate_lines_are_read(words, tmp_path):
    (tmp_path / "my.toml").write_text("steps = 5\n")
    argv = [str(tmp_path / w) if w == "my.toml" else w for w in words[2:]]
    options, config = generate.read(argv)
    assert config.prompt
    assert options.preset is None or options.preset in presets()


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert shown
    assert shown <= targets


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(path):
    assert path.startswith("https://") or (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"benchmarks/\w+\.py", README))))
def test_benchmarks_exist(name):
    assert (ROOT / name).is_file()


def test_python_example_imports_what_exists():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    imports = "\n".join(line for line in code.splitlines() if line.startswith(("from", "import")))
    compiled = ast.parse(imports)
    for node in compiled.body:
        assert isinstance(node, ast.ImportFrom)
        module = importlib.import_module(str(node.module))
        assert all(hasattr(module, a.name) for a in node.names)
